"""Choosing the ridge of a kernel machine, all candidates from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_kare.solvers import Solution, Spectral

GRID = np.logspace(-8, 4, 49)
"""Candidates for `λ̃`, relative to `tr(K)/n²`: four a decade."""

WITHOUT_EVIDENCE = 1.0
"""`λ̃` where no rows can choose: a trained kernel without validation data."""


@dataclass(frozen=True)
class Choice:
    """A chosen ridge.

    Attributes:
        ridge: `λ̃`, or `λ` where not `relative`.
        by: What it was chosen by, for the head's report.
        relative: Whether `ridge` is in units of `tr(K)/n²`.
    """

    ridge: float
    by: str
    relative: bool = True

    def absolute(self, gram: np.ndarray) -> float:
        """`λ` for this Gram matrix."""
        return self.ridge * unit(gram) if self.relative else self.ridge


def unit(gram: np.ndarray) -> float:
    """`tr(K)/n²`, the unit of a relative ridge."""
    return float(np.trace(gram)) / len(gram) ** 2


def by_rows(
    gram: np.ndarray, y: np.ndarray, cross: np.ndarray, targets: np.ndarray, by: str
) -> tuple[Choice, Solution]:
    """The ridge with the least squared error on other rows.

    Args:
        gram: `(n, n)`.
        y: `(n, c)`.
        cross: Kernel between the other rows and the anchors, `(v, n)`.
        targets: Of the other rows, `(v, c)`.
        by: How the report should name these rows.
    """

    def error(solution: Solution) -> float:
        return float(np.mean((cross @ solution.dual / len(gram) - targets) ** 2))

    return _least(gram, y, error, by)


def by_leave_one_out(gram: np.ndarray, y: np.ndarray) -> tuple[Choice, Solution]:
    """The ridge with the least leave-one-out error. Only for kernels that never saw y."""
    return _least(gram, y, lambda solution: solution.leave_one_out_mse, "leave-one-out")


def _least(
    gram: np.ndarray, y: np.ndarray, error: Callable[[Solution], float], by: str
) -> tuple[Choice, Solution]:
    solutions = Spectral(gram).solve_grid(y, GRID * unit(gram))
    errors = np.array([error(solution) for solution in solutions])
    # Of equals, the largest ridge: the simplest machine.
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return Choice(ridge=float(GRID[best]), by=by), solutions[best]
