"""What every solver of `(K/n + λI) α = y` gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Solution:
    """A solved kernel ridge regression, with what its factorisation tells.

    Attributes:
        dual: `α = (K/n + λI)⁻¹ y`, `(n, c)`, float64.
        ridge: `λ`.
        inverse_diagonal: `diag((K/n + λI)⁻¹)`, `(n,)`.
        jitter: What had to be added to `λ` for the factorisation to succeed.
        solver: Name of the solver.
        count: How often all rows count together, `N`; `n` where each counts once. The
            system then is the one of `keras_kare.risk`: `W½ K W½/N + λI`, `W½ y`.
    """

    dual: np.ndarray
    ridge: float
    inverse_diagonal: np.ndarray
    jitter: float
    solver: str
    count: float | None = None

    @property
    def leave_one_out_mse(self) -> float:
        """Mean squared leave-one-out error: residual of row i is `α_i / (A⁻¹)_ii`."""
        residual = self.dual / self.inverse_diagonal[:, None]
        return float(np.sum(residual**2) / (self._count * self.dual.shape[1]))

    @property
    def kare(self) -> float | None:
        """KARE at `z = λ`; `None` where rows count for less than the freedom they take."""
        repeated = (self._count - len(self.dual)) / self.ridge
        t = (np.sum(self.inverse_diagonal) + repeated) / self._count
        if t <= 0.0:
            return None
        return float(np.sum(self.dual**2) / (self._count * self.dual.shape[1]) / t**2)

    @property
    def _count(self) -> float:
        return len(self.dual) if self.count is None else self.count

    @property
    def effective_dimension(self) -> float:
        """Degrees of freedom, `tr K (K + nλI)⁻¹ = n − λ tr(A⁻¹)`."""
        n = len(self.inverse_diagonal)
        return float(n - self.ridge * np.sum(self.inverse_diagonal))
