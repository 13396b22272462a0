"""What activations make of two correlated Gaussians: the step of an infinite layer.

Each of `EXPECTATIONS` takes variances `p` and `q` of Gaussians `u` and `v`, and `a = 1 − r`
of their correlation `r`, all arrays that broadcast. It returns `E[φ(u) φ(v)]`,
`E[φ'(u) φ'(v)]`, and one minus the correlation `E[φ(u) φ(v)] / √(E[φ(u)²] E[φ(v)²])`. With
`a` instead of `r`, angles of nearly parallel rows keep their digits. Gradients are finite,
for variances of 0 and for correlations of 1 and −1 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare.kernels.classic import distances

Three = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def root(x: tf.Tensor) -> tf.Tensor:
    """Return `√x`, whose derivative counts as 0 where `x` is 0."""
    positive = x > 0.0
    return tf.where(
        positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))), tf.zeros_like(x)
    )


def relu(p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> Three:
    """Return those of `max(0, u)`: half the arc-cosine kernels of order 1 and 0."""
    after = apart_after_relu(apart)
    values = 0.5 * root(p) * root(q) * (1.0 - after)
    return values, 0.5 * (1.0 - apart_after_steps(apart)), after


def erf(p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> Three:
    """Return those of the error function: Williams' arcsine, as an arctangent."""

    def of(p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        u, v = 1.0 / (1.0 + 2.0 * p), 1.0 / (1.0 + 2.0 * q)
        k, size = _shares(2.0 * p * u, 2.0 * q * v, u, v, apart)
        return (2.0 / np.pi) * tf.atan2(k, size), (4.0 / np.pi) * root(u) * root(v) / size

    return _with_apart(of, p, q, apart)


def gelu(p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> Three:
    """Return those of `u Φ(u)`, with the normal distribution's `Φ`, not `tanh`.

    With `k = E[u v]` and `s² = (1 + p)(1 + q) − k²`, the first is
    `k/4 + (k asin(k/√((1 + p)(1 + q))) + (k² + p q s²)/((1 + p)(1 + q) s))/2π`.
    It is computed of `k` and `s` in units of `√((1 + p)(1 + q))`, which do not overflow.
    The second is its derivative by `k` (Price's theorem).
    """

    def of(p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        u, v = 1.0 / (1.0 + p), 1.0 / (1.0 + q)
        sizes, unit = root(p) * root(q), root(u) * root(v)
        covariance = sizes * (1.0 - apart)
        k, size = _shares(p * u, q * v, u, v, apart)
        angle = tf.atan2(k, size)
        rest = sizes * root(p * u) * root(q * v) * size + k * unit * k / size
        values = 0.25 * covariance + (covariance * angle + rest) / (2.0 * np.pi)
        bend = u + v * (p * u) + tf.square(unit / size) + tf.square(unit)
        return values, 0.25 + (angle + bend * k / size) / (2.0 * np.pi)

    return _with_apart(of, p, q, apart)


EXPECTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Three]] = {
    "relu": relu,
    "erf": erf,
    "gelu": gelu,
}
"""By the name of the activation."""


def _shares(
    p: tf.Tensor, q: tf.Tensor, u: tf.Tensor, v: tf.Tensor, apart: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return `k = √(pq) (1 − a)`, and `√(1 − k²)` without a difference of near numbers.

    Args:
        p, q: Shares of variances, from 0 to 1.
        u, v: One minus these.
        apart: `a`.
    """
    size = tf.sqrt(u + v * p + p * q * apart * (2.0 - apart))
    return root(p) * root(q) * (1.0 - apart), size


def _with_apart(of: Any, p: tf.Tensor, q: tf.Tensor, apart: tf.Tensor) -> Three:
    """Return both expectations, and one minus the correlation after a smooth `φ`."""
    values, slopes = of(p, q, apart)
    left, right = (of(s, s, tf.zeros_like(s))[0] for s in (p, q))
    correlation = tf.math.divide_no_nan(values, root(left) * root(right))
    return values, slopes, tf.maximum(1.0 - correlation, 0.0)


def _parts(apart: tf.Tensor) -> Three:
    """Return the angle `θ` with `cos θ = 1 − a`, its sine and its cosine."""
    beyond = 2.0 - apart
    angle = 2.0 * tf.atan2(tf.sqrt(apart), tf.sqrt(beyond))
    return angle, tf.sqrt(apart * beyond), 1.0 - apart


@tf.custom_gradient
def apart_after_steps(apart: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return `θ/π`; its derivative counts as 0 where it grows beyond all bounds."""
    angle, sine, _ = _parts(tf.clip_by_value(apart, 0.0, 2.0))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        steep = sine < apart.dtype.as_numpy_dtype(np.sqrt(np.finfo(sine.dtype.name).eps))
        slope = tf.where(
            steep, tf.zeros_like(sine), 1.0 / tf.where(steep, tf.ones_like(sine), sine)
        )
        return upstream * slope / np.pi

    return angle / np.pi, gradient


@tf.custom_gradient
def apart_after_relu(apart: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return `1 − (sin θ + (π − θ) cos θ)/π`; its derivative by `a` is `1 − θ/π`."""
    apart = tf.clip_by_value(apart, 0.0, 2.0)
    angle, sine, cosine = _parts(apart)
    after = apart - (sine - angle * cosine) / np.pi
    return after, lambda upstream: upstream * (1.0 - apart_after_steps(apart))


@tf.custom_gradient
def apart_after_squares(apart: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return `1 − (3 sin θ cos θ + (π − θ)(1 + 2 cos² θ))/3π`, for `max(0, u)²`.

    Its derivative by `a` is `4/3` of one minus what ReLU makes of it.
    """
    apart = tf.clip_by_value(apart, 0.0, 2.0)
    angle, sine, cosine = _parts(apart)
    bend = 3.0 * sine * cosine - angle * (1.0 + 2.0 * cosine * cosine)
    after = apart * (4.0 - 2.0 * apart) / 3.0 - bend / (3.0 * np.pi)
    return after, lambda upstream: upstream * 4.0 / 3.0 * (1.0 - apart_after_relu(apart))


def directions(rows: tf.Tensor) -> tf.Tensor:
    """Return rows of length one, whatever theirs is; those of zeros stay."""
    largest = tf.reduce_max(tf.abs(rows), axis=1, keepdims=True)  # no square overflows
    rows = tf.math.divide_no_nan(rows, tf.stop_gradient(largest))
    sizes = root(tf.reduce_sum(rows * rows, axis=1, keepdims=True))
    return tf.math.divide_no_nan(rows, sizes)


def apart_of(a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
    """Return one minus the cosine of the angles of rows, near 0 to the last digit."""
    a, b = directions(a), None if b is None else directions(b)
    apart = 0.5 * distances.squared(a, b)
    beyond = 0.5 * distances.squared(a, -(a if b is None else b))
    return tf.where(apart <= 1.0, apart, 2.0 - beyond)


def dense(
    left: tf.Tensor, right: tf.Tensor, apart: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return variances, and one minus correlations, after weights and biases.

    With variances `p` and `q` times `σ_w²`, `√((p + β)(q + β)) − √(pq) − β` is
    `β (√p − √q)² / (√((p + β)(q + β)) + √(pq) + β)`, of positive terms, for `β = σ_b²`.
    """
    left, right = weight * left, weight * right
    before = root(left) * root(right)
    uneven = bias * tf.square(root(left) - root(right))
    left, right = left + bias, right + bias
    size = root(left) * root(right)
    more = tf.math.divide_no_nan(uneven, size + before + bias)
    return left, right, tf.math.divide_no_nan(more + before * apart, size)
