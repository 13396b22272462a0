"""Planning: which variables a structured path may serve, proven from the graph.

The network is traced once, on symbolic rows, with everything that a kernel needs of it.
Of that graph it is *proven* which variables reach the outputs by their layers' rules
alone (`roads.py`); the others go the way of the plain Jacobian. (Each graph that computes
kernel values is proven anew: the network may go other ways there.) As a second line the
rules are *tried* (`trial.py`): on made-up rows, and on some of the caller's, structured
gradients are compared with plain ones, and rows with the same rows among others. Nothing
of that depends on the rows of the caller but what is refused.

What has no NTK at all is refused (`refusals.py`).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.factors import Cost
from keras_kare.kernels.structured import reasons, refusals
from keras_kare.kernels.structured.capture import Unruled, run
from keras_kare.kernels.structured.chosen import Places
from keras_kare.kernels.structured.plan import Plan, PlannedShare
from keras_kare.kernels.structured.probe import Probe, traced_probe
from keras_kare.kernels.structured.registry import is_own, rule_for
from keras_kare.kernels.structured.synthetic import (
    ROWS,
    described,
    spread_rows,
    synthetic_rows,
)
from keras_kare.kernels.structured.trial import (
    Trial,
    agree,
    size,
    tolerance_of,
    tolerance_of_rules,
)
from keras_kare.kernels.structured.untouched import untouched, walk

_TRACES = 3
"""How often a network may still be making variables."""


def make_plan(
    network: keras.Model, x: Any, method: str, outputs: str, places: Places | None
) -> Plan:
    """Prove, try, and choose; `x` are the caller's rows, which may be symbolic.

    Raises:
        ValueError: If the network has no trainable variable that its outputs
            depend on, rows that interact or outputs that are random, or, for
            `outputs="sum"`, summed outputs that do not depend on the variables.
    """
    refusals.refuse_stateful(network)
    specs, theirs = described(x), spread_rows(x)
    made = synthetic_rows(specs, network, seed=1)
    finish_building(network, made if theirs is None else theirs)
    probe, function = _traced(network, specs, method == "jacobian", outputs, places)
    refusals.refuse_random(network, probe.needed(), probe.abilities.in_bodies)
    trial = Trial(function, probe.trained, seed=0)
    tolerance = tolerance_of(walk(network))
    tried = _Tried(probe, trial, tolerance)
    if probe.forward.has_functions:
        rows = made if theirs is None else theirs
        refusals.refuse_stale_functions(network, rows, tolerance)
    more = synthetic_rows(specs, network, seed=2)
    fits = tried.add(network, made, more)
    if theirs is not None:
        others = more if fits else _rows.take(theirs, slice(None, None, -1))
        tried.add(network, theirs, others)
    if outputs == "sum" and probe.count_outputs > 1:
        refusals.refuse_constant_sum(tried.summed, tried.mixed, tolerance)
    why = {i: reason for i in probe.plain if (reason := tried.reason(i))}
    plan = _plan(probe, why)
    if method != "jacobian":
        reasons.warn_of_fallback(plan)
    return plan


def finish_building(network: keras.Model, rows: Any) -> None:
    """Make the variables that layers make at their first call."""
    if all(layer.built for layer in walk(network)):
        return
    with tf.init_scope(), untouched(network):
        run(network, _rows.take(rows, slice(2)), Unruled())


def _traced(
    network: keras.Model, specs: Any, plain: bool, outputs: str, places: Places | None
) -> tuple[Probe, Any]:
    """Return a probe and its function; once more where the trace has made variables."""
    for _ in range(_TRACES):
        with untouched(network):
            probe, function = traced_probe(network, specs, plain, outputs, places)
        if [id(v) for v in network.trainable_variables] == [id(v) for v in probe.trained]:
            return probe, function
    raise ValueError(
        f"{network.name!r} makes new variables at every call, so that it has no neural "
        "tangent kernel. Make them in `build` or in `__init__`. "
        f"Received: network={network.name!r}"
    )


def _plan(probe: Probe, why: dict[int, str]) -> Plan:
    """Make the plan in which the variables of `why` take the plain Jacobian."""
    if not probe.plain:
        raise ValueError(
            "The outputs of `network` depend on none of its trainable variables, or of "
            "those of `layers`. "
            f"Received: network={probe.network.name!r}"
        )
    served = [i for i in probe.plain if i not in why]
    rest = [i for i in probe.plain if i in why]
    return Plan(
        variables=tuple(probe.variables),
        structured=tuple(probe.variables[i] for i in served),
        jacobian=tuple(probe.variables[i] for i in rest),
        forward_mode=probe.abilities.forward_mode,
        vectorizes=probe.abilities.vectorizes,
        loops=probe.abilities.loops,
        undifferentiable=probe.lacking,
        constant=probe.constant,
        outputs=probe.count_outputs,
        shares=_shares(probe, served, why),
        footprint=probe.footprint,
    )


def _shares(
    probe: Probe, served: list[int], why: dict[int, str]
) -> tuple[PlannedShare, ...]:
    """Return what each group costs, in the order in which the network meets them."""
    ids = {id(probe.variables[i]) for i in served}
    planned = [
        PlannedShare(tuple(kept), cost, "")
        for group, cost in probe.rules.costs
        if (kept := [v for v in group if id(v) in ids])
    ]
    for i in (i for i in probe.plain if i in why):
        variable = probe.variables[i]
        numbers = float(probe.count * math.prod(variable.shape))
        # Every output of every row goes back through the whole batch.
        pair = probe.count * probe.footprint / tf.as_dtype(variable.dtype).size
        cost = Cost("jacobian", 0.0, 2.0 * numbers, numbers, pair)
        planned.append(PlannedShare((variable,), cost, why[i]))
    return tuple(planned)


def _has_users_rule(probe: Probe, number: int) -> bool:
    """Tell whether a variable's rule is the user's, which no test of ours has seen."""
    layers = [
        layer
        for layer in walk(probe.network)
        if any(v is probe.variables[number] for v in layer.trainable_variables)
    ]
    rules = [rule for layer in layers if (rule := rule_for(layer)) is not None]
    return not all(map(is_own, rules))


class _Tried:
    """The trials of a probe's rules, and what they say."""

    def __init__(self, probe: Probe, trial: Trial, tolerance: float):
        self._probe, self._trial, self._tolerance = probe, trial, tolerance
        self._answers: dict[int, list[bool | None]] = {i: [] for i in probe.plain}
        self._of_rules = tolerance_of_rules(tolerance, walk(probe.network))
        self._v = np.random.default_rng(4).normal(size=ROWS)
        self.summed = self.mixed = 0.0

    def _run(self, x: Any) -> dict[str, np.ndarray]:
        return self._trial.run(x, self._v)

    def _outputs(self, x: Any) -> np.ndarray:
        return self._run(x)["f"]

    def add(self, network: keras.Model, x: Any, others: Any) -> bool:
        """Try on some rows, if the network takes them; refuse rows that interact."""
        try:
            found = self._run(x)
            refusals.refuse_wrong_rules(
                network, found["unruled"], found["f"], self._of_rules
            )
            refusals.refuse_coupled(
                network, self._outputs, x, found["f"], others, self._tolerance
            )
            finite = _only_finite(x, found["f"])
            found = found if finite is x else self._run(finite)
        except tf.errors.InvalidArgumentError:
            return False  # made-up rows that the network does not take tell nothing
        probe = self._probe
        plain = {i: found[f"plain {i}"] for i in probe.plain}
        largest = max(map(size, plain.values()), default=0.0)
        self.mixed = max(self.mixed, largest if np.isfinite(largest) else 0.0)
        sums = [size(found[f"sum {i}"]) for i in probe.sums]
        self.summed = max([self.summed, *(s for s in sums if np.isfinite(s))])
        least = max(1e-3, self._of_rules) * largest
        for i in probe.rules.products:
            if i not in plain:
                continue
            rule = found[f"rule {i}"].reshape(plain[i].shape)
            self._answers[i].append(agree(plain[i], rule, self._of_rules, least))
        return True

    def reason(self, place: int) -> str:
        """Say why a variable takes the plain Jacobian; nothing where it need not."""
        probe, answers = self._probe, self._answers[place]
        if place not in probe.rules.watched:
            return reasons.NO_RULE
        if place in probe.rules.unproven:
            return probe.rules.unproven[place]
        if place not in probe.rules.products or False in answers:
            return reasons.WRONG_RULE
        if True not in answers and _has_users_rule(probe, place):
            return reasons.UNTRIED
        return ""


def _only_finite(x: Any, f: np.ndarray) -> Any:
    """Put rows whose outputs are numbers in place of those whose are not."""
    good = np.flatnonzero(np.all(np.isfinite(f), axis=1))
    if len(good) in (0, len(f)):
        return x
    places = np.resize(good, len(f))
    return _rows.take(x, places)
