"""One ridge, directly: the Cholesky factor of `K/n + λI`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_kare import _linalg
from keras_kare.solvers.result import Solution


def cholesky(gram: np.ndarray, y: np.ndarray, ridge: float) -> Solution:
    """Solve `(K/n + λI) α = y` for one ridge, in float64.

    Args:
        gram: Symmetric positive semi-definite, `(n, n)`.
        y: `(n, c)`.
        ridge: `λ > 0`.

    Returns:
        A `Solution`. Cost: `n³/3` multiply-adds for the factor, as many again for
        the diagonal of the inverse.

    Raises:
        ValueError: If no jitter makes the matrix positive definite.
    """
    system = np.asarray(gram, "float64") / len(gram)
    system[np.diag_indices_from(system)] += ridge
    lower, jitter = _linalg.inverse_cholesky(tf.constant(system))
    half = tf.matmul(lower, tf.constant(np.asarray(y, "float64")))
    return Solution(
        dual=tf.matmul(lower, half, transpose_a=True).numpy(),
        ridge=float(ridge),
        inverse_diagonal=tf.reduce_sum(tf.square(lower), axis=0).numpy(),
        jitter=float(jitter),
        solver="cholesky",
    )
