"""A network's passes over some rows, traced, and the per-example gradients they give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.factors import Factor
from keras_kare.kernels.jacobian import Targets, jacobian_factor, jacobians
from keras_kare.kernels.structured.capture import Recorder, Site, run
from keras_kare.kernels.structured.plan import Plan, holds
from keras_kare.kernels.structured.refusals import second_derivative
from keras_kare.kernels.structured.roads import Roads

Share = tuple[list[keras.Variable], Factor]


@dataclass(frozen=True)
class Traced:
    """One forward pass of the network on some rows, and what comes back from it.

    Attributes:
        structured: Shares of the rules.
        by_jacobian: Variables that take the plain Jacobian.
        jacobian: Writes out the gradients of such a variable.
        unproven: Variables that turned out to have other roads than their rules.
    """

    structured: list[Share]
    by_jacobian: list[keras.Variable]
    jacobian: Callable[[keras.Variable], Factor]
    unproven: list[keras.Variable]


@dataclass(frozen=True)
class Passes:
    """The way to trace passes over rows.

    That each variable of a rule reaches the outputs by that rule alone is proven of the
    very graph. Where it is not, as where the network goes other ways for these shapes
    than when it was planned, the variable takes the plain Jacobian.

    Attributes:
        network: The network.
        plan: Which variables go which road.
        cotangents: Of a number of outputs, the maps whose gradients are features.
        inner: Type of the gradients of rules.
        dtype: Type of those of the plain Jacobian.
    """

    network: keras.Model
    plan: Plan
    cotangents: Callable[[int], np.ndarray]
    inner: tf.DType
    dtype: tf.DType

    def over(self, x: Any, refused: list[keras.Variable]) -> Traced:
        """Trace for `x`; add to `refused` the variables whose rules do not hold here."""
        while (found := self._trace(x, refused)).unproven:
            refused.extend(found.unproven)
        return found

    def _trace(self, x: Any, refused: list[keras.Variable]) -> Traced:
        plan = self.plan
        served = [v for v in plan.structured if all(v is not r for r in refused)]
        ids = {id(v) for v in served}
        roads = Roads(served, x)
        plain = [*plan.jacobian, *refused]
        # A persistent tape has TensorFlow prepare loops for more derivatives than one.
        persistent = bool(plain) or len(self.cotangents(plan.outputs)) > 1
        tape = tf.GradientTape(persistent, watch_accessed_variables=False)
        with tape:
            tape.watch([v.value for v in plain])
            recorder = Recorder(tape, lambda layer: holds(layer, ids))
            f = run(self.network, x, recorder)
            cotangents = tf.constant(self.cotangents(f.shape[1]), f.dtype)
            targets = Targets(tf.matmul(f, cotangents, transpose_b=True), plain)
            by = [site.h for site in recorder.sites]
            total = Targets(tf.reduce_sum(targets.values, axis=0), by)
        together = plan.vectorizes and not plan.loops
        found = output_gradients(tape, total, recorder.sites, together)
        gradients = [found.get(id(site.h)) for site in recorder.sites]
        unproven, _ = roads.unproven(recorder.sites, f, gradients)
        unproven |= split_between(recorder.sites, ids)
        sites = [site for site in recorder.sites if id(site.h) in found]
        structured = [
            (variables, self._guarded(factor))
            for variables, factor in shares(sites, found, ids.__contains__, self.inner)
        ]

        def jacobian(variable: keras.Variable) -> Factor:
            return self._guarded(
                jacobian_factor(tape, targets, variable, self.dtype, plan.vectorizes)
            )

        return Traced(structured, plain, jacobian, [v for v in served if id(v) in unproven])

    def _guarded(self, factor: Factor) -> Factor:
        """Have a factor refuse a derivative which would be wrong in silence."""
        lacking = self.plan.undifferentiable
        if not lacking:
            return factor

        @tf.custom_gradient
        def guarded(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
            def gradient(upstream: tf.Tensor) -> Any:
                second_derivative(lacking)

            return tf.identity(values), gradient

        parts = [guarded(t) if t.dtype.is_floating else t for t in factor.parts()]
        return factor.with_parts(parts)


def split_between(sites: Sequence[Site], ids: Collection[int]) -> set[int]:
    """Return variables that were watched in several groups, whose shares cannot be joined.

    Two layers may have the same kernel, and each a bias of its own.
    """
    groups: dict[int, tuple[int, ...]] = {}
    split = set()
    for site in sites:
        group = tuple(id(v) for v in site.variables if id(v) in ids)
        split |= {key for key in group if groups.setdefault(key, group) != group}
    return split


def warn_of_other_ways(refused: list[keras.Variable]) -> None:
    """Announce what goes by the plain Jacobian although a rule was planned for it."""
    if refused:
        names = ", ".join(v.path for v in refused)
        warnings.warn(
            "For inputs of these shapes the network goes other ways than when its kernel "
            "was planned, so that the NTK takes the plain Jacobian, exact but slow, for "
            f"these variables: {names}.",
            stacklevel=2,
        )


def shares(
    sites: Sequence[Site],
    gradients: dict[int, tf.Tensor],
    serves: Callable[[int], bool],
    dtype: tf.DType,
) -> Iterator[Share]:
    """Yield one share a group of variables: all that was watched for it, side by side.

    Args:
        sites: What was watched.
        gradients: `(n, C, ...)` by the identity of each `h`.
        serves: Whether the variable of an identity is asked for.
        dtype: Type of the factors.
    """
    groups: dict[tuple[int, ...], tuple[list[keras.Variable], list[Factor]]] = {}
    for site in sites:
        variables = [v for v in site.variables if serves(id(v))]
        if not variables:
            continue
        factor = site.factor(variables, tf.cast(gradients[id(site.h)], dtype))
        key = tuple(id(v) for v in variables)
        groups.setdefault(key, (variables, []))[1].append(factor)
    for variables, factors in groups.values():
        first, *others = factors
        yield variables, first.join(others) if others else first


def output_gradients(
    tape: tf.GradientTape, total: Targets, sites: list[Site], vectorize: bool
) -> dict[int, tf.Tensor]:
    """Return gradients of each of the `C` totals by each `h` watched, `(n, C, ...)`.

    Rows do not interact, so the gradient of a sum over rows holds each row's own. An `h`
    from which no gradient comes back is left out.
    """
    sources = list({id(site.h): site.h for site in sites}.values())
    if not sources:
        return {}
    if total.values.shape[0] == 1:
        gradients = tape.gradient(total.values, sources)
        gradients = [None if g is None else tf.expand_dims(g, axis=1) for g in gradients]
    else:
        found = jacobians(tape, total, sources, vectorize, none=True)
        for h, g in zip(sources, found, strict=True):
            if g is not None:
                g.set_shape([*total.values.shape, *h.shape])
        gradients = [
            None if g is None else tf.transpose(g, (1, 0, *range(2, g.shape.rank)))
            for g in found
        ]
    pairs = zip(sources, gradients, strict=True)
    return {id(h): tf.convert_to_tensor(g) for h, g in pairs if g is not None}
