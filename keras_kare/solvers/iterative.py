"""What solvers that iterate have in common: a budget, Ctrl-C, and the best iterate."""

from __future__ import annotations

import abc
import contextlib
import copy
import time
from typing import Any, ClassVar, Self

import numpy as np

from keras_kare import _validation
from keras_kare._progress import Progress
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import AbstractSystem, relative


class Iterative(Solver):
    """A solver that iterates, until the tolerance, a number of steps, or time ends it.

    Attributes:
        step_name: What the user calls a step.
        seed: Of its draws.
        time_budget: Seconds after which it ends; `None` for any.
    """

    step_name: ClassVar[str]
    seed: int
    time_budget: float | None

    def __init__(
        self,
        tolerance: float,
        memory_limit: int | None,
        time_budget: float | None,
        seed: int,
    ) -> None:
        _validation.check_whole("seed", seed, 0)
        _validation.check_positive("time_budget", time_budget, None)
        super().__init__(tolerance, memory_limit)
        self.time_budget, self.seed = time_budget, seed

    @property
    @abc.abstractmethod
    def most_steps(self) -> int:
        """The number of steps after which it ends."""


class IterativePrepared(Prepared):
    """A system on which a solver iterates, each ridge anew.

    Attributes:
        begun: When the user's time has begun, by `time.monotonic()`.
    """

    exact_leave_one_out = False
    direct = False
    solver: Iterative

    def __init__(self, system: AbstractSystem, solver: Iterative):
        super().__init__(system, solver)
        self.begun = time.monotonic()

    def rough(self, tolerance: float) -> IterativePrepared:
        other = copy.copy(self)
        other.solver = copy.copy(self.solver)
        other.solver.tolerance = tolerance
        return other

    def out_of_time(self) -> bool:
        """Tell whether the user's time is over."""
        budget = self.solver.time_budget
        return budget is not None and time.monotonic() - self.begun > budget

    def _solution(self, run: Run, begun: float, **answer: Any) -> Solution:
        """Return the answer that a run has found, and how that went."""
        return Solution(
            ridge=run.ridge,
            residual=run.residual,
            iterations=run.steps,
            stopped=run.stopped,
            **answer,
            **self.facts(begun),
        )


class Run(abc.ABC):
    """Steps at one ridge, for all targets side by side.

    Args:
        y: What stands in for `y`, `(n, c)`.
        ridge: `λ`.
        solver: When to end.

    Attributes:
        best: The iterate with the smallest true residual that was found, `(n, c)`.
        residual: That residual, the largest over the targets.
        steps: How many were completed.
        stopped: Why it ended, as in `Solution`.
    """

    def __init__(self, y: np.ndarray, ridge: float, solver: Iterative):
        self.y, self.ridge, self.solver = y, ridge, solver
        self.best, self.residual = np.zeros_like(y), worst(y, y)
        self.steps, self.stopped = 0, "iterations"

    def go(self) -> Self:
        """Iterate until something says stop; `best` is then the best iterate."""
        # Most runs end long before the most steps: no total, and so no time that is left.
        progress = Progress(None, self.solver.step_name)
        try:
            self.stopped = self._iterate(progress)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            # The iterate is better than the last one looked at; a second Ctrl-C skips this.
            with contextlib.suppress(KeyboardInterrupt):
                self._look()
        finally:
            progress.close()
        return self

    @abc.abstractmethod
    def _iterate(self, progress: Progress) -> str:
        """Iterate, and return what said stop."""

    @abc.abstractmethod
    def _look(self) -> np.ndarray:
        """Compute the true residual of the iterate, `(n, c)`, and `_keep` it."""

    def _keep(self, iterate: np.ndarray, r: np.ndarray) -> None:
        """Keep an iterate if it is the best; the last one need not be."""
        found = worst(r, self.y)
        if found < self.residual:
            self.best, self.residual = iterate.copy(), found


def worst(r: np.ndarray, y: np.ndarray) -> float:
    """Return the largest `|r| / |y|` of all targets."""
    return float(np.max(relative(r, y)))
