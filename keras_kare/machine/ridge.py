"""Every way to choose the ridge of a kernel machine.

`ridge="auto"` goes down this list (`choose`):

1. rows that never trained the kernel: validation rows, or those that a rehearsal of the
   training left out (`by_rows`);
2. leave-one-out, for kernels that never saw `y`, where the solver knows it
   (`by_leave_one_out`);
3. rows held out from the solving (`by_held_out`).

The user's own number is `of_user`, validation during training takes that of the loss
(`of_loss`), and where there is no evidence at all `λ̃ = 1` (`without_evidence`). Another
way is a function like `choose`, and one line: `@register_way("its name")`.

Errors of several targets are measured in each target's own unit, its mean square on the
training rows (about its mean, for a machine with an intercept): what is chosen does not
change when a target is given in other units. A target that is zero throughout has no say.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kare import _validation
from keras_kare.machine.calibration import Evidence
from keras_kare.machine.evidence import left_out, of_rows
from keras_kare.machine.prediction import Predictor
from keras_kare.machine.problem import Problem, Rows
from keras_kare.solvers import Prepared, Solution

GRID = np.logspace(-8, 4, 49)
"""Candidates for `λ̃`, relative to `tr(K)/n²`: four a decade."""

COARSE = np.logspace(2, -4, 7)
"""Candidates where each takes iterations: one a decade, the largest first."""

ROUGH = 1e-3
"""Residual to which candidates are solved then."""

MOST_HELD_OUT = 2048
"""Rows that choose a ridge where nothing else can, at most; a tenth of all."""


@dataclass(frozen=True)
class Choice:
    """A chosen ridge.

    Attributes:
        ridge: `λ̃`, or `λ` where not `relative`.
        by: What it was chosen by, for the head's report.
        relative: Whether `ridge` is in units of `tr(K)/n²`.
        evidence: What the machine at this ridge said of rows that it had not seen, where
            targets stand for classes.
        error: The mean squared error of such rows, where they chose.
    """

    ridge: float
    by: str
    relative: bool = True
    evidence: Evidence | None = dataclasses.field(default=None, compare=False, repr=False)
    error: float | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return what another choice of this ridge is made with."""
        return {"ridge": self.ridge, "by": self.by, "relative": self.relative}

    def absolute(self, unit: float) -> float:
        """Return `λ`, where `unit` is that of a relative ridge, `tr(K)/n²`."""
        return self.ridge * unit if self.relative else self.ridge


Way = Callable[[Problem, Prepared, Rows | None], Choice]
"""What chooses: from a problem, its prepared system, and rows that trained nothing."""

WAYS: dict[str, Way] = {}
"""Ways to choose by name, for `ridge="..."` of a head."""


def register_way(name: str) -> Callable[[Way], Way]:
    """Return a decorator: heads with `ridge=name` choose by what it decorates."""

    def registered(way: Way) -> Way:
        WAYS[name] = way
        return way

    return registered


def check(ridge: Any) -> None:
    """Refuse what is no positive number and no name of a way.

    Raises:
        ValueError: That names `ridge`.
    """
    if not (isinstance(ridge, str) and ridge in WAYS):
        _validation.check_positive("ridge", ridge, "auto")


def of_user(ridge: float | str, relative: bool) -> Choice | Way:
    """Return the number that the user gave, or the way that he named."""
    if isinstance(ridge, str):
        return WAYS[ridge]
    return Choice(float(ridge), "the user", relative)


def of_loss(loss: Any) -> Choice:
    """Return the ridge at which KARE is minimised, for validation during training."""
    return Choice(loss.ridge, by="the loss", relative=loss.relative)


def without_evidence(by: str, why: str = "", stacklevel: int = 2) -> Choice:
    """Return `λ̃ = 1`, where no rows can choose: a trained kernel without others.

    Args:
        by: For the head's report.
        why: What the user is warned of, if of anything.
        stacklevel: Of that warning, counted from the caller.
    """
    if why:
        warnings.warn(why, stacklevel=stacklevel + 1)
    return Choice(1.0, by=by)


@register_way("auto")
def choose(problem: Problem, prepared: Prepared, validation: Rows | None) -> Choice:
    """Choose on validation rows, else by leave-one-out, else on rows held out.

    Args:
        problem: What is solved.
        prepared: Its system, prepared.
        validation: Rows that trained nothing, or `None`.
    """
    if validation is not None:
        return by_rows(problem, prepared, validation, "validation data")
    if prepared.exact_leave_one_out:
        return by_leave_one_out(problem, prepared)
    return by_held_out(problem, prepared)


def by_rows(problem: Problem, prepared: Prepared, other: Rows, by: str) -> Choice:
    """Choose the ridge with the least squared error on other rows."""
    scales, targets = _scales(prepared), problem.targets(other.x, other.y)
    predict = Predictor(problem.kernel, prepared, other.x)

    def error(predicted: np.ndarray, scales: np.ndarray | float = 1.0) -> float:
        squared = np.mean((predicted - targets) ** 2 / scales, axis=1)
        return float(np.average(squared, weights=other.weights))

    choose = _least if prepared.direct else _downhill
    choice, solution = choose(prepared, lambda s: error(predict(s), scales), by)
    predicted = predict(solution)
    found = of_rows(problem, other, lambda _: predicted, solution, by)
    return dataclasses.replace(choice, evidence=found, error=error(predicted))


def by_leave_one_out(problem: Problem, prepared: Prepared) -> Choice:
    """Choose the ridge with the least leave-one-out error."""
    scales = _scales(prepared)

    def error(solution: Solution) -> float:
        found = solution.leave_one_out_error(scales)
        assert found is not None
        return found

    choice, solution = _least(prepared, error, "leave-one-out")
    return dataclasses.replace(choice, evidence=left_out(problem, solution))


def by_held_out(problem: Problem, prepared: Prepared) -> Choice:
    """Choose on a tenth of the rows, by machines that were solved on the others."""
    rest, held = problem.held_out(MOST_HELD_OUT)
    others = prepared.solver.prepare(rest.system())
    return by_rows(rest, others, held, f"hold-out ({len(held)} rows)")


def _scales(prepared: Prepared) -> np.ndarray:
    """Return what squared errors of each target are divided by, `(c,)`."""
    scales = prepared.scales
    return np.where(scales > 0.0, scales, np.inf)


def _least(
    prepared: Prepared, error: Callable[[Solution], float], by: str
) -> tuple[Choice, Solution]:
    """Choose among all candidates; of equals the largest: the simplest machine."""
    least, best, ridge = np.inf, None, 0.0
    candidates = prepared.solve_grid(GRID * prepared.unit)
    for candidate, solution in zip(GRID, candidates, strict=True):
        found = error(solution)
        if best is None or found <= least or np.isnan(found):
            least, best, ridge = found, solution, float(candidate)
    assert best is not None
    return Choice(ridge=ridge, by=by), best


def _downhill(
    prepared: Prepared, error: Callable[[Solution], float], by: str
) -> tuple[Choice, Solution]:
    """Choose from large ridges, which iterations solve at once, to the first rise.

    Each solution begins with the last. Where the error has risen twice in a row, or a
    ridge could not be solved for, smaller ones are not tried.
    """
    rough, solution = prepared.rough(ROUGH), None
    found: list[float] = []
    solutions: list[Solution] = []
    for ridge in COARSE:
        solution = rough.solve(float(ridge) * prepared.unit, solution)
        if not solution.converged and found:
            break
        found.append(error(solution))
        solutions.append(solution)
        if len(found) > 2 and found[-1] > found[-2] > found[-3]:
            break
    best = int(np.argmin(found))
    return Choice(ridge=float(COARSE[best]), by=by), solutions[best]
