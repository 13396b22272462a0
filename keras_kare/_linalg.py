"""Cholesky with a jitter ladder, which risk and solvers share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

STEPS = 8
_FAILED = (
    "K/n + z I is not positive definite, even with jitter on its diagonal. Use a larger "
    "ridge, or float64."
)


def cholesky(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lower Cholesky factor of a symmetric positive definite matrix.

    Where rounding has made the matrix indefinite, a multiple of the identity is
    added: 10 times the rounding unit of the mean diagonal, and ten times more at
    each of up to eight steps. A warning states the jitter that was needed.

    Args:
        matrix: `(n, n)`; only its lower triangle is read.

    Returns:
        The factor, and the jitter added to the diagonal (zero where none was).

    Raises:
        ValueError: If no jitter of the ladder was enough (inside a graph, a
            `tf.errors.InvalidArgumentError`).
        tf.errors.InvalidArgumentError: If the matrix holds NaN or Inf.
    """
    zero = tf.zeros((), matrix.dtype)
    factor = tf.linalg.cholesky(matrix)
    return tf.cond(
        _succeeded(factor),
        lambda: (factor, zero),
        lambda: _climb(matrix),
    )


def _succeeded(factor: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(tf.math.is_finite(tf.linalg.diag_part(factor)))


def _climb(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    matrix = tf.debugging.check_numerics(
        matrix,
        "The Gram matrix holds NaN or Inf. If this happened while training, it has "
        "diverged: use a smaller learning rate or clip gradients. Cholesky input",
    )
    identity = tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
    unit = tf.reduce_mean(tf.abs(tf.linalg.diag_part(matrix)))
    unit *= tf.constant(np.finfo(matrix.dtype.as_numpy_dtype).eps, matrix.dtype)

    def again(step: Any, jitter: Any, factor: Any) -> Any:
        jitter = unit * tf.pow(tf.constant(10.0, matrix.dtype), tf.cast(step, matrix.dtype))
        return step + 1, jitter, tf.linalg.cholesky(matrix + jitter * identity)

    _, jitter, factor = tf.while_loop(
        lambda step, jitter, factor: (step <= STEPS) & ~_succeeded(factor),
        again,
        (tf.constant(1), tf.zeros((), matrix.dtype), tf.fill(tf.shape(matrix), float("nan") * unit)),
    )
    if tf.executing_eagerly():
        if not _succeeded(factor):
            raise ValueError(f"{_FAILED} Received: jitter up to {float(jitter):.1e}")
        _say(jitter)
        return factor, jitter
    check = tf.debugging.Assert(
        _succeeded(factor),
        [_FAILED, "jitter up to", jitter],
    )
    with tf.control_dependencies([check]):
        say = tf.py_function(_say, [jitter], [])
    with tf.control_dependencies([say]):
        return tf.identity(factor), tf.identity(jitter)


def _say(jitter: tf.Tensor) -> None:
    warnings.warn(
        "A Cholesky factorisation of K/n + z I needed jitter: rounding had made the "
        f"matrix indefinite. Added to its diagonal: {float(jitter):.1e}. Use a larger "
        "ridge, or float64, to avoid it.",
        RuntimeWarning,
        stacklevel=2,
    )
