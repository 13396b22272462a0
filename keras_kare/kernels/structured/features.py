"""A network's per-example gradients, and the kernel products made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.factors import Factor, cross_of, gram_of, length
from keras_kare.kernels.structured.capture import Recorder, run
from keras_kare.kernels.structured.held import Group, Held, in_arrays
from keras_kare.kernels.structured.plan import Plan
from keras_kare.kernels.structured.traced import Passes, Share, Traced, warn_of_other_ways


class FeatureMap:
    """The Jacobian `J(x)` of a network, seen one group of variables at a time.

    Args:
        network: The network; it runs with `training=False`.
        plan: Which variables go which road.
        outputs: As in `keras_kare.kernels.NTK`.
        dtype: Type of the products.
    """

    def __init__(self, network: keras.Model, plan: Plan, outputs: str, dtype: tf.DType):
        self.network = network
        self.plan = plan
        self.outputs = outputs
        self.dtype = dtype
        # Per-example gradients are as exact as the network's passes are; only what
        # sums over them needs more.
        exact = any(v.dtype == "float64" for v in network.trainable_variables)
        self.inner = dtype if exact else tf.float32

    def gram(self, x: Any) -> tf.Tensor:
        """Return `J Jᵀ`, `(n, n)` or `(n, n, c, c)`."""
        return self.symmetric(self._fold((x,), self.gram_of))

    def cross(self, x1: Any, x2: Any) -> tf.Tensor:
        """Return `J(x1) J(x2)ᵀ`, `(n1, n2)` or `(n1, n2, c, c)`."""
        return self._fold((x1, x2), self.cross_of)

    def diag(self, x: Any) -> tf.Tensor:
        """Return the diagonal of `gram`, `(n,)` or `(n, c, c)`."""
        return self._fold((x,), self.diag_of)

    def network_outputs(self, x: Any) -> tf.Tensor:
        """Return the network's outputs, `(n, c)`."""
        return run(self.network, x)

    def gram_of(self, factors: Sequence[Factor]) -> tf.Tensor:
        """Return kernel values between all rows of these factors."""
        if self.outputs == "full":
            return tf.add_n([factor.blocks(factor) for factor in factors])
        return gram_of(factors)

    def cross_of(self, factors: Sequence[Factor], others: Sequence[Factor]) -> tf.Tensor:
        """Return kernel values between the rows of two lists of factors of like groups."""
        if self.outputs == "full":
            pairs = zip(factors, others, strict=True)
            return tf.add_n([factor.blocks(other) for factor, other in pairs])
        return cross_of(factors, others)

    def diag_of(self, factors: Sequence[Factor]) -> tf.Tensor:
        """Return kernel values of all rows of these factors with themselves."""
        full = self.outputs == "full"
        return tf.add_n([f.diag_blocks() if full else f.diag() for f in factors])

    def held(self, x: Any) -> Held:
        """Return all that kernel values and products with vectors need of rows.

        Never of a wider type than the network's passes have.
        """
        places = {id(v): i for i, v in enumerate(self.plan.variables)}
        groups = tuple(
            Group(tuple(places[id(v)] for v in variables), f.condensed(), f.arranged)
            for variables, f in self.shares(x)
        )
        return Held(groups, [group.factor.parts() for group in groups])

    def traced_held(self, x: Any) -> Held:
        """Trace `held(x)` of any number of rows without computing it, for its shapes."""
        rows = keras.tree.map_structure(
            lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), x
        )
        arrays, traced = in_arrays(self.held)
        tf.function(arrays, autograph=False).get_concrete_function(rows)
        return traced[0]

    def gram_of_held(self, held: Held) -> tf.Tensor:
        """Return kernel values between all rows of what `held` returned."""
        return self.symmetric(self.gram_of(self._factors_of(held)))

    def cross_of_held(self, held: Held, others: Held) -> tf.Tensor:
        """Return kernel values between the rows of two results of `held`."""
        return self.cross_of(self._factors_of(held), self._factors_of(others))

    def diag_of_held(self, held: Held) -> tf.Tensor:
        """Return kernel values of all rows of what `held` returned with themselves."""
        return self.diag_of(self._factors_of(held))

    def _factors_of(self, held: Held) -> list[Factor]:
        return [group.factor.cast(self.dtype) for group in held.groups]

    def vjp_of_held(self, held: Held, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `Jᵀ v` of what `held` returned, as `vjp` does."""
        v = tf.cast(v, self.dtype)
        return self._in_places((g.places, g.arrange(g.factor.vjp(v))) for g in held.groups)

    def symmetric(self, gram: tf.Tensor) -> tf.Tensor:
        """Make a matrix symmetric to the last bit."""
        order = (1, 0, 3, 2) if self.outputs == "full" else (1, 0)
        return 0.5 * (gram + tf.transpose(gram, order))

    def vjp(self, x: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `Jᵀ v` for `v`, `(n, m)`: `(m, C) + shape` a variable."""
        places = {id(v): i for i, v in enumerate(self.plan.variables)}
        v = tf.cast(v, self.dtype)
        return self._in_places(
            (tuple(places[id(u)] for u in variables), factor.vjp(v))
            for variables, factor in self.shares(x)
        )

    def _in_places(
        self, products: Iterable[tuple[tuple[int, ...], list[tf.Tensor]]]
    ) -> list[tf.Tensor]:
        """Return an array a variable, zeros where there is none."""
        variables = self.plan.variables
        found: dict[int, tf.Tensor] = {}
        size: tuple[Any, ...] = ()
        for places, parts in products:
            for place, part in zip(places, parts, strict=True):
                size = length(part), length(part, 1)
                found[place] = tf.reshape(part, (*size, *variables[place].shape))
        return [
            found[place]
            if place in found
            else tf.zeros((*size, *variable.shape), self.dtype)
            for place, variable in enumerate(variables)
        ]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w`, `(n, m)`, for weights as `vjp` returns them.

        One direction is one forward-mode derivative of the network. Many directions
        at once are one forward pass, one backward pass, and a bilinear form a layer.
        """
        # Forward mode computes in the network's type, and so no wider than that. Where
        # TensorFlow has none (loops), bilinear forms are cheaper than two backward passes.
        one = w[0].shape[0] == 1 and w[0].shape[1] == 1 and self.dtype == self.inner
        if one and (self.plan.forward_mode or self.plan.jacobian):
            return self._one_direction(x, w)
        by_variable = {
            id(variable): tf.cast(part, self.dtype)
            for variable, part in zip(self.plan.variables, w, strict=True)
        }
        parts = [
            factor.jvp([by_variable[id(v)] for v in variables])
            for variables, factor in self.shares(x)
        ]
        return tf.add_n(parts)

    def pull(self, held: Held, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `Jᵀ v` of what `held` returned; its arrays have an order of their own."""
        return [part for group in held.groups for part in group.factor.vjp(v)]

    def push(self, held: Held, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `J w`, `(n, m)`, for weights as `pull` returns them, in their type."""
        rest, parts = list(w), []
        for group in held.groups:
            arrays = group.factor.arrays
            parts.append(group.factor.jvp(rest[:arrays]))
            del rest[:arrays]
        return tf.add_n(parts)

    def feature_rows(self, x: Any) -> tf.Tensor:
        """Write out `J`, `(n, C P)`: for each variable, all its outputs."""
        found: dict[int, tf.Tensor] = {}
        count = len(self.cotangents(self.plan.outputs))
        for variables, factor in self.shares(x):
            for variable, part in zip(variables, factor.written(self.dtype), strict=True):
                size = count * math.prod(variable.shape)
                found[id(variable)] = tf.reshape(part, (-1, size))
        rows = length(next(iter(found.values())))
        return tf.concat(
            [
                found[id(v)]
                if id(v) in found
                else tf.zeros((rows, count * math.prod(v.shape)), self.dtype)
                for v in self.plan.variables
            ],
            axis=1,
        )

    def shares(self, x: Any) -> Iterator[Share]:
        """Yield all shares: those of the rules first, then those of the plain Jacobian."""
        (traced,) = self._traced((x,))
        yield from traced.structured
        for variable in traced.by_jacobian:
            yield [variable], traced.jacobian(variable)

    def cotangents(self, count: int) -> np.ndarray:
        """Return the linear maps of the `c` outputs that features are of, `(C, c)`."""
        if self.outputs == "sum":
            return np.ones((1, count))
        scale = math.sqrt(count) if self.outputs == "trace" else 1.0
        return np.eye(count) / scale

    def _fold(
        self, inputs: tuple[Any, ...], product: Callable[..., tf.Tensor]
    ) -> tf.Tensor:
        """Sum a product of factors over all shares.

        The shares of the rules go together. Those of the plain Jacobian are large,
        and each is begun when all before it are done, so that never two are held.
        """
        traced = self._traced(inputs)
        total = None
        if traced[0].structured:
            total = product(
                *(
                    [factor.condensed().cast(self.dtype) for _, factor in t.structured]
                    for t in traced
                )
            )
        for variable in traced[0].by_jacobian:
            with tf.control_dependencies([] if total is None else [total]):
                part = product(*([t.jacobian(variable)] for t in traced))
            total = part if total is None else total + part
        return total

    def _traced(self, inputs: tuple[Any, ...]) -> list[Traced]:
        """Trace each of the inputs, so that each variable goes the same road in all."""
        refused: list[keras.Variable] = []
        plan, inner, dtype = self.plan, self.inner, self.dtype
        passes = Passes(self.network, plan, self.cotangents, inner, dtype)
        while True:
            known = len(refused)
            traced = [passes.over(x, refused) for x in inputs]
            if len(refused) == known or len(inputs) == 1:
                warn_of_other_ways(refused)
                return traced

    def _one_direction(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        variables = self.plan.variables
        primals = [v.value for v in variables]
        tangents = [
            tf.cast(tf.reshape(part, v.shape), v.dtype)
            for v, part in zip(variables, w, strict=True)
        ]
        mode = self._forward_mode if self.plan.forward_mode else self._double_reverse_mode
        slope = mode(x, primals, tangents)
        cotangents = tf.constant(self.cotangents(slope.shape[1]), slope.dtype)
        return tf.matmul(slope, cotangents, transpose_b=True)

    def _forward_mode(
        self, x: Any, primals: list[Any], tangents: list[tf.Tensor]
    ) -> tf.Tensor:
        # Through the rules, where no loop of Keras' is in the way.
        with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
            f = run(self.network, x, Recorder(None, self.plan.wanted))
        return accumulator.jvp(f, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def _double_reverse_mode(
        self, x: Any, primals: list[Any], tangents: list[tf.Tensor]
    ) -> tf.Tensor:
        """Return `J w` as the derivative of `uᵀ J w`, which is linear in `u`."""
        with tf.GradientTape() as outer:
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(primals)
                f = run(self.network, x)
            u = tf.zeros_like(f)
            outer.watch(u)
            products = inner.gradient(f, primals, output_gradients=u)
            pairs = zip(products, tangents, strict=True)
            total = tf.add_n([tf.reduce_sum(p * t) for p, t in pairs if p is not None])
        return outer.gradient(total, u)


def feature_map(
    network: keras.Model, plan: Plan, outputs: str, dtype: str | None
) -> FeatureMap:
    """Make the feature map of a plan, whose products are as wide as its variables."""
    used = {tf.as_dtype(v.dtype) for v in plan.structured + plan.jacobian}
    default = tf.float64 if tf.float64 in used else tf.float32
    return FeatureMap(network, plan, outputs, tf.as_dtype(dtype) if dtype else default)
