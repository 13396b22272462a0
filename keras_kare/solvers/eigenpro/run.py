"""Epochs of `EigenPro`: when to look at the true residual, and when to stop."""

from __future__ import annotations

import math

import numpy as np

from keras_kare._progress import Progress
from keras_kare.solvers.eigenpro.prepared import EigenProPrepared
from keras_kare.solvers.iterative import Run, worst

LOOK_AFTER = 10
"""Most epochs between two looks at the true residual."""


class EigenProRun(Run):
    """Epochs at one ridge.

    The true residual is looked at when the residuals that batches met are near the
    tolerance, and every few epochs. Where it lags behind them, products in float64 take
    over; where it still does, three times in all, rounding allows no more.

    Args:
        prepared: The system and its subspace.
        ridge: `λ`.
        start: `α` to begin with, `(n, c)`; zero where there is none.
    """

    def __init__(self, prepared: EigenProPrepared, ridge: float, start: np.ndarray | None):
        super().__init__(prepared.y, ridge, prepared.solver)
        self.prepared, self.iterate = prepared, prepared.iterate(ridge)
        if start is not None and start.shape == self.best.shape:
            self.iterate.dual[:] = start
        self._failures = 0

    def _iterate(self, progress: Progress) -> str:
        size = self.prepared.batch_rows(self.ridge)
        rng = np.random.default_rng(self.solver.seed)
        self._look()
        looked, then = 0, math.inf
        while self.residual > self.solver.tolerance:
            if self.steps >= self.solver.most_steps:
                return "iterations"
            seen = self._epoch(size, rng)
            if seen is None:
                self._look()
                return "time"
            self.steps += 1
            progress.step(self.steps, seen)
            if self._looks(seen, then, self.steps - looked, looked):
                best, found = self.residual, worst(self._look(), self.y)
                if found > self.solver.tolerance and self._stalls(best, found, seen):
                    return "stalled"
                looked, then = self.steps, seen
        return "tolerance"

    def _looks(self, seen: float, then: float, waited: int, looked: int) -> bool:
        """Tell whether it is time for the true residual."""
        near = seen <= min(2.0 * self.solver.tolerance, 0.7 * then)
        # float32 soon shows whether it is enough.
        early = self.iterate.dtype == "float32"
        patience = min(LOOK_AFTER, 2 + looked) if early else LOOK_AFTER
        return near or waited >= patience or self.steps >= self.solver.most_steps

    def _epoch(self, size: int, rng: np.random.Generator) -> float | None:
        """Go once over all rows; return the residual met, or `None` when time is over."""
        y, squared = self.y, np.zeros(self.y.shape[1])
        for numbers, x_rows in self.prepared.batches(size, rng):
            if self.prepared.out_of_time():
                return None
            squared += self.iterate.update(numbers, x_rows, y[numbers])
        return worst(np.sqrt(squared)[None], y)

    def _look(self) -> np.ndarray:
        iterate, r = self.iterate, self.y
        if np.any(iterate.dual):
            r = r - iterate.values(self.prepared.passes) - self.ridge * iterate.dual
        self._keep(iterate.dual, r)
        iterate.correct(r[self.prepared.subspace.rows])
        return r

    def _stalls(self, best: float, found: float, seen: float) -> bool:
        """Tell whether rounding allows no more; float32 becomes float64 first."""
        if found <= 0.9 * best and found <= 2.0 * seen:
            self._failures = 0
            return False
        if self.iterate.dtype == "float32":
            self.iterate.set_dtype("float64")
            return False
        self._failures += 1
        return self._failures > 2
