"""Predictions of rows that a machine was not solved on, and their gradient."""

from __future__ import annotations

import tensorflow as tf

from keras_kare.risk.regression import factorised, in_closed_form, mean_of


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
