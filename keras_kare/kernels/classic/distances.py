"""Distances between rows, exact where rows are near, with gradients that are never NaN."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

NEAR = {"float64": 1e-6, "float32": 1e-4}
"""Share of rows' squares below which their distance is computed by subtraction."""

PAIRS = 2**16
"""Pairs of near rows that are subtracted at a time."""


def squared(a: tf.Tensor, b: tf.Tensor | None = None) -> tf.Tensor:
    """Return `‖a_i − b_j‖²`, `(n1, n2)`, by a matrix product; `b` defaults to `a`.

    `|a|² + |b|² − 2 aᵀb` loses the digits of small distances: where it is below a small
    share of `|a|² + |b|²`, rows are subtracted. Of a row with itself it is 0.

    Args:
        a: `(n1, d)`.
        b: `(n2, d)`.
    """
    middle = tf.stop_gradient(tf.reduce_mean(a, axis=0))  # smaller numbers round less
    return _within(a - middle) if b is None else _between(a - middle, b - middle)


@tf.custom_gradient
def _within(a: tf.Tensor) -> tuple[tf.Tensor, Any]:
    values = tf.linalg.set_diag(_values(a, a, alike=True), tf.zeros_like(a[:, 0]))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        both = upstream + tf.transpose(upstream)
        return 2.0 * (tf.reduce_sum(both, axis=1)[:, None] * a - both @ a)

    return values, gradient


@tf.custom_gradient
def _between(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_a = tf.reduce_sum(upstream, axis=1)[:, None] * a - upstream @ b
        turned = tf.transpose(upstream)
        by_b = tf.reduce_sum(turned, axis=1)[:, None] * b - turned @ a
        return 2.0 * by_a, 2.0 * by_b

    return _values(a, b, alike=False), gradient


def _values(a: tf.Tensor, b: tf.Tensor, alike: bool) -> tf.Tensor:
    """Return the distances; of `alike` rows, those of a row with itself do not matter."""
    sizes = tf.reduce_sum(a * a, axis=1)[:, None] + tf.reduce_sum(b * b, axis=1)
    values = sizes - 2.0 * tf.matmul(a, b, transpose_b=True)
    near = values <= NEAR.get(a.dtype.name, 1e-4) * sizes
    if alike:
        near = tf.linalg.set_diag(near, tf.zeros_like(a[:, 0], tf.bool))
    places = tf.where(near)

    def subtracted(begin: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        some = places[begin : begin + PAIRS]
        apart = tf.gather(a, some[:, 0]) - tf.gather(b, some[:, 1])
        exact = tf.reduce_sum(apart * apart, axis=1)
        return begin + PAIRS, tf.tensor_scatter_nd_update(values, some, exact)

    _, values = tf.while_loop(
        lambda begin, _: begin < tf.shape(places)[0],
        subtracted,
        (tf.constant(0), values),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape((None, None))),
    )
    return tf.ensure_shape(values, (a.shape[0], b.shape[0]))


def manhattan(a: tf.Tensor, b: tf.Tensor | None = None) -> tf.Tensor:
    """Return `Σ_k |a_ik − b_jk|`, `(n1, n2)`, a column at a time; `b` defaults to `a`."""
    return _manhattan(a, a if b is None else b)


@tf.custom_gradient
def _manhattan(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def of_column(pair: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            signed = upstream * tf.sign(pair[0][:, None] - pair[1])
            return tf.reduce_sum(signed, axis=1), -tf.reduce_sum(signed, axis=0)

        by_a, by_b = tf.map_fn(of_column, (tf.transpose(a), tf.transpose(b)))
        return tf.transpose(by_a), tf.transpose(by_b)

    return _over_columns(lambda s, t: tf.abs(s[:, None] - t), a, b), gradient


def different(a: tf.Tensor, b: tf.Tensor | None, weights: tf.Tensor) -> tf.Tensor:
    """Return the weights of the columns in which rows differ, summed, `(n1, n2)`.

    Args:
        a: `(n1, d)`.
        b: `(n2, d)`. Defaults to `a`.
        weights: `(d,)`.
    """
    return _different(a, a if b is None else b, weights)


@functools.partial(tf.custom_gradient)
def _different(a: tf.Tensor, b: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
    def unlike(s: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return tf.cast(s[:, None] != t, weights.dtype)

    def gradient(upstream: tf.Tensor) -> tuple[Any, Any, tf.Tensor]:
        by_weights = tf.map_fn(
            lambda pair: tf.reduce_sum(upstream * unlike(*pair)),
            (tf.transpose(a), tf.transpose(b)),
            fn_output_signature=weights.dtype,
        )
        rows = (tf.zeros_like(t) if t.dtype.is_floating else None for t in (a, b))
        return *rows, by_weights

    def weighted(s: tf.Tensor, t: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        return weight * unlike(s, t)

    return _over_columns(weighted, a, b, weights[None]), gradient


def _over_columns(term: Any, *parts: tf.Tensor) -> tf.Tensor:
    """Sum a term over columns, one at a time: no `(n1, n2, d)` array exists."""
    columns = [tf.transpose(part) for part in parts]
    rows = tf.shape(parts[0])[0], tf.shape(parts[1])[0]
    if tf.executing_eagerly():  # a loop of TensorFlow's takes as long as its work
        total = tf.zeros(rows, parts[-1].dtype)
        for each in zip(*map(tf.unstack, columns), strict=True):
            total += term(*each)
        return total
    found = tf.while_loop(
        lambda k, _: k < tf.shape(columns[0])[0],
        lambda k, total: (k + 1, total + term(*(part[k] for part in columns))),
        (tf.constant(0), tf.zeros(rows, parts[-1].dtype)),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape((None, None))),
    )[1]
    return tf.ensure_shape(found, (parts[0].shape[0], parts[1].shape[0]))
