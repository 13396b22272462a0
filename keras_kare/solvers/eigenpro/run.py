"""Epochs of `EigenPro`: when to look at the true residual, and when to stop."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import numpy as np

from keras_kare.solvers.progress import Progress
from keras_kare.solvers.system import relative

if TYPE_CHECKING:
    from keras_kare.solvers.eigenpro.prepared import EigenProPrepared

LOOK_AFTER = 10
"""Most epochs between two looks at the true residual."""


class Run:
    """Epochs at one ridge, for all targets side by side.

    Args:
        prepared: The system and its subspace.
        ridge: `λ`.
        start: `α` to begin with, `(n, c)`; zero where there is none.

    Attributes:
        best: The iterate with the smallest true residual that was found, `(n, c)`.
        residual: That residual, the largest over the targets.
        epochs: How many were completed.
        stopped: Why it ended, as in `Solution`.
    """

    def __init__(self, prepared: EigenProPrepared, ridge: float, start: np.ndarray | None):
        self.prepared, self.ridge = prepared, ridge
        self.y, self.solver = prepared.y, prepared.solver
        self.iterate = prepared.iterate(ridge)
        self.best = np.zeros_like(self.y)
        self.residual = _worst(self.y, self.y)
        if start is not None and start.shape == self.best.shape:
            self.iterate.dual[:] = start
        self.epochs, self.stopped = 0, "iterations"
        self._failures = 0

    def go(self) -> None:
        """Iterate until something says stop; `best` is then the best iterate."""
        progress = Progress(self.solver.max_epochs, "epoch")
        try:
            self._iterate(progress)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            with contextlib.suppress(KeyboardInterrupt):
                self._look()
        finally:
            progress.close()

    def _iterate(self, progress: Progress) -> None:
        size = self.prepared.batch_rows(self.ridge)
        rng = np.random.default_rng(self.solver.seed)
        self._look()
        looked, then = 0, math.inf
        while self.residual > self.solver.tolerance:
            if self.epochs >= self.solver.max_epochs:
                break
            seen = self._epoch(size, rng)
            if seen is None:
                self.stopped = "time"
                self._look()
                return
            self.epochs += 1
            progress.step(self.epochs, seen)
            near = seen <= min(2.0 * self.solver.tolerance, 0.7 * then)
            last = self.epochs >= self.solver.max_epochs
            if not (near or last or self.epochs - looked >= self._patience(looked)):
                continue
            best, found = self.residual, self._look()
            if found > self.solver.tolerance and self._stalls(best, found, seen):
                self.stopped = "stalled"
                return
            looked, then = self.epochs, seen
        else:
            self.stopped = "tolerance"

    def _patience(self, looked: int) -> int:
        """Epochs until the next look; float32 soon shows whether it is enough."""
        early = self.iterate.dtype == "float32"
        return min(LOOK_AFTER, 2 + looked) if early else LOOK_AFTER

    def _epoch(self, size: int, rng: np.random.Generator) -> float | None:
        """One epoch; the residual that its batches met, or `None` when time is over."""
        y, squared = self.y, np.zeros(self.y.shape[1])
        for numbers, x_rows in self.prepared.batches(size, rng):
            if self.prepared.out_of_time():
                return None
            squared += self.iterate.update(numbers, x_rows, y[numbers])
        return _worst(np.sqrt(squared)[None], y)

    def _look(self) -> float:
        """The true residual, in float64; the best iterate is kept."""
        iterate, y = self.iterate, self.y
        if np.any(iterate.dual):
            r = y - iterate.values(self.prepared.passes) - self.ridge * iterate.dual
        else:
            r = y
        found = _worst(r, y)
        if found < self.residual:
            self.best, self.residual = iterate.dual.copy(), found
        iterate.correct(r[self.prepared.subspace.rows])
        return found

    def _stalls(self, best: float, found: float, seen: float) -> bool:
        """Whether rounding errors allow no more; float32 becomes float64 first."""
        if found <= 0.9 * best and found <= 2.0 * seen:
            self._failures = 0
            return False
        if self.iterate.dtype == "float32":
            self.iterate.set_dtype("float64")
            return False
        self._failures += 1
        return self._failures > 2


def _worst(r: np.ndarray, y: np.ndarray) -> float:
    return float(np.max(relative(r, y)))
