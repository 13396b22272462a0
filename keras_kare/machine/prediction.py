"""What a kernel machine predicts, in its dual and in its primal form."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.structured.capture import run
from keras_kare.kernels.structured.untouched import untouched
from keras_kare.solvers import Prepared, Solution

MANY = 8192
"""Anchors above which kernel values with them are not kept."""


def output_dtype(kernel: Kernel) -> str:
    """Return the type of predictions: Keras' float type, or float64 as the kernel."""
    types = {kernel.compute_dtype, *(v.dtype for v in kernel.trainable_variables)}
    floatx: str = keras.config.floatx()
    return "float64" if "float64" in types else floatx


def from_cross(cross: tf.Tensor, dual: tf.Tensor) -> tf.Tensor:
    """Return `(1/n) K(x, X) α`, `(m, c)`: the dual form, without its constant."""
    return tf.matmul(cross, dual) / tf.cast(tf.shape(dual)[0], dual.dtype)


def network_outputs(kernel: Kernel, x: Any) -> tf.Tensor:
    """Return the outputs of the network that the kernel belongs to, `(n, c)`.

    Raises:
        ValueError: If there is none.
    """
    network = getattr(kernel, "network", None)
    if network is None:
        raise ValueError(
            "`residual=True` corrects a network, and this kernel has none. Received: "
            f"kernel of type {type(kernel).__name__}"
        )
    with untouched(network):
        return run(network, x)


def primal_weights(kernel: Kernel, x: Any, dual: np.ndarray) -> list[tf.Tensor]:
    """Return `w = (1/n) J(X)ᵀ α`, summed in float64 over chunks of rows."""
    return as_stored(kernel, kernel.operator(x).vjp(dual / len(dual)))


def as_stored(kernel: Kernel, weights: list[tf.Tensor]) -> list[tf.Tensor]:
    """Cast weights of the primal form to the types of the kernel's variables if they fit.

    They fit where the largest of each target is far from both ends of a type: products
    with them then neither overflow nor vanish. Elsewhere, and for kernels whose features
    are not derivatives by variables, all stay in float64, and so do their products.

    Raises:
        ValueError: If they are not finite.
    """
    largest = np.max([_largest(w) for w in weights], axis=0)
    if not np.all(np.isfinite(largest)):
        raise ValueError(
            "The weights of the primal form are not finite: targets, or the network's "
            "derivatives, are too large or too small for float64. Scale them to about one."
        )
    variables = kernel.feature_variables()
    of_variables = len(variables) == len(weights)  # else the features are of something else
    if not (of_variables and all(_fit(largest, v.dtype) for v in variables)):
        return [tf.cast(w, tf.float64) for w in weights]
    return [tf.cast(w, v.dtype) for w, v in zip(weights, variables, strict=True)]


def _largest(weights: tf.Tensor) -> np.ndarray:
    """Return the largest size of each target's weights, `(c,)`; NaN where one is."""
    flat = np.abs(np.reshape(weights, (len(weights), -1)))
    return np.asarray(np.max(flat, axis=1, initial=0.0))


def _fit(largest: np.ndarray, dtype: Any) -> bool:
    limits = _validation.limits(dtype)
    low, high = np.sqrt(float(limits.tiny)), np.sqrt(float(limits.max))
    return bool(np.all((largest == 0.0) | ((low <= largest) & (largest <= high))))


class Predictor:
    """Predictions of many solutions for the same other rows, without a head.

    Args:
        kernel: The kernel.
        prepared: What the solutions are of.
        x: The rows to predict, `(v, ...)`.
    """

    def __init__(self, kernel: Kernel, prepared: Prepared, x: Any):
        self._kernel, self._prepared, self._x = kernel, prepared, x
        self._cross: np.ndarray | None = None

    def __call__(self, solution: Solution) -> np.ndarray:
        """Return `ŷ`, `(v, c)`."""
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
