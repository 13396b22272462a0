"""Ridge regression on explicit features, summed over rows as they come."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

BLOCK = 1024
"""Columns of the sum that are added to at a time: no second matrix of its size."""

ALL_RIDGES = 4096
"""Most features of which an eigendecomposition is made, for every ridge at once."""

STEPS = 12
"""Most jitters that are tried, each ten times the last."""

REFINEMENTS = 3


class NormalEquations:
    """`(G + λI) w = b` with `G = Φᵀ W Φ/N` and `b = Φᵀ W y/N`, one pass over the rows.

    Args:
        features: Number `F` of features.
        columns: Number `c` of targets.

    Attributes:
        gram: `G`, `(F, F)` float64, after `finish`.
        right: `b`, `(F, c)`.
        squared: `Σ w_i y_ij²`, `(c,)`.
        rows: Number of rows `n`.
        count: `N = Σ w`.
    """

    def __init__(self, features: int, columns: int):
        self.gram = np.zeros((features, features))
        self.right = np.zeros((features, columns))
        self.squared = np.zeros(columns)
        self.rows, self.count = 0, 0.0

    @staticmethod
    def memory(features: int, columns: int) -> float:
        """Bytes that this takes with its factor, beside a chunk of rows."""
        return 8.0 * (3.0 * features**2 + 4.0 * features * columns)

    def add(
        self, phi: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Some rows: features `(k, F)`, targets `(k, c)`, how often each counts `(k,)`."""
        self.rows += len(y)
        if weights is None:
            self.count += len(y)
        else:
            root = np.sqrt(np.asarray(weights, "float64"))[:, None]
            phi, y = root * phi, root * y
            self.count += float(np.sum(weights, dtype="float64"))
        for begin in range(0, len(self.gram), BLOCK):  # the lower triangle, by columns
            end = begin + BLOCK
            self.gram[begin:, begin:end] += phi[:, begin:].T @ phi[:, begin:end]
        self.right += phi.T @ y
        self.squared += np.sum(np.square(y, dtype="float64"), axis=0)

    def finish(self) -> NormalEquations:
        """After the last row: means instead of sums."""
        gram = self.gram
        for begin in range(0, len(gram), BLOCK):
            end = begin + BLOCK
            gram[begin:end, end:] = gram[end:, begin:end].T
        gram /= self.count
        self.right /= self.count
        return self

    @property
    def small(self) -> bool:
        """Whether an eigendecomposition is affordable."""
        return len(self.gram) <= ALL_RIDGES

    @property
    def trace(self) -> float:
        """`tr(G)`, which is `tr(W½ K W½)/N`."""
        return float(np.trace(self.gram))

    @functools.cached_property
    def basis(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of `G`, none negative, and its eigenvectors."""
        values, vectors = np.linalg.eigh(self.gram)
        return np.maximum(values, 0.0), vectors

    def solve(self, ridge: float) -> tuple[np.ndarray, float]:
        """`w`, `(F, c)`, refined, and the jitter that the Cholesky factor needed."""
        factor, jitter = self._factor(ridge)
        w = _solve(factor, self.right)
        for _ in range(REFINEMENTS):
            left = self.right - self.gram @ w - ridge * w
            better = w + _solve(factor, left)
            again = self.right - self.gram @ better - ridge * better
            if not np.linalg.norm(again) < np.linalg.norm(left):
                break
            w = better
        return w, jitter

    def _factor(self, ridge: float) -> tuple[np.ndarray, float]:
        matrix, diagonal = self.gram.copy(), np.diag_indices_from(self.gram)
        unit = np.finfo(float).eps * max(self.trace / len(matrix), ridge)
        for jitter in (0.0, *(unit * 10.0**step for step in range(STEPS))):
            matrix[diagonal] = self.gram[diagonal] + ridge + jitter
            try:
                return np.linalg.cholesky(matrix), float(jitter)
            except np.linalg.LinAlgError:
                continue  # rounding has made it indefinite: the next jitter
        raise ValueError(
            "JᵀJ/n + λI is not positive definite, even with jitter on its diagonal. Use a "
            f"larger ridge. Received: ridge={ridge:.3g}, jitter up to {jitter:.1e}"
        )

    def residual(self, w: np.ndarray, ridge: float) -> np.ndarray:
        """`|y − (K/n + λI) α| / |y|` of each target, for the `α` with `λα = y − Φw`.

        The residual is `Φ(w − v)` with `v = (1/n) Φᵀα = (b − Gw)/λ`, and its norm needs
        no row: `n (w − v)ᵀ G (w − v)`.
        """
        off = w - (self.right - self.gram @ w) / ridge
        squared = self.count * np.maximum(np.sum(off * (self.gram @ off), axis=0), 0.0)
        ratio = np.divide(
            squared, self.squared, out=np.zeros_like(squared), where=self.squared > 0.0
        )
        return np.sqrt(ratio)

    def freedom(self, ridge: float) -> float:
        """`tr G (G + λI)⁻¹`."""
        values = self.basis[0]
        return float(np.sum(values / (values + ridge)))

    def dual_squared(self, w: np.ndarray, ridge: float) -> float:
        """`|α|²` of all targets, `|y − Φw|²/λ²`."""
        inner = np.sum(w * (self.gram @ w)) - 2.0 * np.sum(w * self.right)
        return max(float(np.sum(self.squared) + self.count * inner), 0.0) / ridge**2


def _solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    lower = tf.constant(factor)
    half = tf.linalg.triangular_solve(lower, tf.constant(right))
    return tf.linalg.triangular_solve(lower, half, adjoint=True).numpy()
