"""Any number of rows, without the matrix: preconditioned conjugate gradients."""

from __future__ import annotations

import copy
import time

import keras
import numpy as np

from keras_kare import _validation
from keras_kare._progress import Progress
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.iterative import Iterative, IterativePrepared, Run
from keras_kare.solvers.preconditioner import NystromPreconditioner
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.system import AbstractSystem, System, relative

FIRST_RANK = 512
"""Columns of the preconditioner to begin with, where the user names none."""

LOOK_AFTER = 5
"""Iterations between two looks at whether more columns would pay."""

REPLACE = 1e-2
"""The true residual is computed whenever the residual has fallen by that much."""


@keras.saving.register_keras_serializable(package="keras_kare")
class CG(Iterative):
    """Conjugate gradients with a randomised Nyström preconditioner, matrix-free.

    Each iteration multiplies `K` with one vector a target, all at once; targets that have
    converged are left out. The residual is the true one, `y − (K/n + λI) α` in float64,
    computed anew each time it has fallen a hundredfold, while the products between may be
    of the network's type (float32). The preconditioner begins with a few hundred columns
    and gets twice as many whenever, by count of operations, that is cheaper than the
    iterations it would save.

    Args:
        tolerance: Of `|y − (K/n + λI) α| / |y|`, for each target. Predictions of the
            training rows are then off by at most that share of `|y|`. Defaults to `1e-5`.
        max_iterations: Defaults to `1000`.
        rank: Columns of the preconditioner. Defaults to `"auto"`, as described.
        time_budget: Seconds after which the best iterate is returned. Defaults to none.
        memory_limit: See `Solver`. The preconditioner takes `8 n` bytes a column, at most
            two thirds of it.
        seed: Of the draws of columns. Defaults to `0`.

    Ctrl-C ends the iterations; the head then holds the best iterate.

    Example:

    ```python
    solver = kk.solvers.CG(tolerance=1e-4, time_budget=600)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0, solver=solver))
    model.fit_head(x, y)
    model.head.report["iterations"], model.head.report["residual"]
    ```

    References:
        - Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems".
        - Frangella, Tropp, Udell, "Randomized Nyström preconditioning",
          arXiv:2110.02820.
        - van der Vorst, Ye, "Residual replacement strategies for Krylov subspace
          iterative methods".
    """

    name = "cg"
    step_name = "iteration"

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_iterations: int = 1000,
        rank: int | str = "auto",
        time_budget: float | None = None,
        memory_limit: int | None = None,
        seed: int = 0,
    ):
        _validation.check_whole("max_iterations", max_iterations, 1)
        if rank != "auto":
            _validation.check_whole("rank", rank, 0)
        super().__init__(tolerance, memory_limit, time_budget, seed)
        self.max_iterations, self.rank = max_iterations, rank

    @property
    def most_steps(self) -> int:
        return self.max_iterations

    def memory(self, operator: KernelOperator, columns: int) -> float:
        rank = FIRST_RANK if self.rank == "auto" else int(self.rank)
        vectors = 8.0 * operator.rows * columns * 8.0
        return vectors + 16.0 * operator.rows * min(rank, operator.rows)

    def prepare(self, system: AbstractSystem) -> CGPrepared:
        advice = "Name a smaller `rank` of the preconditioner."
        return CGPrepared(self.check_memory(system, advice), self)


class CGPrepared(IterativePrepared):
    """The preconditioner, which serves every ridge."""

    system: System
    solver: CG

    def __init__(self, system: System, solver: CG):
        super().__init__(system, solver)
        self.preconditioner = NystromPreconditioner(system.operator, solver.seed)
        first = FIRST_RANK if solver.rank == "auto" else int(solver.rank)
        self.preconditioner.grow(min(first, self._most_columns()))

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = _CGRun(self, ridge, None if start is None else start.dual).go()
        return self._solution(run, begun, **self.system.finished(run.best))

    def for_targets(self, y: np.ndarray) -> CGPrepared:
        other = copy.copy(self)  # with the same preconditioner
        other.system = System(self.system.operator, y)
        return other

    def more_columns(self, iterations: float) -> bool:
        """Draw twice the columns if that costs less than so many iterations; tell so."""
        rank, system = self.preconditioner.rank, self.system
        if self.solver.rank != "auto" or self.preconditioner.complete or not rank:
            return False
        wanted = min(2 * rank, self._most_columns(), system.rows)
        if wanted <= rank:
            return False
        added, rows = wanted - rank, system.rows
        # In float64: columns, less what is known of them, their products, and a factor.
        build = rows * added * (system.operator.pair_flops + 4.0 * wanted)
        build += float(wanted) ** 3
        each = 8.0 * rows * rank * system.columns
        work = system.operator.product_flops(system.columns)
        each += 0.5 * work if system.operator.narrow else work
        # Twice the columns save about half of the iterations.
        if 0.5 * iterations * each < build:
            return False
        self.preconditioner.grow(wanted)
        return True

    def _most_columns(self) -> int:
        """Return of how many columns blocks, and six matrices of their products, fit."""
        share, rows = 2.0 * self.solver.limit() / 3.0, float(self.system.rows)
        # 8 n k + 6 · 8 k² = share
        return max(0, int((np.sqrt(rows**2 + 3.0 * share) - rows) / 12.0))


class _CGRun(Run):
    """Conjugate gradients at one ridge.

    Targets go on until their true residual is small. It is computed anew when the residual
    that the iterations update has fallen far, says that a target is done, or makes no
    sense; where both have drifted apart, products in float64 take over, and directions
    begin anew. Where that was not the reason three times, rounding allows no more.

    Args:
        prepared: The system and its preconditioner.
        ridge: `λ`.
        start: `α` to begin with, `(n, c)`; zero where there is none.
    """

    def __init__(self, prepared: CGPrepared, ridge: float, start: np.ndarray | None):
        super().__init__(prepared.system.y, ridge, prepared.solver)
        self.prepared, self.system = prepared, prepared.system
        self.x = np.zeros_like(self.y) if start is None else start.copy()
        self.dtype = "float32" if self.system.operator.narrow else "float64"
        self._failures = 0

    def _look(self) -> np.ndarray:
        matmul, zero = self.system.matmul, not np.any(self.x)
        r = self.y - (0.0 if zero else matmul(self.x, self.ridge))
        self._keep(self.x, r)
        return r

    def _iterate(self, progress: Progress) -> str:
        r = self._look()
        self._true = seen = relative(r, self.y)
        self._go_on(r)
        looked, then = 0, np.max(seen)
        while (stopped := self._over()) is None:
            sound = self._directions.step(self.dtype)
            self.steps += 1
            seen = relative(self._directions.r, self.y)
            progress.step(self.steps, float(np.max(seen)))
            if self._doubtful(sound, seen):
                self._replace(sound, seen)
                seen = self._true
            if self.steps - looked >= LOOK_AFTER and self._over() is None:
                self._improve_preconditioner(then, np.max(seen), self.steps - looked)
                looked, then = self.steps, np.max(seen)
        if not np.array_equal(self.x, self.best):
            self._look()
        return stopped

    def _over(self) -> str | None:
        """Return why to stop, if so."""
        if self._failures > 2:
            return "stalled"
        if not self._directions.active.size:
            return "tolerance"
        if self.steps >= self.solver.most_steps:
            return "iterations"
        return "time" if self.prepared.out_of_time() else None

    def _go_on(self, r: np.ndarray, before: _Directions | None = None) -> None:
        """Go on with the targets that have not converged by their true residual."""
        active = np.flatnonzero(self._true > self.solver.tolerance)
        self._directions = _Directions(self, r, active, before)

    def _doubtful(self, sound: bool, seen: np.ndarray) -> bool:
        """Tell whether it is time for the true residual."""
        done = seen[self._directions.active] <= 0.5 * self.solver.tolerance
        return not sound or bool(np.any(done) or np.any(seen < REPLACE * self._true))

    def _replace(self, sound: bool, seen: np.ndarray) -> None:
        """Put the true residual in place of the one that iterations have updated."""
        active, last, r = self._directions.active, self._true, self._look()
        self._true = relative(r, self.y)
        most = np.maximum(2.0 * seen[active], self.solver.tolerance)
        drifted = not sound or bool(np.any(self._true[active] > most))
        if drifted and self.dtype == "float32":
            self.dtype = "float64"
        elif drifted and np.max(self._true) > 0.5 * np.max(last):
            self._failures += 1
        self._go_on(r, None if drifted else self._directions)

    def _improve_preconditioner(self, then: float, now: float, steps: int) -> None:
        """Draw more columns where they pay, by the pace of the last steps."""
        target = 0.5 * self.solver.tolerance
        left = float(self.solver.most_steps - self.steps)
        if now <= target:
            left = 0.0
        elif now < then:
            left = min(left, float(np.log(now / target) / np.log(then / now) * steps))
        if self.prepared.more_columns(left):
            active = self._directions.active
            self._directions = _Directions(self, self._look(), active)


class _Directions:
    """Residuals and search directions of the targets that have not converged.

    Args:
        run: The run.
        r: Residuals of all targets, `(n, c)`.
        active: Which targets go on.
        before: Directions to go on with; without them, steepest descent begins anew.
    """

    def __init__(
        self,
        run: _CGRun,
        r: np.ndarray,
        active: np.ndarray,
        before: _Directions | None = None,
    ):
        self.run, self.active = run, active
        self.r = r.copy()
        z = run.prepared.preconditioner.apply(r[:, active], run.ridge)
        self.rz = np.sum(r[:, active] * z, axis=0)
        self.p = z
        if before is not None and active.size:
            kept = np.isin(before.active, active)
            old = before.rz[kept]
            beta = np.divide(self.rz, old, out=np.zeros_like(old), where=old > 0)
            self.p = z + np.minimum(beta, 1.0) * before.p[:, kept]

    def step(self, dtype: str) -> bool:
        """Make one iteration; tell whether arithmetic still makes sense."""
        run, active = self.run, self.active
        ap = run.system.matmul(self.p, run.ridge, dtype)
        curvature = np.sum(self.p * ap, axis=0)
        if not np.all(np.isfinite(curvature)) or np.any(curvature <= 0.0):
            return False
        rp = np.sum(self.r[:, active] * self.p, axis=0)
        step = rp / curvature
        run.x[:, active] += step * self.p
        old = self.r[:, active]
        new = old - step * ap
        self.r[:, active] = new
        z = run.prepared.preconditioner.apply(new, run.ridge)
        # Flexible: sound also where products and preconditioner are inexact.
        change = np.sum((new - old) * z, axis=0)
        beta = np.divide(change, self.rz, out=np.zeros_like(change), where=self.rz > 0)
        self.rz = np.sum(new * z, axis=0)
        self.p = z + np.maximum(beta, 0.0) * self.p
        return True
