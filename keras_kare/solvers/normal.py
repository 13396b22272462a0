"""Ridge regression on explicit features, summed over rows as they come."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from keras_kare import _linalg

BLOCK = 1024
"""Columns of the sum that are added to at a time: no second matrix of its size."""

ALL_RIDGES = 4096
"""Most features of which an eigendecomposition is made, for every ridge at once."""

MOST_JITTER = 1e11
"""The largest jitter that is tried, in units of rounding."""

REFINEMENTS = 3


class NormalEquations:
    """`(G + λI) w = b` with `G = Φᵀ W Φ/N` and `b = Φᵀ W y/N`, one pass over the rows.

    With an intercept, features and targets are those less their means, which are known
    after the last row: `Φᵀ C Φ = Φᵀ Φ − f fᵀ/S` with `C` of `keras_kare.solvers.centred`,
    `f = Φᵀρ`, `S = |ρ|²`, where `Φ` and `ρ` have the rows' weights.

    Args:
        features: Number `F` of features.
        columns: Number `c` of targets.
        intercept: Whether there is a constant beside the features. Defaults to `False`.

    Attributes:
        gram: `G`, `(F, F)` float64, after `finish`.
        right: `b`, `(F, c)`.
        squared: `Σ w_i y_ij²`, `(c,)`.
        rows: Number of rows `n`.
        count: `N = Σ w`.
        centre: What is subtracted from targets as they come, `(c,)`, with an intercept.
        trace: `tr(Φᵀ W Φ)/N`, which is `tr(W½ K W½)/N`, after `finish`; with the mean.
    """

    def __init__(self, features: int, columns: int, intercept: bool = False):
        self.gram = np.zeros((features, features))
        self.right = np.zeros((features, columns))
        self.squared = np.zeros(columns)
        self.rows, self.count, self.trace = 0, 0.0, 0.0
        self.intercept = intercept
        self.centre: np.ndarray | None = None
        self._f, self._of_y, self._s = np.zeros(features), np.zeros(columns), 0.0

    @staticmethod
    def memory(features: int, columns: int) -> float:
        """Return the bytes that this takes with its factor, beside a chunk of rows."""
        return 8.0 * (3.0 * features**2 + 4.0 * features * columns)

    def add(
        self,
        phi: np.ndarray,
        y: np.ndarray,
        weights: np.ndarray | None = None,
        ones: np.ndarray | None = None,
    ) -> None:
        """Add some rows.

        Args:
            phi: Features, `(k, F)`.
            y: Targets, `(k, c)`.
            weights: How often each row counts, `(k,)`. Defaults to once.
            ones: What a constant of one is in these rows, `(k,)`, where they are scaled
                already. Defaults to ones.
        """
        self.rows += len(y)
        ones = np.ones(len(y)) if ones is None else ones
        if self.intercept:  # about a mean, so that few digits are lost
            if self.centre is None:
                self.centre = np.mean(y, axis=0, dtype="float64")
            y = y - np.outer(ones, self.centre)
        if weights is None:
            self.count += len(y)
        else:
            root = np.sqrt(np.asarray(weights, "float64"))[:, None]
            phi, y, ones = root * phi, root * y, root[:, 0] * ones
            self.count += float(np.sum(weights, dtype="float64"))
        if self.intercept:
            self._f += ones @ phi
            self._of_y += ones @ y
            self._s += float(ones @ ones)
        for begin in range(0, len(self.gram), BLOCK):  # the lower triangle, by columns
            end = begin + BLOCK
            self.gram[begin:, begin:end] += phi[:, begin:].T @ phi[:, begin:end]
        self.right += phi.T @ y
        self.squared += np.sum(np.square(y, dtype="float64"), axis=0)

    def finish(self) -> NormalEquations:
        """Take means instead of sums, after the last row."""
        gram = self.gram
        for begin in range(0, len(gram), BLOCK):
            end = begin + BLOCK
            gram[begin:end, end:] = gram[end:, begin:end].T
        gram /= self.count
        self.right /= self.count
        self.trace = float(np.trace(gram))
        if self.intercept:
            gram -= np.outer(self._f, self._f / (self._s * self.count))
            self.right -= np.outer(self._f, self._of_y / (self._s * self.count))
            self.squared -= self._of_y**2 / self._s
        return self

    def constant(self, w: np.ndarray) -> np.ndarray | None:
        """Return `b`, `(c,)`, for `w`, `(F, c)`; `None` without an intercept."""
        if self.centre is None:
            return None
        return self.centre + (self._of_y - self._f @ w) / self._s

    @property
    def small(self) -> bool:
        """Whether an eigendecomposition is affordable."""
        return len(self.gram) <= ALL_RIDGES

    @functools.cached_property
    def basis(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of `G`, none negative, and its eigenvectors."""
        values, vectors = _linalg.eigh(self.gram)
        return np.maximum(values, 0.0), vectors

    def solve(self, ridge: float) -> tuple[np.ndarray, float]:
        """Return `w`, `(F, c)`, refined, and the jitter that the factor needed."""
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
        unit = float(np.finfo(float).eps) * max(self.trace / len(matrix), ridge)
        for jitter in (unit * height for height in _linalg.ladder(1.0, MOST_JITTER)):
            matrix[diagonal] = self.gram[diagonal] + ridge + jitter
            try:
                return np.linalg.cholesky(matrix), jitter
            except np.linalg.LinAlgError:
                continue  # rounding has made it indefinite: the next jitter
        raise ValueError(
            "JᵀJ/n + λI is not positive definite, even with jitter on its diagonal. Use a "
            f"larger ridge. Received: ridge={ridge:.3g}, jitter up to {jitter:.1e}"
        )

    def residual(self, w: np.ndarray, ridge: float) -> np.ndarray:
        """Return `|y − (K/n + λI) α| / |y|`, `(c,)`, for the `α` with `λα = y − Φw`.

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
        """Return `tr G (G + λI)⁻¹`, and one more for a constant."""
        values = self.basis[0]
        return float(np.sum(values / (values + ridge))) + self.intercept

    def dual_squared(self, w: np.ndarray, ridge: float) -> float:
        """Return `|α|²` of all targets, `|y − Φw|²/λ²`."""
        inner = np.sum(w * (self.gram @ w)) - 2.0 * np.sum(w * self.right)
        return max(float(np.sum(self.squared) + self.count * inner), 0.0) / ridge**2


def _solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    lower = tf.constant(factor)
    half = tf.linalg.triangular_solve(lower, tf.constant(right))
    return tf.linalg.triangular_solve(lower, half, adjoint=True).numpy()
