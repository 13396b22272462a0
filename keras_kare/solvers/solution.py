"""What every solver of `(K/n + λI) α = y` gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ADVICE = {
    "direct": "Take a larger ridge or another solver.",
    "iterations": "Take a larger ridge, more iterations, or another solver.",
    "time": "Take a larger `time_budget`, a larger ridge, or another solver.",
    "stalled": "Rounding errors allow no more: take a larger ridge, or another solver.",
    "interrupted": "Call `fit_head` again, and let it end.",
}
"""What to do about a solution that has not converged, by why it was `stopped`."""


@dataclass(frozen=True)
class Solution:
    """A solved kernel ridge regression, and how the solving went.

    What a solver does not make is `None`. Rows may count `N` times in all: then the system
    is the one of `keras_kare.risk`, `W½ K W½/N + λI`, `W½ y`.

    Attributes:
        ridge: `λ`.
        solver: Name of the solver.
        rows: `n`.
        columns: `c`, the number of targets.
        count: `N`; `n` where each row counts once.
        dual: `α = (K/n + λI)⁻¹ y`, `(n, c)` float64; `(m, c)` where there are centres.
        centres: Numbers of the rows that `dual` belongs to, where not to all.
        weights: `w = (1/n) Jᵀ α`, `(F, c)` float64, in the order of `kernel.feature_rows`.
        constant: `b`, `(c,)`, of a machine with an intercept.
        inverse_diagonal: `diag((K/n + λI)⁻¹)`, `(n,)`; with an intercept, of the `P` that
            stands in for the inverse.
        freedom: Degrees of freedom, the constant's with them.
        squared: `|α|²` summed over all columns.
        loo_errors: Mean squared leave-one-out error of each target, `(c,)`.
        residual: The largest over the targets of `|y − (K/n + λI) α| / |y|`, computed
            from the solution itself. Predictions of the training rows are off by at most
            that share of `|y|`. (`primal`, `nystrom`: of the system that they solve.)
        tolerance: What the residual should be at most.
        jitter: What had to be added to `λ` for the factorisation to succeed.
        kernel_error: `(tr K − tr K̂)/tr K` where an approximation `K̂` was solved.
        iterations: Number of iterations, 0 for direct solvers.
        seconds: Of solving, without what was prepared for all ridges.
        stopped: Why it ended: `"direct"`, `"tolerance"`, `"iterations"`, `"time"`,
            `"stalled"` (rounding errors allow no more), or `"interrupted"`.
    """

    # The system
    ridge: float
    solver: str
    rows: int
    columns: int
    count: float | None = None

    # The answer
    dual: np.ndarray | None = None
    centres: np.ndarray | None = None
    weights: np.ndarray | None = None
    constant: np.ndarray | None = None

    # Of its risk: the first, or the others where a solver knows no more
    inverse_diagonal: np.ndarray | None = None
    freedom: float | None = None
    squared: float | None = None
    loo_errors: np.ndarray | None = None

    # How the solving went
    residual: float | None = None
    tolerance: float = 1e-6
    jitter: float = 0.0
    kernel_error: float | None = None
    iterations: int = 0
    seconds: float = 0.0
    stopped: str = "direct"

    @property
    def converged(self) -> bool:
        """Whether the residual is as small as it should be."""
        return self.residual is None or self.residual <= self.tolerance

    @property
    def leave_one_out_mse(self) -> float | None:
        """Mean squared leave-one-out error, in the units of `y²`."""
        return self.leave_one_out_error(np.ones(self.columns))

    def leave_one_out_error(self, scales: np.ndarray) -> float | None:
        """Return the mean squared leave-one-out error, each target divided by its scale.

        The residual of row i is `α_i / (A⁻¹)_ii`.

        Args:
            scales: `(c,)`.
        """
        if self.inverse_diagonal is None or self.dual is None:
            found = self.loo_errors
            return None if found is None else float(np.mean(found / scales))
        residual = self.dual / self.inverse_diagonal[:, None]
        return float(np.sum(residual**2 / scales) / (self._count * self.columns))

    @property
    def kare(self) -> float | None:
        """KARE at `z = λ`; `None` where unknown, or where rows count too little."""
        squared = self._squared
        if self.inverse_diagonal is not None:
            trace = float(np.sum(self.inverse_diagonal))
        elif self.freedom is not None:
            trace = (self.rows - self.freedom) / self.ridge
        else:
            return None
        if squared is None:
            return None
        t = (trace + (self._count - self.rows) / self.ridge) / self._count
        if t <= 0.0:
            return None
        return float(squared / (self._count * self.columns) / t**2)

    @property
    def effective_dimension(self) -> float | None:
        """Degrees of freedom, `tr K (K + nλI)⁻¹ = n − λ tr(A⁻¹)`, where known.

        With an intercept, one more: that of the constant.
        """
        if self.inverse_diagonal is None:
            return self.freedom
        return float(self.rows - self.ridge * np.sum(self.inverse_diagonal))

    @property
    def _squared(self) -> float | None:
        if self.squared is not None or self.dual is None or self.centres is not None:
            return self.squared
        return float(np.sum(self.dual**2))

    @property
    def _count(self) -> float:
        return self.rows if self.count is None else self.count
