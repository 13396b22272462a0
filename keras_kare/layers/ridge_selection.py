"""Choosing the ridge of a kernel machine: all candidates at once, or downhill.

Errors of several targets are measured in each target's own unit, its mean square on the
training rows (about its mean, for a machine with an intercept): what is chosen does not
change when a target is given in other units. A target that is zero throughout has no say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_kare.solvers import Prepared, Solution

GRID = np.logspace(-8, 4, 49)
"""Candidates for `λ̃`, relative to `tr(K)/n²`: four a decade."""

COARSE = np.logspace(2, -4, 7)
"""Candidates where each takes iterations: one a decade, the largest first."""

ROUGH = 1e-3
"""Residual to which candidates are solved then."""

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
    prepared: Prepared,
    predict: Callable[[Solution], np.ndarray],
    targets: np.ndarray,
    weights: np.ndarray | None,
    by: str,
) -> Choice:
    """The ridge with the least squared error on other rows.

    Args:
        prepared: What is solved.
        predict: What a solution predicts for the other rows.
        targets: Of the other rows, `(v, c)`.
        weights: How often each of the other rows counts, `(v,)`; `None` for once.
        by: How the report should name these rows.
    """
    scales = _scales(prepared)

    def error(solution: Solution) -> float:
        squared = np.mean((predict(solution) - targets) ** 2 / scales, axis=1)
        return float(np.average(squared, weights=weights))

    if prepared.direct:
        return _least(prepared, error, by)
    return _downhill(prepared, error, by)


def by_leave_one_out(prepared: Prepared) -> Choice:
    """The ridge with the least leave-one-out error. Only for kernels that never saw y."""
    scales = _scales(prepared)

    def error(solution: Solution) -> float:
        found = solution.leave_one_out_error(scales)
        assert found is not None
        return found

    return _least(prepared, error, "leave-one-out")


def _scales(prepared: Prepared) -> np.ndarray:
    """What squared errors of each target are divided by, `(c,)`."""
    scales = prepared.scales
    return np.where(scales > 0.0, scales, np.inf)


def _least(prepared: Prepared, error: Callable[[Solution], float], by: str) -> Choice:
    solutions = prepared.solve_grid(GRID * prepared.unit)
    errors = np.array([error(solution) for solution in solutions])
    # Of equals, the largest ridge: the simplest machine.
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))
    return Choice(ridge=float(GRID[best]), by=by)


def _downhill(prepared: Prepared, error: Callable[[Solution], float], by: str) -> Choice:
    """From large ridges, which iterations solve at once, to the first rise and beyond.

    Each solution begins with the last. Where the error has risen twice in a row, or a
    ridge could not be solved for, smaller ones are not tried.
    """
    rough, solution = prepared.rough(ROUGH), None
    found: list[float] = []
    for ridge in COARSE:
        solution = rough.solve(float(ridge) * prepared.unit, solution)
        if not solution.converged and found:
            break
        found.append(error(solution))
        if len(found) > 2 and found[-1] > found[-2] > found[-3]:
            break
    return Choice(ridge=float(COARSE[int(np.argmin(found))]), by=by)
