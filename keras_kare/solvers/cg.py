"""Any number of rows, without the matrix: preconditioned conjugate gradients."""

from __future__ import annotations

import contextlib
import copy
import time

import keras
import numpy as np

from keras_kare import _validation
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.preconditioner import NystromPreconditioner
from keras_kare.solvers.progress import Progress
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import System

FIRST_RANK = 512
"""Columns of the preconditioner to begin with, where the user names none."""

LOOK_AFTER = 5
"""Iterations between two looks at whether more columns would pay."""

REPLACE = 1e-2
"""The true residual is computed whenever the residual has fallen by that much."""


@keras.saving.register_keras_serializable(package="keras_kare")
class CG(Solver):
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
        _validation.check_whole("seed", seed, 0)
        if rank != "auto":
            _validation.check_whole("rank", rank, 0)
        if time_budget is not None:
            _validation.check_ridge("time_budget", time_budget)
        self._keep(tolerance, memory_limit)
        self.max_iterations, self.seed = max_iterations, seed
        self.rank, self.time_budget = rank, time_budget

    def memory(self, operator: KernelOperator, columns: int) -> float:
        rank = FIRST_RANK if self.rank == "auto" else int(self.rank)
        vectors = 8.0 * operator.rows * columns * 8.0
        return vectors + 16.0 * operator.rows * min(rank, operator.rows)

    def prepare(self, system: System) -> CGPrepared:
        self.check_memory(system, "Name a smaller `rank` of the preconditioner.")
        return CGPrepared(system, self)


class CGPrepared(Prepared):
    """The preconditioner, which serves every ridge."""

    exact_leave_one_out = False
    direct = False
    solver: CG

    def __init__(self, system: System, solver: CG):
        super().__init__(system, solver)
        self._begun = time.monotonic()
        self.preconditioner = NystromPreconditioner(system.operator, solver.seed)
        first = FIRST_RANK if solver.rank == "auto" else int(solver.rank)
        self.preconditioner.grow(min(first, self._most_columns()))

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = _Run(self, ridge, None if start is None else start.dual)
        run.go()
        return Solution(
            ridge=ridge,
            **self.system.finished(run.best),
            residual=run.residual,
            iterations=run.iterations,
            stopped=run.stopped,
            **self._facts(begun),
        )

    def rough(self, tolerance: float) -> CGPrepared:
        config = {**self.solver.get_config(), "tolerance": tolerance}
        other = copy.copy(self)
        other.solver = CG(**config)
        return other

    def for_targets(self, y: np.ndarray) -> CGPrepared:
        """The same operator and preconditioner, for other targets, `(n, c)`."""
        other = copy.copy(self)
        other.system = System(self.system.operator, y)
        return other

    def more_columns(self, iterations: float) -> bool:
        """Whether twice the columns cost less than so many iterations; then draw them."""
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
        columns = system.y.shape[1]
        each = 8.0 * rows * rank * columns
        work = system.operator.product_flops(columns)
        each += 0.5 * work if system.operator.narrow else work
        # Twice the columns save about half of the iterations.
        if 0.5 * iterations * each < build:
            return False
        self.preconditioner.grow(wanted)
        return True

    def out_of_time(self) -> bool:
        """Whether the user's time is over."""
        budget = self.solver.time_budget
        return budget is not None and time.monotonic() - self._begun > budget

    def _most_columns(self) -> int:
        """Whose blocks, and half a dozen matrices of their products, fit."""
        share, rows = 2.0 * self.solver.limit() / 3.0, float(self.system.rows)
        # 8 n k + 6 · 8 k² = share
        return max(0, int((np.sqrt(rows**2 + 3.0 * share) - rows) / 12.0))


class _Run:
    """Conjugate gradients at one ridge, for all targets side by side."""

    def __init__(self, prepared: CGPrepared, ridge: float, start: np.ndarray | None):
        self.prepared, self.ridge = prepared, ridge
        system = prepared.system
        self.system, self.solver = system, prepared.solver
        self.norms = np.linalg.norm(system.y, axis=0)
        self.x = np.zeros_like(system.y) if start is None else start.copy()
        self.dtype = "float32" if system.operator.narrow else "float64"
        self.iterations, self.stopped = 0, "iterations"
        self.best, self.residual = self.x.copy(), np.inf

    def go(self) -> None:
        """Iterate until something says stop; `best` is then the best iterate."""
        progress = Progress(self.solver.max_iterations, "iteration")
        try:
            self._iterate(progress)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            self._look_once_more()
        finally:
            progress.close()

    def _look_once_more(self) -> None:
        """The iterate is better than the last one looked at; a second Ctrl-C skips this."""
        with contextlib.suppress(KeyboardInterrupt):
            self._true()
        if not np.isfinite(self.residual):
            self.best = np.zeros_like(self.x)
            self.residual = float(np.max(self._relative(self.system.y)))

    def _relative(self, r: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(r, axis=0)
        return np.divide(norms, self.norms, out=np.zeros_like(norms), where=self.norms > 0)

    def _true(self) -> np.ndarray:
        """The residual of the iterate, in float64; the best iterate is kept."""
        nothing = not np.any(self.x)
        r = self.system.y - (0.0 if nothing else self.system.matmul(self.x, self.ridge))
        found = float(np.max(self._relative(r)))
        # It may rise on the way, and predictions with it: the last iterate need not be
        # the best.
        if found < self.residual:
            self.best, self.residual = self.x.copy(), found
        return r

    def _iterate(self, progress: Progress) -> None:
        r = self._true()
        active = np.flatnonzero(self._relative(r) > self.solver.tolerance)
        state = _Directions(self, r, active)
        last, failures = self._relative(r), 0
        looked, then = 0, self._worst(last)
        while active.size:
            if self.iterations >= self.solver.max_iterations:
                self.stopped = "iterations"
                break
            if self.prepared.out_of_time():
                self.stopped = "time"
                break
            sound = state.step(self.dtype)
            self.iterations += 1
            seen = self._relative(state.r)
            progress.step(self.iterations, self._worst(seen))
            done = seen[active] <= 0.5 * self.solver.tolerance
            replace = not sound or np.any(done) or np.any(seen < REPLACE * last)
            if replace:
                r = self._true()
                true = self._relative(r)
                drifted = not sound or np.any(
                    true[active] > np.maximum(2.0 * seen[active], self.solver.tolerance)
                )
                if drifted and self.dtype == "float32":
                    self.dtype = "float64"
                elif drifted and self._worst(true) > 0.5 * self._worst(last):
                    failures += 1
                last = true
                active = np.flatnonzero(true > self.solver.tolerance)
                if failures > 2:
                    self.stopped = "stalled"
                    break
                state = _Directions(self, r, active, None if drifted else state)
                seen = true
            if self.iterations - looked >= LOOK_AFTER and active.size:
                now = self._worst(seen)
                left = _iterations_left(then, now, self.iterations - looked, self)
                if self.prepared.more_columns(left):
                    state = _Directions(self, self._true(), active)
                looked, then = self.iterations, now
        else:
            self.stopped = "tolerance"
        if not np.array_equal(self.x, self.best):
            self._true()

    @staticmethod
    def _worst(relative: np.ndarray) -> float:
        return float(np.max(relative))


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
        run: _Run,
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
        """One iteration; whether arithmetic still makes sense."""
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


def _iterations_left(then: float, now: float, iterations: int, run: _Run) -> float:
    """By the pace of the last iterations."""
    target = 0.5 * run.solver.tolerance
    most = float(run.solver.max_iterations - run.iterations)
    if now <= target:
        return 0.0
    if now >= then:
        return most
    pace = np.log(then / now) / iterations
    return min(most, float(np.log(now / target) / pace))
