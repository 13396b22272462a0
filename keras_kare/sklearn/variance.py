"""Posterior variance of a kernel machine, as of a Gaussian process.

Ridge regression with kernel `K` and ridge `λ` predicts the posterior mean of a Gaussian
process with covariance `s² K` and noise variance `s² nλ`, for any `s²`. Its variance of a
new observation at `x`, in units of `s²`, is

`v(x) = K(x, x) − k(x) (K + nλI)⁻¹ k(x)ᵀ + nλ`, with `k(x) = K(x, X)`.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from keras_kare.models import KAREModel

CHUNK = 4096
"""Rows at a time."""


def unit_variance(
    gram: np.ndarray, cross: np.ndarray, diagonal: np.ndarray, noise: float
) -> np.ndarray:
    """`v(x)` of each new row, `(m,)` in float64, for `s² = 1`.

    Args:
        gram: `K(X, X)`, `(n, n)`.
        cross: `K(x, X)`, `(m, n)`.
        diagonal: `K(x, x)`, `(m,)`.
        noise: `nλ`.
    """
    return _variance(_factor(gram, noise), cross, diagonal, noise)


def model_unit_variance(model: KAREModel, x: np.ndarray) -> np.ndarray:
    """`v(x)` under the solved machine of a model, `(m,)` in float64, for `s² = 1`."""
    kernel, anchors = model.kernel, model.head.anchors
    noise = len(anchors) * float(model.head.report["ridge_value"])
    factor = _factor(kernel.gram(anchors, dtype="float64").numpy(), noise)
    parts = []
    for begin in range(0, len(x), CHUNK):
        part = x[begin : begin + CHUNK]
        cross = kernel.cross(part, anchors, dtype="float64").numpy()
        diagonal = kernel.diag(part, dtype="float64").numpy()
        parts.append(_variance(factor, cross, diagonal, noise))
    return np.concatenate(parts)


def _factor(gram: np.ndarray, noise: float) -> np.ndarray:
    """The lower Cholesky factor of `K + nλI`."""
    factor = cholesky(gram + noise * np.eye(len(gram)), lower=True)
    return np.asarray(factor)


def _variance(
    factor: np.ndarray, cross: np.ndarray, diagonal: np.ndarray, noise: float
) -> np.ndarray:
    explained = np.sum(solve_triangular(factor, cross.T, lower=True) ** 2, axis=0)
    # Rounding may take the difference below zero where a row is an anchor.
    return np.maximum(diagonal - explained, 0.0) + noise
