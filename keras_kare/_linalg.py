"""The inverse Cholesky factor, eigenproblems and symmetric products."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from threadpoolctl import ThreadpoolController

from keras_kare._sentences import sentence
from keras_kare._traced_once import Rescued, TracedOnce
from keras_kare._validation import all_finite

STEPS = 8
LEVELS = 3
"""How often a matrix is halved."""

NO_BLOCKS = 256
"""Rows up to which blocks gain nothing."""

SMALL = 512
"""Rows up to which a matrix is factorised at once outside of graphs, with none to trace."""

ALONE = 1000
"""Rows up to which NumPy's algebra gets one thread."""

_FAILED = sentence(
    "K/n + z I is not positive definite, even with jitter on its diagonal. Use a larger "
    "ridge, or float64. At the first step of training, scale inputs to about one; after "
    "steps that went well, it may have diverged: use a smaller learning rate or clip "
    "gradients."
)


_NOT_FINITE = sentence(
    "The Gram matrix holds NaN or Inf. At the first step of training, the network's "
    "derivatives overflow on these inputs: scale inputs and weights to about one; after "
    "steps that went well, training has diverged: use a smaller learning rate or clip "
    "gradients."
)


class _OneThread:
    """One thread for BLAS, until the last of those that asked for it is done."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    @functools.cached_property
    def _controller(self) -> Any:
        return ThreadpoolController()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = self._controller.limit(limits=1, user_api="blas")

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_ONE_THREAD = _OneThread()


def threads_for(rows: int) -> contextlib.AbstractContextManager[Any]:
    """Limit NumPy's threads for the algebra of so many rows: up to a thousand, to one.

    Several threads wait for each other at each of many small steps, by spinning. On a
    machine with other work they wait for that, too, many times as long as one computes.
    """
    return _ONE_THREAD if rows <= ALONE else contextlib.nullcontext()


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues of a symmetric matrix, `(n,)` ascending, and eigenvectors."""
    with threads_for(len(matrix)):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def inverse_cholesky(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return `L⁻¹` of the Cholesky factor `L` of a symmetric positive definite matrix.

    Where rounding has made the matrix indefinite, a multiple of the identity is
    added: 10 times the rounding unit of the mean diagonal, and ten times more at
    each of up to eight steps. A warning states the jitter that was needed.

    Args:
        matrix: `(n, n)`; only its lower triangle is read.

    Returns:
        `L⁻¹`, `(n, n)` lower triangular, and the jitter added to the diagonal (zero
        where none was).

    Raises:
        ValueError: If no jitter of the ladder was enough, or the matrix holds NaN or
            Inf. Inside a graph, a `tf.errors.InvalidArgumentError`.
    """
    if tf.executing_eagerly() and matrix.shape[0] <= SMALL:
        inverse = plain_factor(matrix)
        if succeeded(inverse):
            return inverse, tf.zeros((), matrix.dtype)
        return climbed(matrix)
    inverse, jitter = _inverse_cholesky(matrix)
    if not tf.executing_eagerly():
        inverse.set_shape(matrix.shape)
        jitter.set_shape(())
    return inverse, jitter


def plain_factor(matrix: tf.Tensor) -> tf.Tensor:
    """Return `L⁻¹`, in which NaN marks an indefinite matrix."""
    factor = tf.linalg.cholesky(matrix)
    identity = tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
    return tf.linalg.triangular_solve(factor, identity)


def _halved(levels: int) -> TracedOnce:
    """Make the function that finds `L⁻¹` by halves, each by halves.

    `[[A, ·], [B, C]]` has `L⁻¹ = [[a, 0], [-c b a, c]]`, where `a = chol(A)⁻¹`,
    `b = B aᵀ` and `c = chol(C - b bᵀ)⁻¹`.

    TensorFlow factorises and inverts triangles on one core, but multiplies on all:
    `benchmarks/kare_step.py` measures the gain.
    """
    inner = _halved(levels - 1) if levels > 1 else plain_factor

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


by_halves = _halved(LEVELS)


def _by_halves_alone(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    inverse = by_halves(matrix)
    return succeeded(inverse), inverse, tf.zeros((), matrix.dtype)


def inverse_of(lower: tf.Tensor) -> tf.Tensor:
    """Return `L⁻ᵀ L⁻¹` of what `inverse_cholesky` returned, `(n, n)`, symmetric.

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
    """Square a symmetric matrix, `(n, n)`, by halves: a quarter is mirrored."""
    half = tf.shape(symmetric)[0] // 2
    left, right = symmetric[:, :half], symmetric[:, half:]
    return _mirrored(
        tf.matmul(left, left, transpose_a=True),
        tf.matmul(right, left, transpose_a=True),
        tf.matmul(right, right, transpose_a=True),
    )


def _mirrored(first: tf.Tensor, corner: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Join `[[first, cornerᵀ], [corner, last]]`."""
    upper = tf.concat([first, tf.transpose(corner)], axis=1)
    return tf.concat([upper, tf.concat([corner, last], axis=1)], axis=0)


def succeeded(inverse: tf.Tensor) -> tf.Tensor:
    """Tell whether the matrix was positive definite."""
    return tf.reduce_all(tf.math.is_finite(tf.linalg.diag_part(inverse)))


def ladder(first: float, most: float) -> list[float]:
    """Return the jitters to try: none, then `first`, and ten times more up to `most`."""
    steps = int(np.log10(1.001 * most / first))  # but for rounding
    return [0.0, *(first * 10.0**step for step in range(steps + 1))]


def climbed(
    matrix: tf.Tensor, first: int = 1, of: tf.DType | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return `L⁻¹` and the jitter, from a step of the ladder on; outside of graphs.

    Args:
        matrix: `(n, n)`.
        first: The step; 0 is without jitter. Defaults to `1`.
        of: The type that has rounded the matrix: there are more steps where it is of
            fewer digits than the matrix has now. Defaults to the type of the matrix.
    """
    if not all_finite(matrix):
        raise ValueError(_NOT_FINITE)
    eps = float(np.finfo(matrix.dtype.as_numpy_dtype).eps)
    most = 10.0**STEPS * float(np.finfo((of or matrix.dtype).as_numpy_dtype).eps)
    identity = tf.eye(matrix.shape[0], dtype=matrix.dtype)
    unit = tf.reduce_mean(tf.abs(tf.linalg.diag_part(matrix)))
    jitter = tf.zeros((), matrix.dtype)
    for height in ladder(10.0 * eps, most)[first:]:
        jitter = unit * tf.constant(height, matrix.dtype)
        inverse = plain_factor(matrix + jitter * identity)
        if succeeded(inverse):
            if height:
                _say(jitter)
            return inverse, jitter
    raise ValueError(f"{_FAILED} Received: jitter up to {float(jitter):.1e}")


_inverse_cholesky = Rescued(_by_halves_alone, climbed)


def _say(jitter: tf.Tensor) -> None:
    warnings.warn(
        "A Cholesky factorisation of K/n + z I needed jitter: rounding had made the "
        f"matrix indefinite. Added to its diagonal: {float(jitter):.1e}. Use a larger "
        "ridge, or float64, to avoid it.",
        RuntimeWarning,
        stacklevel=2,
    )
