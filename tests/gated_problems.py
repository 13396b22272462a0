"""Small problems for gated ReLU networks, the same wherever NumPy draws them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SEEDS = range(20)


class Problem(NamedTuple):
    """Rows, targets, gates and the regularisation of a network."""

    x: np.ndarray
    y: np.ndarray
    gates: np.ndarray
    regularization: float


def problem(seed: int) -> Problem:
    """Of 15 to 40 rows, 2 to 6 columns, 10 to 60 gates, one target or two."""
    rng = np.random.default_rng(seed)
    n, d, p = rng.integers(15, 41), rng.integers(2, 7), rng.integers(10, 61)
    x = rng.normal(size=(n, d))
    clean = np.sin(2.0 * x[:, :1]) + np.maximum(x[:, 1:2], 0.0)
    y = clean + 0.3 * rng.normal(size=(n, 1 + seed % 2))
    return Problem(x, y, rng.normal(size=(p, d)), 10.0 ** rng.uniform(-3.0, 0.5))


def masked_columns(x: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """`[D_1 X, ..., D_q X]` of the masks that differ and are not zero, `(n, q d)`."""
    masks = dict.fromkeys(tuple(x @ gate >= 0.0) for gate in gates)
    return np.hstack([np.array(mask)[:, None] * x for mask in masks if any(mask)])


def objective(of: Problem, coefficients: np.ndarray) -> float:
    """`½ |Σ_i D_i X w_i − y|² + β Σ_i |w_i|` of `(q, d, c)`, by its definition."""
    columns = masked_columns(of.x, of.gates)
    residual = columns @ coefficients.reshape(columns.shape[1], -1) - of.y
    norms = np.sqrt(np.sum(coefficients**2, axis=(1, 2)))
    return float(0.5 * np.sum(residual**2) + of.regularization * np.sum(norms))
