"""From a problem to its solution: which solver, which ridge, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_kare import solvers
from keras_kare.kernels import memory
from keras_kare.machine import ridge as ridges
from keras_kare.machine.calibration import Evidence
from keras_kare.machine.evidence import VALIDATED, left_out, of_rows
from keras_kare.machine.prediction import Predictor
from keras_kare.machine.problem import Problem, Rows
from keras_kare.machine.ridge import Choice, Way
from keras_kare.solvers import Decision, Prepared, Solution, Solver, StreamSystem, System

TOLD = (
    "rows",
    "leave_one_out_mse",
    "kare",
    "effective_dimension",
    "jitter",
    "solver",
    "residual",
    "tolerance",
    "converged",
    "iterations",
    "stopped",
    "kernel_error",
)
"""What a head's report says of a solution, under the solution's own names."""


@dataclass(frozen=True)
class Solved:
    """A solution, and how it came about.

    Attributes:
        prepared: What the solver made of the problem's system.
        solution: At the ridge that was chosen.
        choice: That ridge.
        why: Why this solver.
        evidence: What the machine says of rows that it has not seen, where targets stand
            for classes and there are such rows.
    """

    prepared: Prepared
    solution: Solution
    choice: Choice
    why: str
    evidence: Evidence | None

    def report(self, relative: bool) -> dict[str, Any]:
        """Return what is told of it, as JSON; the ridge also as the user gave it."""
        solution = self.solution
        relative_ridge = solution.ridge / self.prepared.unit
        constant = solution.constant
        return {
            "ridge": relative_ridge if relative else solution.ridge,
            "ridge_value": solution.ridge,
            "relative_ridge": relative_ridge,
            "chosen_by": self.choice.by,
            "why": self.why,
            **{name: getattr(solution, name) for name in TOLD},
            "intercept": None if constant is None else constant.tolist(),
            "calibrated_by": None if self.evidence is None else self.evidence.by,
        }

    def check_interrupted(self) -> None:
        """Raise what was interrupted, after what there is has been stored.

        Raises:
            KeyboardInterrupt: With what the head holds.
        """
        if self.solution.stopped != "interrupted":
            return
        stopped = KeyboardInterrupt()
        stopped.add_note(
            "The head holds the best iterate, whose relative residual is "
            f"{self.solution.residual:.2g}: `predict` works."
        )
        raise stopped


def solve(
    problem: Problem,
    solver: Solver | str,
    choice: Choice | Way,
    validation: Rows | None = None,
) -> Solved:
    """Solve at a ridge that was chosen before, or choose one first.

    Args:
        problem: The problem.
        solver: How; `"auto"`: the exact solver that takes fewest operations.
        choice: The ridge, or a way to choose it.
        validation: Rows for that.
    """
    prepared, why = prepare(problem, solver, one_ridge=isinstance(choice, Choice))
    if not isinstance(choice, Choice):
        choice = choice(problem, prepared, validation)
    solution = prepared.checked(prepared.solve(choice.absolute(prepared.unit)))
    evidence = choice.evidence or _evidence(problem, prepared, solution, validation)
    return Solved(prepared, solution, choice, why, evidence)


def _evidence(
    problem: Problem, prepared: Prepared, solution: Solution, validation: Rows | None
) -> Evidence | None:
    """Return what a solution says of validation rows, or of each row without it."""
    if validation is None:
        return left_out(problem, solution)
    predict = Predictor(problem.kernel, prepared, validation.x)
    return of_rows(problem, validation, predict, solution, VALIDATED)


def held_out(problem: Problem, solver: Solver | str, ridge: float) -> Evidence | None:
    """Return what the machine of nine tenths of the rows says of the others.

    Args:
        problem: The problem, of rows in memory.
        solver: How.
        ridge: `λ̃`.
    """
    rest, held = problem.held_out(ridges.MOST_HELD_OUT)
    prepared, _ = prepare(rest, solver, one_ridge=True)
    prepared = prepared.rough(ridges.ROUGH)
    solution = prepared.solve(ridge * prepared.unit)
    predict = Predictor(rest.kernel, prepared, held.x)
    return of_rows(rest, held, predict, solution, f"hold-out ({len(held)} rows)")


def choose_ridge(
    problem: Problem, solver: Solver | str, validation: Rows, by: str
) -> Choice:
    """Choose a ridge on rows that trained nothing, for a machine that is not kept."""
    prepared, _ = prepare(problem, solver)
    return ridges.by_rows(problem, prepared, validation, by)


def prepare(
    problem: Problem, solver: Solver | str, one_ridge: bool = False
) -> tuple[Prepared, str]:
    """Prepare the problem's system, for one ridge or many, and say why by this solver."""
    system = problem.system()
    decision = decide(system, 1 if one_ridge else len(ridges.GRID), solver)
    return decision.solver.prepare(system), decision.why


def decide(system: System | StreamSystem, count: int, wanted: Solver | str) -> Decision:
    """Take the user's solver, or, for `"auto"`, the one that takes fewest operations.

    Args:
        system: What is solved.
        count: For how many ridges.
        wanted: A solver, or `"auto"`.
    """
    if isinstance(wanted, Solver):
        return Decision(wanted, "the user")
    assert isinstance(system, System)  # streams are for solvers that the user names
    limit = memory.default_limit()
    return solvers.decide(system.operator, system.columns, count, limit)
