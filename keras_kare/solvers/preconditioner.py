"""A preconditioner for `K/n + λI`: a randomised Nyström approximation of `K`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._linalg import eigh, inverse_cholesky
from keras_kare.kernels.operator import KernelOperator

BLOCK = 256
"""Columns that are chosen at a time."""

NEGLIGIBLE = 1e-12
"""Of the trace: what is left of a kernel below this is rounding."""


class NystromPreconditioner:
    """`M = F Fᵀ/n + λI`, where `F Fᵀ` is a Nyström approximation of `K`.

    Columns of `K` are drawn in blocks, with probabilities in proportion to the diagonal
    of what is not yet approximated (randomly pivoted Cholesky), so that duplicated rows
    are drawn once, and a kernel of low rank is found exactly. More columns can be added
    later. By Woodbury,

        M⁻¹ r = (r − F (FᵀF + nλI)⁻¹ Fᵀ r)/λ.

    Args:
        operator: `K`.
        seed: Of the draws.

    Attributes:
        rank: `k`, the number of columns of `F`.
        left: Share of the trace of `K` that `F Fᵀ` lacks.

    References:
        - Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky", arXiv:2207.06503.
        - Díaz, Epperly, Frangella, Tropp, Webber, "Robust, randomized preconditioning
          for kernel ridge regression", arXiv:2304.12465.
        - Frangella, Tropp, Udell, "Randomized Nyström preconditioning",
          arXiv:2110.02820.
    """

    def __init__(self, operator: KernelOperator, seed: int):
        self._operator, self._rng = operator, np.random.default_rng(seed)
        self._diagonal = np.maximum(operator.diagonal, 0.0).copy()
        self._trace = float(np.sum(self._diagonal))
        self._blocks: list[np.ndarray] = []  # never copied: they are most of the memory
        self._inner = np.empty((0, 0))  # FᵀF
        self._drawn = np.zeros(operator.rows, bool)
        self.rank = 0
        self._factor: tuple[Any, np.ndarray] = (None, np.empty((0, 0)))

    @property
    def left(self) -> float:
        return float(np.sum(self._diagonal)) / self._trace

    @property
    def complete(self) -> bool:
        """Whether nothing of the kernel is left to approximate."""
        return self.left <= NEGLIGIBLE

    def grow(self, rank: int) -> None:
        """Draw columns until there are `rank`, or none is worth it."""
        rank = min(rank, self._operator.rows)
        while self.rank < rank and not self.complete:
            if not self._add(min(BLOCK, rank - self.rank)):
                break

    def apply(self, r: np.ndarray, ridge: float) -> np.ndarray:
        """Return `M⁻¹ r` for `r` of shape `(n, c)`."""
        if not self.rank:
            return r / ridge
        lower = self._inverse_factor(ridge)
        inner = lower @ np.concatenate([block.T @ r for block in self._blocks])
        inner = lower.T @ inner
        left = r - self._times(inner)
        left /= ridge
        return left

    def _inverse_factor(self, ridge: float) -> np.ndarray:
        """Return `L⁻¹` of `FᵀF + nλI = L Lᵀ`, `(k, k)`, kept for this ridge and rank."""
        key = (ridge, self.rank)
        if self._factor[0] != key:
            matrix = self._inner.copy()
            matrix[np.diag_indices(self.rank)] += ridge * self._operator.rows
            lower, _ = inverse_cholesky(tf.constant(matrix))
            self._factor = key, lower.numpy()
        return self._factor[1]

    def _times(self, v: np.ndarray) -> np.ndarray:
        """Return `F v`."""
        total, begin = np.zeros((self._operator.rows, v.shape[1])), 0
        for block in self._blocks:
            end = begin + block.shape[1]
            total += block @ v[begin:end]
            begin = end
        return total

    def _add(self, count: int) -> bool:
        """Draw one block of columns; tell whether any was left."""
        weights = np.where(self._drawn, 0.0, self._diagonal)
        weights[weights <= NEGLIGIBLE * self._trace / len(weights)] = 0.0
        count = min(count, int(np.count_nonzero(weights)))
        if not count:
            self._diagonal[:] = 0.0
            return False
        drawn = self._rng.choice(
            len(weights), count, replace=False, p=weights / np.sum(weights)
        )
        self._drawn[drawn] = True
        columns = self._operator.columns(drawn)
        for block in self._blocks:
            columns -= block @ block[drawn].T
        # Of rows that were drawn together and are alike, one is kept.
        values, vectors = eigh(0.5 * (columns[drawn] + columns[drawn].T))
        kept = values > 1e-10 * self._trace / len(weights)
        found = int(np.count_nonzero(kept))
        if not found:
            return True
        added = columns @ (vectors[:, kept] / np.sqrt(values[kept]))
        self._blocks.append(added)
        self.rank += found
        across = np.concatenate([block.T @ added for block in self._blocks])
        inner = np.empty((self.rank, self.rank))
        inner[:-found, :-found] = self._inner
        inner[:, -found:], inner[-found:] = across, across.T
        self._inner = inner
        self._diagonal = np.maximum(self._diagonal - np.sum(added**2, axis=1), 0.0)
        return True
