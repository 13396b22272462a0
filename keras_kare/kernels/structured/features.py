"""A network's per-example gradients, and the kernel products made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor
from keras_kare.kernels.jacobian import jacobian_factor, outputs_of
from keras_kare.kernels.structured.capture import Call, Recorder, recording


@dataclass(frozen=True, eq=False)
class Plan:
    """Which variables go which road.

    Attributes:
        structured: Variables whose share comes from their layer's rule.
        jacobian: Variables whose share comes from the plain Jacobian.
        refused: The part of `jacobian` that a rule was expected to serve.
        forward_mode: Whether TensorFlow can differentiate the network forwards, which
            it cannot through loops.
        outputs: Number of outputs of the network.
    """

    structured: tuple[keras.Variable, ...]
    jacobian: tuple[keras.Variable, ...]
    refused: tuple[keras.Variable, ...] = ()
    forward_mode: bool = True
    outputs: int = 1
    _ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", frozenset(id(v) for v in self.structured))

    def wanted(self, layer: keras.layers.Layer) -> bool:
        """Whether the layer holds a structured variable."""
        return any(id(v) in self._ids for v in layer.trainable_variables)

    def serves(self, variable: keras.Variable) -> bool:
        """Whether the variable is a structured one."""
        return id(variable) in self._ids


Share = tuple[list[keras.Variable], Factor]


class FeatureMap:
    """`J(x)` of a network, seen one group of variables at a time.

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

    def gram(self, x: Any) -> tf.Tensor:
        """`J Jᵀ`, `(n, n)` or `(n, n, c, c)`."""
        full = self.outputs == "full"
        total = self._fold(x, lambda f: f.blocks(f) if full else f.gram())
        swapped = tf.transpose(total, (1, 0, 3, 2) if full else (1, 0))
        return 0.5 * (total + swapped)

    def cross(self, x1: Any, x2: Any) -> tf.Tensor:
        """`J(x1) J(x2)ᵀ`, `(n1, n2)` or `(n1, n2, c, c)`."""
        others = (factor for _, factor in self.shares(x2))
        if self.outputs == "full":
            return self._fold(x1, lambda f: f.blocks(next(others)))
        return self._fold(x1, lambda f: f.cross(next(others)))

    def diag(self, x: Any) -> tf.Tensor:
        """The diagonal of `gram`, `(n,)` or `(n, c, c)`."""
        if self.outputs == "full":
            return self._fold(x, lambda f: f.diag_blocks())
        return self._fold(x, lambda f: f.diag())

    def vjp(self, x: Any, v: tf.Tensor) -> list[tf.Tensor]:
        """`Jᵀ v` for `v` of shape `(n, m)`: `(m, C) + shape` a trainable variable."""
        v = tf.cast(v, self.dtype)
        found, size = {}, None
        for variables, factor in self.shares(x):
            for variable, part in zip(variables, factor.vjp(v), strict=True):
                size = tf.shape(part)[:2]
                shape = tf.concat([size, variable.shape], axis=0)
                found[id(variable)] = tf.reshape(part, shape)
        return [
            found[id(variable)]
            if id(variable) in found
            else tf.zeros(tf.concat([size, variable.shape], axis=0), self.dtype)
            for variable in self.network.trainable_variables
        ]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """`J w` for weights as `vjp` returns them, `(n, m)`.

        One direction is one forward-mode derivative of the network. Many directions
        at once are one forward pass, one backward pass, and a bilinear form a layer.
        """
        if w[0].shape[0] == 1 and w[0].shape[1] == 1:
            return self._one_direction(x, w)
        by_variable = {
            id(variable): tf.cast(part, self.dtype)
            for variable, part in zip(self.network.trainable_variables, w, strict=True)
        }
        parts = [
            factor.jvp([_matrix(by_variable[id(v)], factor) for v in variables])
            for variables, factor in self.shares(x)
        ]
        return tf.add_n(parts)

    def shares(self, x: Any) -> Iterator[Share]:
        """Yield `(variables, factor)` one group at a time.

        Plain Jacobians are computed when asked for, so that a caller that folds the
        shares one after the other never holds two of them.
        """
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in self.plan.jacobian])
            with recording(Recorder(tape, self.plan.wanted)) as recorder:
                f = outputs_of(self.network, x)
            cotangents = tf.constant(self._cotangents(f.shape[1]), f.dtype)
            targets = tf.matmul(f, cotangents, transpose_b=True)
            total = tf.reduce_sum(targets, axis=0)
        calls = recorder.calls
        gradients = _output_gradients(tape, total, [call.h for call in calls])
        yield from shares(calls, gradients, tf.shape(f)[0], self.plan, self.dtype)
        for variable in self.plan.jacobian:
            yield [variable], jacobian_factor(tape, targets, variable, self.dtype)

    def _fold(self, x: Any, product: Callable[[Factor], tf.Tensor]) -> tf.Tensor:
        """Sum a product over all shares, each begun when the last is done."""
        shares, total = self.shares(x), None
        serial = bool(self.plan.jacobian)
        while True:
            after: list[tf.Tensor] = [total] if serial and total is not None else []
            with tf.control_dependencies(after):
                share = next(shares, None)
                if share is None:
                    return total
                part = product(share[1])
            total = part if total is None else total + part

    def _one_direction(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        variables = self.network.trainable_variables
        primals = [v.value for v in variables]
        tangents = [
            tf.cast(tf.reshape(part, v.shape), v.dtype)
            for v, part in zip(variables, w, strict=True)
        ]
        mode = self._forward_mode if self.plan.forward_mode else self._double_reverse_mode
        slope = mode(x, primals, tangents)
        cotangents = tf.constant(self._cotangents(slope.shape[1]), slope.dtype)
        return tf.matmul(slope, cotangents, transpose_b=True)

    def _forward_mode(
        self, x: Any, primals: list[Any], tangents: list[tf.Tensor]
    ) -> tf.Tensor:
        with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
            f = outputs_of(self.network, x)
        return accumulator.jvp(f, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def _double_reverse_mode(
        self, x: Any, primals: list[Any], tangents: list[tf.Tensor]
    ) -> tf.Tensor:
        """`J w` as the derivative of `uᵀ J w`, which is linear in `u`."""
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                f = outputs_of(self.network, x)
            u = tf.zeros_like(f)
            outer.watch(u)
            products = inner.gradient(f, primals, output_gradients=u)
            pairs = zip(products, tangents, strict=True)
            total = tf.add_n([tf.reduce_sum(p * t) for p, t in pairs if p is not None])
        return outer.gradient(total, u)

    def _cotangents(self, count: int) -> np.ndarray:
        """`(C, c)`: the linear maps of the `c` outputs whose gradients are features."""
        if self.outputs == "sum":
            return np.ones((1, count))
        scale = math.sqrt(count) if self.outputs == "trace" else 1.0
        return np.eye(count) / scale


def shares(
    calls: list[Call],
    gradients: list[tf.Tensor],
    rows: tf.Tensor,
    plan: Plan,
    dtype: tf.DType,
) -> Iterator[Share]:
    """One share a layer: all its calls, and all positions of each, side by side."""
    by_layer: dict[int, list[int]] = {}
    for index, call in enumerate(calls):
        by_layer.setdefault(id(call.layer), []).append(index)
    for indices in by_layer.values():
        layer, rule = calls[indices[0]].layer, calls[indices[0]].rule
        variables = [v for v in rule.variables(layer) if plan.serves(v)]
        inputs = [_positions(calls[i].inputs, rows, 1, dtype) for i in indices]
        upstream = [_positions(gradients[i], rows, 2, dtype) for i in indices]
        a = inputs[0] if len(inputs) == 1 else tf.concat(inputs, axis=1)
        b = upstream[0] if len(upstream) == 1 else tf.concat(upstream, axis=2)
        yield variables, rule.factor(layer, variables, a, b)


def _positions(x: tf.Tensor, rows: tf.Tensor, axis: int, dtype: tf.DType) -> tf.Tensor:
    """`(n, ..., d)` to `(n, T, d)`; `axis` is the first after the rows."""
    static = x.shape[axis:-1]
    count = static.num_elements() if static.is_fully_defined() else -1
    leading = [x.shape[0]] if axis == 2 else []
    return tf.cast(tf.reshape(x, [*leading, rows, count, x.shape[-1]]), dtype)


def _output_gradients(
    tape: tf.GradientTape, total: tf.Tensor, sources: list[tf.Tensor]
) -> list[tf.Tensor]:
    """Gradients of each of the `C` totals with respect to each source, `(C, n, ...)`.

    Rows do not interact, so the gradient of a sum over rows holds each row's own.
    """
    if not sources:
        return []
    if total.shape[0] == 1:
        gradients = tape.gradient(
            total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return [g[None] for g in gradients]
    return list(
        tape.jacobian(total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    )


def _matrix(w: tf.Tensor, factor: Factor) -> tf.Tensor:
    """Weights of one variable, `(m, C) + shape`, as its factor lays them out."""
    if isinstance(factor, FullFactor):
        return tf.reshape(w, tf.concat([tf.shape(w)[:2], [-1]], axis=0))
    return w
