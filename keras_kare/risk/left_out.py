"""Predictions of rows that a machine was not solved on, and their gradients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kare._sentences import sentence
from keras_kare.risk.regression import (
    OVERFLOW,
    Regression,
    factorised,
    in_closed_form,
    mean_of,
    regress,
)

_OVERFLOW = sentence(f"Leave-one-out {OVERFLOW}")


def leave_one_out(
    y: Any, gram: Any, ridge: Any, sample_weight: Any = None, intercept: bool = False
) -> tf.Tensor:
    """Predict each row by the kernel machine fitted without that row.

    The ridge `n z` of the system `K + n z I` is held fixed when a row is left out.
    The residual of row `i` is `a_i / (A⁻¹)_ii`.

    Args:
        y: Targets, `(n,)` or `(n, c)`.
        gram: Symmetric positive semi-definite matrix, `(n, n)`.
        ridge: The ridge `z`, a positive scalar, in the units of `K/n`.
        sample_weight: How often each row counts, `(n,)`. A row is left out with all that
            it counts for. Defaults to once each.
        intercept: Whether the machine has a constant beside it. Defaults to `False`.

    Returns:
        Predictions, `(n, c)`, of the type of `gram`, differentiable in closed form.

    Raises:
        ValueError: If `kare` refuses the same arguments.

    Example:

    ```python
    gram = kk.kernels.NTK(network).gram(x)
    error = y - kk.risk.leave_one_out(y, gram, ridge=0.01)
    ```
    """
    found = leave_one_out_of(regress(y, gram, ridge, sample_weight, intercept))
    return tf.debugging.check_numerics(found, _OVERFLOW)


def leave_one_out_of(solved: Regression) -> tf.Tensor:
    """Return leave-one-out predictions of a factorised system, `y_i − a_i / (A⁻¹)_ii`.

    With `D = diag(A⁻¹)`, upstream `u`, `v = u/D`, `w_i = Σ_k u_ik a_ik / D_i²`, the
    gradient by the system is `Σ_k (A⁻¹v_k) a_kᵀ − A⁻¹ diag(w) A⁻¹`, symmetrised.
    """
    (y, gram, _, root), ridge, a, _, inverse = solved
    diagonal = tf.linalg.diag_part(inverse)[:, None]

    def gradients(u: tf.Tensor) -> tuple[tf.Tensor, ...]:
        n = tf.cast(tf.shape(gram)[0], gram.dtype)
        v = tf.matmul(inverse, u / diagonal)
        w = tf.reduce_sum(u * a, axis=1, keepdims=True) / tf.square(diagonal)
        va = tf.matmul(v, a, transpose_b=True)
        by_system = 0.5 * (va + tf.transpose(va)) - tf.matmul(inverse, w * inverse)
        return u - v, by_system / n, tf.linalg.trace(by_system)

    return in_closed_form(y - a / diagonal, gradients, y, gram, ridge) / root


def predict(
    y: tf.Tensor,
    gram: tf.Tensor,
    ridge: tf.Tensor,
    cross: tf.Tensor,
    intercept: bool = False,
) -> tf.Tensor:
    """Predict other rows `x`: `(1/n) K(x, X) (K/n + zI)⁻¹ y`, `(m, c)`, differentiable.

    For an upstream `u` by `a = A⁻¹y`, with `v = A⁻¹u`: the gradient by the system is
    `−(v aᵀ + a vᵀ)/2`, by `y` it is `v`. An intercept is the mean of `y − K a/n`.

    Args:
        y: `(n, c)`.
        gram: `(n, n)`.
        ridge: `z`.
        cross: `K(x, X)`, `(m, n)`.
        intercept: Whether there is a constant.
    """
    n = tf.cast(tf.shape(gram)[0], gram.dtype)
    ones = tf.ones_like(gram[:, :1])
    a, _, inverse = factorised(y, gram, ridge, ones if intercept else None)

    def gradients(u: tf.Tensor) -> tuple[tf.Tensor, ...]:
        v = tf.matmul(inverse, u)
        by_gram = tf.matmul(
            tf.concat([v, a], axis=1), tf.concat([a, v], axis=1), transpose_b=True
        ) * (-0.5 / n)
        return v, by_gram, -tf.reduce_sum(v * a)

    dual = in_closed_form(a, gradients, y, gram, ridge)
    outputs = tf.matmul(cross, dual) / n
    if not intercept:
        return outputs
    centre = tf.stop_gradient(mean_of(y, ones))  # float32 has few digits beyond it
    left = y - centre - tf.matmul(gram, dual) / n
    return outputs + tf.reduce_mean(left, axis=0) + centre
