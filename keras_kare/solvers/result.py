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
    """

    dual: np.ndarray
    ridge: float
    inverse_diagonal: np.ndarray
    jitter: float
    solver: str

    @property
    def leave_one_out_mse(self) -> float:
        """Mean squared leave-one-out error: residual of row i is `α_i / (A⁻¹)_ii`."""
        residual = self.dual / self.inverse_diagonal[:, None]
        return float(np.mean(residual**2))

    @property
    def kare(self) -> float:
        """KARE at `z = λ`."""
        return float(np.mean(self.dual**2) / np.mean(self.inverse_diagonal) ** 2)

    @property
    def effective_dimension(self) -> float:
        """Degrees of freedom, `tr K (K + nλI)⁻¹ = n − λ tr(A⁻¹)`."""
        n = len(self.inverse_diagonal)
        return float(n - self.ridge * np.sum(self.inverse_diagonal))
