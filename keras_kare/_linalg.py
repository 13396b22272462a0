"""The inverse Cholesky factor, and symmetric products, for risk and solvers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._traced_once import TracedOnce

STEPS = 8
LEVELS = 3
"""How often a matrix is halved."""

SMALL = 512
"""Rows up to which a matrix is factorised at once outside of graphs, with none to trace."""

_FAILED = (
    "K/n + z I is not positive definite, even with jitter on its diagonal. Use a larger "
    "ridge, or float64. At the first step of training, scale inputs to about one; after "
    "steps that went well, it may have diverged: use a smaller learning rate or clip "
    "gradients."
)


def inverse_cholesky(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`L⁻¹` of the Cholesky factor `L` of a symmetric positive definite matrix.

    Where rounding has made the matrix indefinite, a multiple of the identity is
    added: 10 times the rounding unit of the mean diagonal, and ten times more at
    each of up to eight steps. A warning states the jitter that was needed.

    Args:
        matrix: `(n, n)`; only its lower triangle is read.

    Returns:
        `L⁻¹`, `(n, n)` lower triangular, and the jitter added to the diagonal (zero
        where none was).

    Raises:
        ValueError: If no jitter of the ladder was enough (inside a graph, a
            `tf.errors.InvalidArgumentError`).
        tf.errors.InvalidArgumentError: If the matrix holds NaN or Inf.
    """
    if tf.executing_eagerly() and matrix.shape[0] <= SMALL:
        inverse = _plain(matrix)
        if _succeeded(inverse):
            return inverse, tf.zeros((), matrix.dtype)
    inverse, jitter = laddered(matrix)
    if not tf.executing_eagerly():
        inverse.set_shape(matrix.shape)
    return reported(inverse, jitter)


def reported(inverse: tf.Tensor, jitter: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What `laddered` found; an error where it failed, a warning where it needed jitter."""
    if tf.executing_eagerly():
        if jitter:
            if not _succeeded(inverse):
                raise ValueError(f"{_FAILED} Received: jitter up to {float(jitter):.1e}")
            _say(jitter)
        return inverse, jitter

    def report() -> tf.Tensor:
        check = tf.debugging.Assert(_succeeded(inverse), [_FAILED, "jitter up to", jitter])
        with tf.control_dependencies([check]):
            say = tf.py_function(_say, [jitter], [])
        with tf.control_dependencies([say]):
            return tf.identity(jitter)

    checked = tf.cond(jitter > 0, report, lambda: tf.identity(jitter))
    with tf.control_dependencies([checked]):
        return tf.identity(inverse), checked


@TracedOnce
def laddered(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The inverse factor, NaN where no jitter is enough, and the jitter."""
    inverse = _by_halves(matrix)
    return tf.cond(
        _succeeded(inverse),
        lambda: (inverse, tf.zeros((), matrix.dtype)),
        lambda: climbed(matrix, 1),
    )


def _plain(matrix: tf.Tensor) -> tf.Tensor:
    """`L⁻¹`; NaN marks an indefinite matrix."""
    factor = tf.linalg.cholesky(matrix)
    identity = tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
    return tf.linalg.triangular_solve(factor, identity)


def _halved(levels: int) -> TracedOnce:
    """`L⁻¹` by halves, each by halves.

    `[[A, ·], [B, C]]` has `L⁻¹ = [[a, 0], [-c b a, c]]`, where `a = chol(A)⁻¹`,
    `b = B aᵀ` and `c = chol(C - b bᵀ)⁻¹`.

    TensorFlow factorises and inverts triangles on one core, but multiplies on all:
    `benchmarks/kare_step.py` measures the gain.
    """
    inner = _halved(levels - 1) if levels > 1 else _plain

    def halves(matrix: tf.Tensor) -> tf.Tensor:
        n = tf.shape(matrix)[0]
        half = n // 2
        upper = inner(matrix[:half, :half])
        b = tf.matmul(matrix[half:, :half], upper, transpose_b=True)
        lower = inner(matrix[half:, half:] - tf.matmul(b, b, transpose_b=True))
        corner = -tf.matmul(lower, tf.matmul(b, upper))
        top = tf.pad(upper, [[0, 0], [0, n - half]])
        return tf.concat([top, tf.concat([corner, lower], axis=1)], axis=0)

    return TracedOnce(halves)


_by_halves = _halved(LEVELS)


def inverse_of(lower: tf.Tensor) -> tf.Tensor:
    """`L⁻ᵀ L⁻¹` of what `inverse_cholesky` returned, `(n, n)`, symmetric.

    By halves, which skips products with the zeros of the triangle.
    """
    half = tf.shape(lower)[0] // 2
    left, rest = lower[:, :half], lower[half:, half:]
    return _mirrored(
        tf.matmul(left, left, transpose_a=True),
        tf.matmul(rest, lower[half:, :half], transpose_a=True),
        tf.matmul(rest, rest, transpose_a=True),
    )


def square_of(symmetric: tf.Tensor) -> tf.Tensor:
    """The square of a symmetric matrix, `(n, n)`, by halves: a quarter is mirrored."""
    half = tf.shape(symmetric)[0] // 2
    left, right = symmetric[:, :half], symmetric[:, half:]
    return _mirrored(
        tf.matmul(left, left, transpose_a=True),
        tf.matmul(right, left, transpose_a=True),
        tf.matmul(right, right, transpose_a=True),
    )


def _mirrored(first: tf.Tensor, corner: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """`[[first, cornerᵀ], [corner, last]]`."""
    upper = tf.concat([first, tf.transpose(corner)], axis=1)
    return tf.concat([upper, tf.concat([corner, last], axis=1)], axis=0)


def _succeeded(inverse: tf.Tensor) -> tf.Tensor:
    return tf.reduce_all(tf.math.is_finite(tf.linalg.diag_part(inverse)))


def climbed(matrix: tf.Tensor, first: int) -> tuple[tf.Tensor, tf.Tensor]:
    """As `laddered`, without blocks, from a step of the ladder on; 0 is without jitter."""
    matrix = tf.debugging.check_numerics(
        matrix,
        "The Gram matrix holds NaN or Inf. At the first step of training, the network's "
        "derivatives overflow on these inputs: scale inputs and weights to about one; "
        "after steps that went well, training has diverged: use a smaller learning rate "
        "or clip gradients. Cholesky input",
    )
    identity = tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
    unit = tf.reduce_mean(tf.abs(tf.linalg.diag_part(matrix)))
    unit *= tf.constant(np.finfo(matrix.dtype.as_numpy_dtype).eps, matrix.dtype)

    def again(step: Any, jitter: Any, inverse: Any) -> Any:
        height = tf.pow(tf.constant(10.0, matrix.dtype), tf.cast(step, matrix.dtype))
        jitter = tf.where(step > 0, unit * height, tf.zeros_like(unit))
        return step + 1, jitter, _plain(matrix + jitter * identity)

    _, jitter, inverse = tf.while_loop(
        lambda step, jitter, inverse: (step <= STEPS) & ~_succeeded(inverse),
        again,
        (
            tf.constant(first),
            tf.zeros((), matrix.dtype),
            tf.fill(tf.shape(matrix), float("nan") * unit),
        ),
    )
    return inverse, jitter


def _say(jitter: tf.Tensor) -> None:
    warnings.warn(
        "A Cholesky factorisation of K/n + z I needed jitter: rounding had made the "
        f"matrix indefinite. Added to its diagonal: {float(jitter):.1e}. Use a larger "
        "ridge, or float64, to avoid it.",
        RuntimeWarning,
        stacklevel=2,
    )
