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
from keras_kare.kernels import memory
from keras_kare.kernels.factors import Cost
from keras_kare.kernels.graphs import ancestors
from keras_kare.kernels.structured import reasons, refusals
from keras_kare.kernels.structured.abilities import Abilities
from keras_kare.kernels.structured.capture import Recorder, Unruled, run
from keras_kare.kernels.structured.differentiability import undifferentiable
from keras_kare.kernels.structured.plan import Plan, PlannedShare, holds
from keras_kare.kernels.structured.registry import is_own, rule_for
from keras_kare.kernels.structured.roads import Roads
from keras_kare.kernels.structured.synthetic import (
    ROWS,
    described,
    spread_rows,
    synthetic_rows,
)
from keras_kare.kernels.structured.traced import shares, split_between
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


def make_plan(network: keras.Model, x: Any, method: str, outputs: str) -> Plan:
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
    probe = _traced(network, specs, method == "jacobian", outputs)
    refusals.refuse_random(network, probe.needed(), probe.abilities.in_bodies)
    trial = Trial(probe.function, probe.variables, seed=0)
    tolerance = tolerance_of(walk(network))
    tried = _Tried(probe, trial, tolerance)
    if probe.has_functions:
        rows = made if theirs is None else theirs
        refusals.refuse_stale_functions(network, rows, tolerance)
    more = synthetic_rows(specs, network, seed=2)
    fits = tried.add(network, made, more)
    if theirs is not None:
        others = more if fits else _rows.take(theirs, slice(None, None, -1))
        tried.add(network, theirs, others)
    if outputs == "sum" and probe.count_outputs > 1:
        refusals.refuse_constant_sum(tried.summed, tried.mixed, tolerance)
    why = {i: reason for i in probe.alive if (reason := tried.reason(i))}
    plan = probe.plan(why)
    if method != "jacobian":
        reasons.warn_of_fallback(plan)
    return plan


def finish_building(network: keras.Model, rows: Any) -> None:
    """Make the variables that layers make at their first call."""
    if all(layer.built for layer in walk(network)):
        return
    with tf.init_scope(), untouched(network):
        run(network, _rows.take(rows, slice(2)), Unruled())


def _traced(network: keras.Model, specs: Any, plain: bool, outputs: str) -> _Probe:
    """A traced probe, once more where the trace has made variables."""
    for _ in range(_TRACES):
        probe = _Probe(network, plain, outputs)
        with untouched(network):
            probe.trace(specs)
        if [id(v) for v in network.trainable_variables] == [id(v) for v in probe.variables]:
            return probe
    raise ValueError(
        f"{network.name!r} makes new variables at every call, so that it has no neural "
        "tangent kernel. Make them in `build` or in `__init__`. "
        f"Received: network={network.name!r}"
    )


class _Probe:
    """One trace: outputs, plain gradients, structured gradients, and the proof.

    Attributes:
        variables: The network's trainable variables.
        function: What was traced.
        alive: Numbers of the variables that the outputs depend on, by any road.
        unproven: Why a variable is not a rule's, by its number, where that is known.
        count: Number of outputs `C` whose gradients are features.
        count_outputs: Number of outputs `c` of the network.
        footprint: Bytes a row that the forward and the backward pass hold.
    """

    def __init__(self, network: keras.Model, plain_only: bool, outputs: str):
        self.network = network
        self.variables = list(network.trainable_variables)
        if not self.variables:
            raise ValueError(
                "`network` has no trainable variable, so its NTK is zero. Set "
                "`trainable = True` on the layers that belong to the kernel. "
                f"Received: network={network.name!r}"
            )
        self._ids = {id(v) for v in self.variables}
        self._plain_only, self._outputs = plain_only, outputs
        self._place = {id(v): i for i, v in enumerate(self.variables)}

    def trace(self, specs: Any) -> None:
        """Trace for inputs of these shapes, and one number a row."""
        kinds = {v.dtype for v in self.variables}
        weights = tf.TensorSpec([ROWS], "float64" if "float64" in kinds else "float32")
        function = tf.function(self._trace, autograph=False)
        self.function = function.get_concrete_function(specs, weights)

    def _trace(self, x: Any, v: tf.Tensor) -> dict[str, tf.Tensor]:
        unruled = Unruled()
        self.unruled = run(self.network, x, unruled)
        self.has_functions = unruled.functions
        self.inputs = keras.tree.flatten(x)
        roads = Roads(self.variables, x)
        sources = [variable.value for variable in self.variables]
        # A persistent tape has TensorFlow prepare loops for more derivatives than these.
        summed_too = self._outputs == "sum" and self.unruled.shape[1] > 1
        with tf.GradientTape(summed_too, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            recorder = Recorder(tape, self._wanted)
            self.f = f = run(self.network, x, recorder)
            self.count_outputs = f.shape[1]
            mix = tf.constant(np.random.default_rng(3).normal(size=(1, f.shape[1])))
            each = tf.cast(v, f.dtype)[:, None]
            weighted = tf.reduce_sum(f * tf.cast(mix, f.dtype) * each)
            summed = tf.reduce_sum(f * each)
        graph = tf.compat.v1.get_default_graph()
        backward = len(graph.get_operations())
        forward = roads.operations()
        handles = roads.sources()
        refusals.refuse_without_gradient(self.network, graph.get_operations(), handles, f)
        watched = [site.h for site in recorder.sites]
        found = tape.gradient(weighted, [*sources, *watched])
        self.plain, by_site = _dense(found[: len(sources)]), found[len(sources) :]
        backwards = graph.get_operations()[backward:]
        self.abilities = Abilities.of(graph.as_graph_def(), forward, backwards)
        self.sums: dict[int, tf.Tensor] = {}
        if summed_too:
            self.sums = _dense(tape.gradient(summed, sources))
        self.alive = list(self.plain)
        passes = [t for t in (f, *watched, *by_site, *self.plain.values()) if t is not None]
        self.lacking = undifferentiable(graph.get_operations(), handles, passes)
        unproven = roads.unproven(recorder.sites, f, by_site)
        self._misplaced = roads.misplaced
        self._structure(recorder, by_site, unproven)
        rest = [g for i, g in self.plain.items() if i not in self.structured]
        self.footprint = memory.footprint(
            graph.get_operations(),
            self.inputs,
            self.parts + rest,
            backward,
            self.count,
            ROWS,
        )
        return self._wanted_of_trials()

    def _wanted(self, layer: keras.layers.Layer) -> bool:
        return not self._plain_only and holds(layer, self._ids)

    def _structure(
        self,
        recorder: Recorder,
        by_site: list[tf.Tensor | None],
        unproven: set[int],
    ) -> None:
        """`Jᵀ v` by the rules, of the variables that are proven to be theirs."""
        self.unproven: dict[int, str] = {}
        self.ruled = {
            self._place[id(u)]
            for s in recorder.sites
            for u in s.variables
            if id(u) in self._place
        }
        # The gradients are those of `v` times the rows' outputs. A part of that is left to
        # the products, which are tried with it.
        part = tf.constant(np.random.default_rng(5).uniform(0.5, 2.0, ROWS), self.f.dtype)
        known: dict[int, tf.Tensor] = {}
        for site, gradient in zip(recorder.sites, by_site, strict=True):
            if gradient is not None and gradient.shape[:1] == [ROWS]:
                known[id(site.h)] = tf.expand_dims(_rows_over(gradient, part), axis=1)
        for key in unproven | split_between(recorder.sites, self._ids):
            misplaced = key in self._misplaced
            why = reasons.NO_ROWS if misplaced else reasons.OTHER_ROAD
            self.unproven[self._place[key]] = why

        def serves(key: int) -> bool:
            place = self._place.get(key)
            return place is not None and place not in self.unproven

        sites = [site for site in recorder.sites if id(site.h) in known]
        self.count = 1 if self._outputs == "sum" else self.count_outputs
        self.costs: list[tuple[list[keras.Variable], Cost]] = []
        self.structured: dict[int, tf.Tensor] = {}
        self.parts: list[tf.Tensor] = []
        for variables, factor in shares(sites, known, serves, self.f.dtype):
            self.costs.append((variables, factor.cost(self.count)))
            condensed = factor.condensed()
            self.parts.extend(condensed.parts())
            products = factor.arranged(condensed.vjp(part[:, None]))
            for variable, product in zip(variables, products, strict=True):
                self.structured[self._place[id(variable)]] = product

    def needed(self) -> list[tf.Operation]:
        """All operations that the outputs are made of."""
        return list(ancestors([self.f]))

    def _wanted_of_trials(self) -> dict[str, tf.Tensor]:
        kinds = {"plain": self.plain, "sum": self.sums, "rule": self.structured}
        found = {"f": self.f, "unruled": self.unruled}
        for kind, values in kinds.items():
            found |= {f"{kind} {i}": t for i, t in values.items()}
        return found

    def has_users_rule(self, place: int) -> bool:
        """Whether the rule of a variable is the user's, which no test of ours has seen."""
        layers = [
            layer
            for layer in walk(self.network)
            if any(v is self.variables[place] for v in layer.trainable_variables)
        ]
        rules = [rule for layer in layers if (rule := rule_for(layer)) is not None]
        return not all(map(is_own, rules))

    def plan(self, why: dict[int, str]) -> Plan:
        """The plan in which the variables of `why` take the plain Jacobian."""
        if not self.alive:
            raise ValueError(
                "The outputs of `network` depend on none of its trainable variables. "
                f"Received: network={self.network.name!r}"
            )
        served = [i for i in self.alive if i not in why]
        rest = [i for i in self.alive if i in why]
        return Plan(
            structured=tuple(self.variables[i] for i in served),
            jacobian=tuple(self.variables[i] for i in rest),
            forward_mode=self.abilities.forward_mode,
            vectorizes=self.abilities.vectorizes,
            loops=self.abilities.loops,
            undifferentiable=tuple(self.lacking),
            outputs=self.count_outputs,
            shares=self._shares(served, why),
            footprint=self.footprint,
        )

    def _shares(self, served: list[int], why: dict[int, str]) -> tuple[PlannedShare, ...]:
        """What each group costs, in the order in which the network meets them."""
        ids = {id(self.variables[i]) for i in served}
        planned = [
            PlannedShare(tuple(kept), cost, "")
            for group, cost in self.costs
            if (kept := [v for v in group if id(v) in ids])
        ]
        for i in (i for i in self.alive if i in why):
            variable = self.variables[i]
            numbers = float(self.count * math.prod(variable.shape))
            # Every output of every row goes back through the whole batch.
            pair = self.count * self.footprint / tf.as_dtype(variable.dtype).size
            cost = Cost("jacobian", 0.0, 2.0 * numbers, numbers, pair)
            planned.append(PlannedShare((variable,), cost, why[i]))
        return tuple(planned)


class _Tried:
    """What trials say of a probe's rules."""

    def __init__(self, probe: _Probe, trial: Trial, tolerance: float):
        self._probe, self._trial, self._tolerance = probe, trial, tolerance
        self._answers: dict[int, list[bool | None]] = {i: [] for i in probe.alive}
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
        plain = {i: found[f"plain {i}"] for i in probe.alive}
        largest = max(map(size, plain.values()), default=0.0)
        self.mixed = max(self.mixed, largest if np.isfinite(largest) else 0.0)
        sums = [size(found[f"sum {i}"]) for i in probe.sums]
        self.summed = max([self.summed, *(s for s in sums if np.isfinite(s))])
        least = max(1e-3, self._of_rules) * largest
        for i in probe.structured:
            if i not in plain:
                continue
            rule = found[f"rule {i}"].reshape(plain[i].shape)
            self._answers[i].append(agree(plain[i], rule, self._of_rules, least))
        return True

    def reason(self, place: int) -> str:
        """Why a variable takes the plain Jacobian; nothing where it need not."""
        probe, answers = self._probe, self._answers[place]
        if place not in probe.ruled:
            return reasons.NO_RULE
        if place in probe.unproven:
            return probe.unproven[place]
        if place not in probe.structured or False in answers:
            return reasons.WRONG_RULE
        if True not in answers and probe.has_users_rule(place):
            return reasons.UNTRIED
        return ""


def _only_finite(x: Any, f: np.ndarray) -> Any:
    """Rows whose outputs are numbers, in place of those whose are not."""
    good = np.flatnonzero(np.all(np.isfinite(f), axis=1))
    if len(good) in (0, len(f)):
        return x
    places = np.resize(good, len(f))
    return _rows.take(x, places)


def _dense(gradients: list[Any]) -> dict[int, tf.Tensor]:
    """By number, those that there are; not as rows of a table."""
    return {i: tf.convert_to_tensor(g) for i, g in enumerate(gradients) if g is not None}


def _rows_over(gradient: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """Rows, each divided by its number."""
    gradient = tf.convert_to_tensor(gradient)
    shape = [-1] + [1] * (gradient.shape.rank - 1)
    return gradient / tf.cast(tf.reshape(part, shape), gradient.dtype)
