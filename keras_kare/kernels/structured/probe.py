"""One trace of a network, with everything that a plan is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import memory
from keras_kare.kernels.factors import Cost
from keras_kare.kernels.graphs import ancestors
from keras_kare.kernels.structured import reasons, refusals
from keras_kare.kernels.structured.abilities import Abilities
from keras_kare.kernels.structured.capture import Recorder, Site, Unruled, run
from keras_kare.kernels.structured.chosen import Places, variables_of
from keras_kare.kernels.structured.differentiability import depends, undifferentiable
from keras_kare.kernels.structured.plan import holds
from keras_kare.kernels.structured.roads import Roads
from keras_kare.kernels.structured.synthetic import ROWS
from keras_kare.kernels.structured.traced import shares, split_between

Numbered = dict[int, tf.Tensor]
"""Tensors by the number of their variable among those that train."""


class Forward(NamedTuple):
    """The forward passes of a network.

    Attributes:
        unruled: Outputs `(n, c)` without rules.
        has_functions: Whether the network called a `tf.function` of its author's.
        f: Outputs with rules in place of their layers' `call`.
        roads: All that was traced for these.
        tape: Has seen it.
        sites: What rules watched.
        mixed: The sum of `f` with random weights.
        summed: The sum of `f`, where that is asked for and another thing.
    """

    unruled: tf.Tensor
    has_functions: bool
    f: tf.Tensor
    roads: Roads
    tape: tf.GradientTape
    sites: list[Site]
    mixed: tf.Tensor
    summed: tf.Tensor | None


@dataclass(frozen=True)
class Rules:
    """The products of layer rules in a trace.

    Attributes:
        watched: Numbers of the variables for which a rule watched something.
        unproven: Why a variable is not a rule's although watched, by its number.
        products: `Jᵀ v` by the rules, of the variables that are proven to be theirs.
        costs: What each group of variables costs.
        parts: The arrays of all factors.
    """

    watched: frozenset[int]
    unproven: dict[int, str]
    products: Numbered
    costs: list[tuple[list[keras.Variable], Cost]]
    parts: list[tf.Tensor]


@dataclass(frozen=True)
class Probe:
    """One trace: outputs, plain gradients, structured gradients, and the proof.

    Attributes:
        network: The network.
        trained: Its trainable variables.
        variables: Those of them that the kernel's features are derivatives by.
        forward: Its outputs.
        plain: Plain gradients of `forward.mixed`, of the variables that have any.
        sums: Those of `forward.summed`.
        rules: What the rules make of it.
        abilities: What TensorFlow can do with it.
        lacking: Operations through which kernel values cannot be differentiated.
        constant: Whether no variable that trains is on a road to kernel values, so that
            their derivative is zero.
        count: Number of outputs `C` whose gradients are features.
        footprint: Bytes a row that the forward and the backward pass hold.
    """

    network: keras.Model
    trained: list[keras.Variable]
    variables: list[keras.Variable]
    forward: Forward
    plain: Numbered
    sums: Numbered
    rules: Rules
    abilities: Abilities
    lacking: tuple[str, ...]
    constant: bool
    count: int
    footprint: float

    @property
    def count_outputs(self) -> int:
        """The number of outputs `c` of the network."""
        count: int = self.forward.f.shape[1]
        return count

    def needed(self) -> list[tf.Operation]:
        """Return all operations that the outputs are made of."""
        return list(ancestors([self.forward.f]))

    def results(self) -> dict[str, tf.Tensor]:
        """Return what trials compute."""
        kinds = {"plain": self.plain, "sum": self.sums, "rule": self.rules.products}
        found = {"f": self.forward.f, "unruled": self.forward.unruled}
        for kind, values in kinds.items():
            found |= {f"{kind} {i}": t for i, t in values.items()}
        return found


def traced_probe(
    network: keras.Model,
    specs: Any,
    plain_only: bool,
    outputs: str,
    places: Places | None,
) -> tuple[Probe, Any]:
    """Return a probe of such inputs, and its function of them and of one number a row."""
    trained = list(network.trainable_variables)
    if not trained:
        raise ValueError(
            "`network` has no trainable variable, so its NTK is zero. Set "
            "`trainable = True` on the layers that belong to the kernel. "
            f"Received: network={network.name!r}"
        )
    variables = variables_of(network, places)
    kinds = {v.dtype for v in trained}
    weights = tf.TensorSpec([ROWS], "float64" if "float64" in kinds else "float32")
    found: list[Probe] = []

    def trace(x: Any, v: tf.Tensor) -> dict[str, tf.Tensor]:
        found[:] = [_probe(network, trained, variables, plain_only, outputs, x, v)]
        return found[0].results()

    function = tf.function(trace, autograph=False).get_concrete_function(specs, weights)
    return found[0], function


def _probe(
    network: keras.Model,
    trained: list[keras.Variable],
    variables: list[keras.Variable],
    plain_only: bool,
    outputs: str,
    x: Any,
    v: tf.Tensor,
) -> Probe:
    graph = tf.compat.v1.get_default_graph()
    # Forwards: as the layers are, and with rules in their place.
    forward = _forwards(network, variables, plain_only, outputs, x, v)
    f, sites, roads = forward.f, forward.sites, forward.roads
    turn = len(graph.get_operations())
    operations, handles = roads.operations(), roads.sources()
    refusals.refuse_without_gradient(network, graph.get_operations(), handles, f)
    # Backwards: by the variables, and by what the rules watched.
    sources, watched = [u.value for u in variables], [site.h for site in sites]
    found = forward.tape.gradient(forward.mixed, [*sources, *watched])
    plain, by_site = _dense(found[: len(sources)]), found[len(sources) :]
    backwards = graph.get_operations()[turn:]
    abilities = Abilities.of(graph.as_graph_def(), operations, backwards)
    summed = forward.summed
    sums = {} if summed is None else _dense(forward.tape.gradient(summed, sources))
    # Once more: what kernel values could not be differentiated through.
    passes = [t for t in (f, *watched, *by_site, *plain.values()) if t is not None]
    moving = Roads(trained, x).sources()
    lacking = undifferentiable(graph.get_operations(), moving, passes)
    constant = not depends(graph.get_operations(), moving, plain.values())
    # The proof, and what the rules make of what is proven.
    place = {id(u): i for i, u in enumerate(variables)}
    unproven = _unproven(roads, place, sites, f, by_site)
    count = 1 if outputs == "sum" else f.shape[1]
    rules = _rules(place, sites, by_site, unproven, f.dtype, count)
    # The memory of both passes, with all that is left at their end.
    ends = rules.parts + [g for i, g in plain.items() if i not in rules.products]
    inputs = keras.tree.flatten(x)
    footprint = memory.footprint(graph.get_operations(), inputs, ends, turn, count, ROWS)
    return Probe(
        network=network,
        trained=trained,
        variables=variables,
        forward=forward,
        plain=plain,
        sums=sums,
        rules=rules,
        abilities=abilities,
        lacking=tuple(lacking),
        constant=constant,
        count=count,
        footprint=footprint,
    )


def _forwards(
    network: keras.Model,
    variables: list[keras.Variable],
    plain_only: bool,
    outputs: str,
    x: Any,
    v: tf.Tensor,
) -> Forward:
    """Run without rules and with them, each row's outputs times its number in `v`."""
    calls, ids = Unruled(), {id(u) for u in variables}
    unruled = run(network, x, calls)
    roads = Roads(variables, x)
    # A persistent tape has TensorFlow prepare loops for more derivatives than these.
    summed_too = outputs == "sum" and unruled.shape[1] > 1
    with tf.GradientTape(summed_too, watch_accessed_variables=False) as tape:
        tape.watch([u.value for u in variables])
        recorder = Recorder(tape, lambda layer: not plain_only and holds(layer, ids))
        f = run(network, x, recorder)
        mix = tf.constant(np.random.default_rng(3).normal(size=(1, f.shape[1])))
        each = tf.cast(v, f.dtype)[:, None]
        mixed = tf.reduce_sum(f * tf.cast(mix, f.dtype) * each)
        summed = tf.reduce_sum(f * each) if summed_too else None
    sites = recorder.sites
    return Forward(unruled, calls.functions, f, roads, tape, sites, mixed, summed)


def _unproven(
    roads: Roads,
    place: dict[int, int],
    sites: Sequence[Site],
    f: tf.Tensor,
    by_site: Sequence[tf.Tensor | None],
) -> dict[int, str]:
    """Say why variables that were watched are not their rules', by their numbers."""
    unproven, misplaced = roads.unproven(sites, f, by_site)
    return {
        place[key]: reasons.NO_ROWS if key in misplaced else reasons.OTHER_ROAD
        for key in unproven | split_between(sites, place)
    }


def _rules(
    place: dict[int, int],
    sites: Sequence[Site],
    by_site: Sequence[tf.Tensor | None],
    unproven: dict[int, str],
    dtype: tf.DType,
    count: int,
) -> Rules:
    """Compute `Jᵀ v` by the rules, of the variables that are proven to be theirs."""
    # The gradients are those of `v` times the rows' outputs. A part of that is left to
    # the products, which are tried with it.
    part = tf.constant(np.random.default_rng(5).uniform(0.5, 2.0, ROWS), dtype)
    known: dict[int, tf.Tensor] = {}
    for site, gradient in zip(sites, by_site, strict=True):
        if gradient is not None and gradient.shape[:1] == [ROWS]:
            known[id(site.h)] = tf.expand_dims(_rows_over(gradient, part), axis=1)

    def serves(key: int) -> bool:
        return key in place and place[key] not in unproven

    seen = [site for site in sites if id(site.h) in known]
    products: Numbered = {}
    costs, parts = [], []
    for variables, factor in shares(seen, known, serves, dtype):
        costs.append((variables, factor.cost(count)))
        condensed = factor.condensed()
        parts.extend(condensed.parts())
        arrays = factor.arranged(condensed.vjp(part[:, None]))
        _refuse_other_shapes(variables, arrays)
        pairs = zip(variables, arrays, strict=True)
        products |= {place[id(variable)]: array for variable, array in pairs}
    all_watched = (id(u) for site in sites for u in site.variables)
    watched = frozenset(place[key] for key in all_watched if key in place)
    return Rules(watched, unproven, products, costs, parts)


def _refuse_other_shapes(
    variables: Sequence[keras.Variable], arrays: Sequence[tf.Tensor]
) -> None:
    """Refuse factors whose arrays are not those of the variables they were asked for."""
    wanted = [math.prod(variable.shape) for variable in variables]
    found = [array.shape[2:].num_elements() for array in arrays]
    known = [w if f is None else f for f, w in zip(found, wanted, strict=False)]
    if len(found) != len(wanted) or known != wanted:
        raise ValueError(
            "A layer rule makes gradients that are not those of its variables "
            f"{[variable.path for variable in variables]}, of {wanted} numbers. (A "
            "`FullFactor` is for one variable: watch once for each.) Received: "
            f"gradients of {found} numbers"
        )


def _dense(gradients: list[Any]) -> dict[int, tf.Tensor]:
    """Return those gradients that there are, by number; not as rows of a table."""
    return {i: tf.convert_to_tensor(g) for i, g in enumerate(gradients) if g is not None}


def _rows_over(gradient: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """Divide each row by its number."""
    gradient = tf.convert_to_tensor(gradient)
    shape = [-1] + [1] * (gradient.shape.rank - 1)
    return gradient / tf.cast(tf.reshape(part, shape), gradient.dtype)
