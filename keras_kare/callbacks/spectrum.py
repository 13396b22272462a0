"""What one Gram matrix and its targets tell about a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from keras_kare.kernels import DenseOperator
from keras_kare.solvers import Spectral, System


def diagnose(
    gram: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    ridge: float,
    eigenvalues: int,
    intercept: bool = False,
) -> dict[str, float]:
    """Return numbers of a kernel machine, by one eigendecomposition (two with a constant).

    Args:
        gram: Symmetric positive semi-definite, `(n, n)`.
        y: `(n, c)`.
        weights: How often each row counts, `(n,)`; `None` for once.
        ridge: `z > 0`.
        eigenvalues: How many of the largest eigenvalues of `K/n` to give.
        intercept: Whether the machine has a constant.

    Returns:
        Values by name, as `KernelDiagnostics` lists them, but `drift` and `weights_norm`.
    """
    operator = DenseOperator(gram)
    spectral = Spectral().prepare(System(operator, y, weights, intercept))
    solution = spectral.solve(ridge)
    if intercept:  # the eigenvalues are the kernel's own
        spectral = Spectral().prepare(System(operator, y, weights))
    error, dimension = solution.leave_one_out_mse, solution.effective_dimension
    assert error is not None
    assert dimension is not None
    values = {
        "kare": math.inf if solution.kare is None else solution.kare,
        "leave_one_out": error,
        "effective_dimension": dimension,
        "alignment": alignment(gram, y),
    }
    for i, value in enumerate(spectral.eigenvalues[::-1][:eigenvalues]):
        values[f"eigenvalue_{i + 1}"] = float(value)
    values["smallest_eigenvalue"] = float(spectral.eigenvalues[0])
    return values


def alignment(gram: np.ndarray, y: np.ndarray) -> float:
    """Return the centred kernel-target alignment; 0 where the centred kernel is zero.

    `<K_c, y_c y_cᵀ> / (|K_c| |y_c y_cᵀ|)` in Frobenius norms, with `K_c = H K H`,
    `y_c = H y`, `H = I − 1 1ᵀ/n`.
    """
    gram, y = np.asarray(gram, "float64"), np.asarray(y, "float64")
    means = np.mean(gram, axis=0)
    centred = gram - means - means[:, None] + np.mean(means)
    y = y - np.mean(y, axis=0)
    norms = np.linalg.norm(centred) * np.linalg.norm(y.T @ y)
    return float(np.sum((centred @ y) * y) / norms) if norms > 0.0 else 0.0


def drift(gram: np.ndarray, start: np.ndarray) -> float:
    """Return `|K − K₀| / |K₀|` in Frobenius norms."""
    return float(np.linalg.norm(gram - start) / np.linalg.norm(start))


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the norm of all numbers of some arrays together."""
    squares = [np.sum(np.square(array, dtype="float64")) for array in arrays]
    return float(np.sqrt(np.sum(squares)))
