"""Choosing the ridge of a kernel machine, all candidates from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_kare.layers.machine import System
from keras_kare.solvers import Solution

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

    def absolute(self, unit: float) -> float:
        """`λ`, where `unit` is that of a relative ridge, `tr(K)/n²`."""
        return self.ridge * unit if self.relative else self.ridge


def by_rows(
    system: System,
    cross: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    by: str,
) -> tuple[Choice, Solution]:
    """The ridge with the least squared error on other rows.

    Args:
        system: What is solved.
        cross: Kernel between the other rows and the anchors, `(v, n)`.
        targets: Of the other rows, `(v, c)`.
        weights: How often each of the other rows counts, `(v,)`; `None` for once.
        by: How the report should name these rows.
    """

    def error(solution: Solution) -> float:
        predictions = cross @ system.dual(solution) / len(system.gram)
        squared = np.mean((predictions - targets) ** 2, axis=1)
        return float(np.average(squared, weights=weights))

    return _least(system, error, by)


def by_leave_one_out(system: System) -> tuple[Choice, Solution]:
    """The ridge with the least leave-one-out error. Only for kernels that never saw y."""
    return _least(system, lambda solution: solution.leave_one_out_mse, "leave-one-out")


def _least(
    system: System, error: Callable[[Solution], float], by: str
) -> tuple[Choice, Solution]:
    solutions = system.solve_grid(GRID * system.unit)
    errors = np.array([error(solution) for solution in solutions])
    # Of equals, the largest ridge: the simplest machine.
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return Choice(ridge=float(GRID[best]), by=by), solutions[best]
