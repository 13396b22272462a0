"""What every solver of `(K/n + λI) α = y` answers."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from keras_kare import _validation
from keras_kare.kernels.memory import default_limit, in_words
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.system import AbstractSystem, System

NO_MATRIX = 'Use `solver="cg"`, which forms no matrix.'


class Solver(abc.ABC):
    """A way to solve `(K/n + λI) α = y`: its hyperparameters, and nothing else.

    A subclass names its hyperparameters in `__init__`, keeps them under the same names,
    and prepares systems. It is registered with Keras, so that heads are saved with it.

    Args:
        tolerance: Residual above which a solution counts as not converged. Defaults to
            `1e-6`.
        memory_limit: Bytes that the work may hold, beside the rows. Defaults to half of
            what is free when it begins.
    """

    name: ClassVar[str]
    centred: ClassVar[bool] = False
    """Whether solutions belong to a few of the rows, which are then the anchors."""
    ordered: ClassVar[bool] = False
    """Whether a stream must yield the same rows in the same order in every pass."""

    def __init__(self, tolerance: float = 1e-6, memory_limit: int | None = None):
        _validation.check_positive("tolerance", tolerance)
        _validation.check_memory_limit(memory_limit)
        self.tolerance, self.memory_limit = tolerance, memory_limit

    @abc.abstractmethod
    def prepare(self, system: AbstractSystem) -> Prepared:
        """Do what is the same for every ridge.

        Args:
            system: A `System`, or a `StreamSystem` where the solver `streams`.

        Raises:
            ValueError: If the solver needs all rows in memory, and they are in a stream.
            MemoryError: Before the work, if it does not fit.
        """

    def streams(self, kernel: Any) -> bool:
        """Tell whether rows may come in batches that are never in memory together."""
        return False

    @abc.abstractmethod
    def memory(self, operator: KernelOperator, columns: int) -> float:
        """Return the bytes that solving takes, beside the rows."""

    def solve(self, operator: KernelOperator, y: np.ndarray, ridge: float) -> Solution:
        """Solve for `α = (K/n + λI)⁻¹ y` at one ridge.

        Args:
            operator: `K`, `(n, n)`.
            y: `(n, c)`.
            ridge: `λ > 0`.
        """
        _validation.check_positive("ridge", ridge)
        return self.prepare(System(operator, y)).solve(float(ridge))

    def limit(self) -> int:
        """Return the bytes that may be held."""
        return default_limit(self.memory_limit)

    def check_memory(self, system: AbstractSystem, advice: str = NO_MATRIX) -> System:
        """Refuse, before the work, a stream and what does not fit; return the system.

        Args:
            system: The system.
            advice: What to do. Defaults to another solver.

        Raises:
            ValueError: If rows are in a stream.
            MemoryError: With what it takes, what there is, and `advice`.
        """
        if not isinstance(system, System):
            raise ValueError(
                f'`solver="{self.name}"` needs all rows in memory. For a stream, use '
                '"primal", "nystrom" or "eigenpro".'
            )
        needed = self.memory(system.operator, system.columns)
        self.check_bytes(needed, system.rows, "rows", advice)
        return system

    def check_bytes(
        self, needed: float, count: int, what: str = "features", advice: str = ""
    ) -> None:
        """Refuse, before the work, so many bytes for `count` of something.

        What was not limited by the user may take all that is free.

        Raises:
            MemoryError: With what it takes, what there is, and `advice`.
        """
        limit = default_limit(self.memory_limit, share=1.0)
        if needed > limit:
            raise MemoryError(
                f'`solver="{self.name}"` takes {in_words(needed)} for {count} {what}, '
                f"and {in_words(limit)} may be used. {advice}".rstrip()
            )

    def get_config(self) -> dict[str, Any]:
        """Return the hyperparameters."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Solver:
        """Make the solver of `get_config()`."""
        return cls(**config)


class Prepared(abc.ABC):
    """A system that one solver has prepared.

    Args:
        system: The system.
        solver: The solver.

    Attributes:
        exact_leave_one_out: Whether solutions know their leave-one-out error.
        direct: Whether many ridges cost little more than one.
    """

    exact_leave_one_out: bool = True
    direct: bool = True

    def __init__(self, system: AbstractSystem, solver: Solver):
        self.system, self.solver = system, solver

    @property
    def unit(self) -> float:
        """The unit of a relative ridge, `tr(K)/n²`."""
        return self.system.unit

    @property
    def scales(self) -> np.ndarray:
        """The mean square of each target, `(c,)`; about its mean with an intercept."""
        return self.system.scales

    @property
    def centred(self) -> bool:
        """Whether solutions belong to a few of the rows, their centres."""
        return self.solver.centred

    def rough(self, tolerance: float) -> Prepared:
        """Return what solves only to this tolerance, where that takes less work."""
        return self

    def for_targets(self, y: np.ndarray) -> Prepared:
        """Return the same system with other targets for all of `system.y`, `(n, c)`."""
        assert isinstance(self.system, System)
        return self.solver.prepare(System(self.system.operator, y))

    @abc.abstractmethod
    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        """Solve at one ridge.

        Args:
            ridge: `λ`.
            start: A solution at another ridge, for solvers that improve one.
        """

    def solve_grid(self, ridges: Iterable[float]) -> Iterator[Solution]:
        """Solve at several ridges `λ`, one after the other."""
        solution = None
        for ridge in ridges:
            solution = self.solve(float(ridge), solution)
            yield solution

    def predictor(self, solution: Solution) -> np.ndarray:
        """Return `α` of the predictor; see `System`."""
        return self.system.predictor(solution)

    def predictor_weights(self, solution: Solution) -> np.ndarray:
        """Return `w` of the predictor; see `System`."""
        return self.system.predictor_weights(solution)

    def anchors_of(self, solution: Solution) -> Any:
        """Return the rows that `α` belongs to; `None` where none are kept."""
        return self.system.anchors_of(solution)

    def checked(self, solution: Solution) -> Solution:
        """Return a solution with its true residual, computed where it is not known."""
        if solution.residual is not None or solution.dual is None:
            return solution
        assert isinstance(self.system, System)
        residual = self.system.residual(solution.dual, solution.ridge)
        return dataclasses.replace(
            solution, residual=float(np.max(residual)), tolerance=self.solver.tolerance
        )

    def facts(self, begun: float) -> dict[str, Any]:
        """Return what every solution says of its system, its solver and its time."""
        return {
            "solver": self.solver.name,
            "rows": self.system.rows,
            "columns": self.system.columns,
            "count": self.system.count,
            "tolerance": self.solver.tolerance,
            "seconds": time.perf_counter() - begun,
        }
