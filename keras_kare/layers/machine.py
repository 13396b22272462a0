"""From a kernel and rows to the arrays of a kernel machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.structured.capture import run
from keras_kare.kernels.structured.untouched import untouched
from keras_kare.solvers import Prepared, Solution, System

CHUNK = 4096
"""Rows at a time in sums over rows."""

MANY = 8192
"""Anchors above which kernel values with them are not kept."""


def system_of(
    kernel: Kernel,
    x: Any,
    y: np.ndarray,
    residual: bool = False,
    weights: np.ndarray | None = None,
    intercept: bool = False,
) -> System:
    """That of the rows `x`; with `residual`, for what the network leaves of `y`.

    Raises:
        ValueError: If `residual` does not fit.
    """
    targets = machine_targets(kernel, x, y, residual)
    return System(kernel.operator(x), targets, weights, intercept)


def machine_targets(kernel: Kernel, x: Any, y: np.ndarray, residual: bool) -> np.ndarray:
    """What the kernel machine fits: `y`, or what the network leaves of it."""
    y = np.asarray(y, "float64")
    if not residual:
        return y
    f = np.asarray(network_outputs(kernel, x), "float64")
    if f.shape != y.shape:
        raise ValueError(
            "`residual=True` needs as many targets as the network has outputs. "
            f"Received: targets of shape {y.shape}, outputs of shape {f.shape}"
        )
    return y - f


def network_outputs(kernel: Kernel, x: Any) -> tf.Tensor:
    """The outputs of the network that the kernel belongs to, `(n, c)`."""
    network = getattr(kernel, "network", None)
    if network is None:
        raise ValueError(
            "`residual=True` corrects a network, and this kernel has none. Received: "
            f"kernel of type {type(kernel).__name__}"
        )
    with untouched(network):
        return run(network, x)


def chunks(x: Any) -> Iterator[Any]:
    """A few rows at a time, in order."""
    return _rows.slices(x, CHUNK)


def primal_weights(kernel: Kernel, x: Any, dual: np.ndarray) -> list[tf.Tensor]:
    """`w = (1/n) J(X)ᵀ α`, summed in float64 over chunks of rows."""
    return as_stored(kernel, kernel.operator(x).vjp(dual / len(dual)))


def as_stored(kernel: Kernel, weights: list[tf.Tensor]) -> list[tf.Tensor]:
    """Weights of the primal form, in the types of the kernel's variables if they fit.

    They fit where the largest of each target is far from both ends of a type: products
    with them then neither overflow nor vanish. Elsewhere all stay in float64, and so do
    their products.

    Raises:
        ValueError: If they are not finite.
    """
    largest = np.max([_largest(w) for w in weights], axis=0)
    if not np.all(np.isfinite(largest)):
        raise ValueError(
            "The weights of the primal form are not finite: targets, or the network's "
            "derivatives, are too large or too small for float64. Scale them to about one."
        )
    variables = kernel.trainable_variables
    if not all(_fit(largest, v.dtype) for v in variables):
        return [tf.cast(w, tf.float64) for w in weights]
    return [tf.cast(w, v.dtype) for w, v in zip(weights, variables, strict=True)]


def _largest(weights: tf.Tensor) -> np.ndarray:
    """Of each target, `(c,)`; NaN where one of its weights is."""
    flat = np.abs(np.reshape(weights, (len(weights), -1)))
    return np.asarray(np.max(flat, axis=1, initial=0.0))


def _fit(largest: np.ndarray, dtype: Any) -> bool:
    limits = _validation.limits(dtype)
    low, high = np.sqrt(float(limits.tiny)), np.sqrt(float(limits.max))
    return bool(np.all((largest == 0.0) | ((low <= largest) & (largest <= high))))


class Predictor:
    """What solutions predict for other rows, without a head.

    Args:
        kernel: The kernel.
        prepared: What the solutions are of.
        x: The rows to predict, `(v, ...)`.
    """

    def __init__(self, kernel: Kernel, prepared: Prepared, x: Any):
        self._kernel, self._prepared, self._x = kernel, prepared, x
        self._cross: np.ndarray | None = None

    def __call__(self, solution: Solution) -> np.ndarray:
        """`ŷ`, `(v, c)`."""
        values = self._without_constant(solution)
        return values if solution.constant is None else values + solution.constant

    def _without_constant(self, solution: Solution) -> np.ndarray:
        kernel, prepared = self._kernel, self._prepared
        if solution.weights is not None:
            w = kernel.weights_from(prepared.predictor_weights(solution), self._x)
            return np.asarray(kernel.jvp(self._x, w))
        dual, anchors = prepared.predictor(solution), prepared.anchors_of(solution)
        if len(dual) > MANY and kernel.has_features:
            w = kernel.operator(anchors).vjp(dual / len(dual))
            return np.asarray(kernel.jvp(self._x, w))
        if self._cross is None:  # the anchors are the same for all solutions
            self._cross = kernel.cross(self._x, anchors, dtype="float64").numpy()
        return self._cross @ dual / len(dual)
