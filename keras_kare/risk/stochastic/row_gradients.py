"""Gradients of sums over rows, by the kernel's variables, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator


def summed_gradients(
    kernel: Kernel,
    operator: KernelOperator,
    step: int,
    target: Callable[[slice, Any], tf.Tensor],
    upstream: Callable[[slice, tf.Tensor], tf.Tensor] | None = None,
) -> list[tf.Tensor]:
    """Return the gradient of a sum over rows, one array a trainable variable.

    Args:
        kernel: The kernel.
        operator: Of the rows.
        step: How many rows go at a time.
        target: Takes a slice and its rows; returns what is differentiated.
        upstream: Takes a slice and its target; returns the gradient by the target.
            Defaults to ones.
    """
    variables = [v.value for v in kernel.trainable_variables]

    def parts() -> Iterator[list[tf.Tensor]]:
        for rows in operator.chunks(step):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                found = target(rows, operator.rows_of(rows))
            gradients = tape.gradient(
                found,
                variables,
                output_gradients=upstream and upstream(rows, found),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            yield [tf.convert_to_tensor(g) for g in gradients]

    return _rows.total(parts())


def bilinear_gradients(
    kernel: Kernel,
    operator: KernelOperator,
    left: np.ndarray,
    right: np.ndarray,
    trace: float,
) -> list[tf.Tensor]:
    """Return the gradient of `Σ_j l_jᵀ J(θ) w_j + trace · tr(K(θ))`, where `w_j = Jᵀ r_j`.

    Args:
        kernel: The kernel, with features.
        operator: Of the rows.
        left: `l`, `(n, m)`.
        right: `r`, `(n, m)`.
        trace: The factor of the trace.
    """
    wide = any(v.dtype == "float64" for v in kernel.trainable_variables)
    dtype = "float64" if wide else "float32"
    # Σ_i J_i r_i cancels to a small part of its terms: float64, and only then narrow.
    w = [tf.cast(part, dtype) for part in operator.vjp(right)]
    left = left.astype(dtype)

    def form(rows: slice, x: Any) -> tf.Tensor:
        found = tf.reduce_sum(kernel.jvp(x, w) * left[rows])
        return found + trace * tf.reduce_sum(kernel.diag(x)) if trace else found

    step, _ = kernel.chunk(operator.x, 2 * left.shape[1])
    return summed_gradients(kernel, operator, step, form)
