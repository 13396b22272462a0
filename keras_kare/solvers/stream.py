"""Rows that never are in memory together: sums over a stream of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_kare import _rows
from keras_kare.kernels.kernel import Kernel
from keras_kare.solvers.normal import NormalEquations
from keras_kare.solvers.progress import Progress
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import above_rounding, check_trace

Batch = tuple[Any, np.ndarray, np.ndarray | None]
"""Inputs, targets `(k, c)`, and how often each row counts."""

TOGETHER = 1024
"""Rows that are worked on together, of smaller batches."""

OTHER_ROWS = (
    "The dataset yields other rows in this pass than in the first, or the same in another "
    'order (beginning near row {at}). `solver="eigenpro"` keeps a number for each row: use '
    "`shuffle(..., reshuffle_each_iteration=False)`, or none."
)


class Stream:
    """Batches that can be read again and again, in the same order or another.

    Args:
        batches: Begins to read from the start.
        intercept: Whether a machine of these rows has a constant. Defaults to `False`.

    Attributes:
        first: The inputs of the first batch.
        columns: Number of targets `c`.
    """

    def __init__(self, batches: Callable[[], Iterator[Batch]], intercept: bool = False):
        self.batches, self.intercept = batches, intercept
        x, y, _ = next(self.batches())
        self.first, self.columns, self._y = x, y.shape[1], y

    def __iter__(self) -> Iterator[Batch]:
        """Batches of at least `TOGETHER` rows, but for the last."""
        waiting: list[Batch] = []
        rows = 0
        for batch in self.batches():
            waiting.append(batch)
            rows += len(batch[1])
            if rows >= TOGETHER:
                yield _joined(waiting)
                waiting, rows = [], 0
        if waiting:
            yield _joined(waiting)

    def check_order(self) -> None:
        """Refuse, before long work, rows that do not even begin the same when read anew."""
        x, y, _ = next(self.batches())
        now, then = keras.tree.flatten((x, y)), keras.tree.flatten((self.first, self._y))
        if not all(map(np.array_equal, now, then)):
            raise ValueError(OTHER_ROWS.format(at=0))

    def with_targets(self, targets: Callable[[Any, np.ndarray], np.ndarray]) -> Stream:
        """The same rows with other targets, made of inputs and targets."""

        def batches() -> Iterator[Batch]:
            for x, y, weights in self.batches():
                yield x, targets(x, y), weights

        return Stream(batches, self.intercept)

    def with_intercept(self, intercept: bool) -> Stream:
        """The same rows, for machines with a constant or without."""
        return Stream(self.batches, intercept)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, Any]:
        """Numbers and inputs of so many rows, in order.

        Each row that counts is as likely as any other (a reservoir).
        """
        rng, kept, seen, begin = np.random.default_rng(seed), None, 0, 0
        for x, y, weights in self:
            usable = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
            flat = [np.asarray(part)[usable] for part in keras.tree.flatten(x)]
            flat.append(begin + usable)
            if kept is None:
                kept = [np.empty((0, *part.shape[1:]), part.dtype) for part in flat]
            room = min(count - len(kept[0]), len(usable))
            kept = [np.concatenate([k, f[:room]]) for k, f in zip(kept, flat, strict=True)]
            for i in range(room, len(usable)):
                place = int(rng.integers(seen + i + 1))
                if place < count:
                    for k, f in zip(kept, flat, strict=True):
                        k[place] = f[i]
            seen, begin = seen + len(usable), begin + len(y)
        _check_count(seen)
        assert kept is not None
        order = np.argsort(kept[-1])
        inputs = keras.tree.pack_sequence_as(self.first, [k[order] for k in kept[:-1]])
        return kept[-1][order], inputs

    def targets(self, kernel: Kernel) -> tuple[np.ndarray, np.ndarray | None, float]:
        """All targets `(n, c)`, all weights `(n,)`, and `tr(W½ K W½)`."""
        ys, given, trace = [], [], 0.0
        progress, rows = Progress(None, "row"), 0
        try:
            for x, y, weights in self:
                trace += _trace(kernel, x, weights)
                ys.append(y)
                given.append(weights)
                rows += len(y)
                progress.step(rows)
        finally:
            progress.close()
        known = [w for w in given if w is not None]
        weights = np.concatenate(known) if known else None
        _check_count(rows if weights is None else float(np.sum(weights)))
        check_trace(trace)
        return np.concatenate(ys), weights, trace


class StreamPrepared(Prepared):
    """Sums over a stream, which serve every ridge.

    Args:
        solver: The solver.
        normal: The sums.
        unit: Of a relative ridge.
        trace: `tr(W½ K W½)/N`.
        anchors: Centres, or `None` where features are the kernel's own.
        coefficients: From weights of the features to those of the centres.
    """

    exact_leave_one_out = False

    def __init__(
        self,
        solver: Solver,
        normal: NormalEquations,
        trace: float,
        anchors: Any = None,
        coefficients: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.solver, self.normal, self.anchors = solver, normal, anchors
        self._trace, self._coefficients = trace, coefficients

    @property
    def unit(self) -> float:
        return self._trace / self.normal.count

    @property
    def scales(self) -> np.ndarray:
        normal = self.normal
        centre = np.zeros(1) if normal.centre is None else normal.centre
        return above_rounding(normal.squared / normal.count, centre)

    def predictor(self, solution: Solution) -> np.ndarray:
        assert solution.dual is not None
        return solution.dual

    def predictor_weights(self, solution: Solution) -> np.ndarray:
        assert solution.weights is not None
        return solution.weights

    def anchors_of(self, solution: Solution) -> Any:
        return self.anchors

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun, normal = time.perf_counter(), self.normal
        w, jitter = normal.solve(ridge)
        centres = self._coefficients is not None
        dual = None
        if self._coefficients is not None:
            dual = self._coefficients(w)
            dual *= len(dual)
        return Solution(
            ridge=ridge,
            solver=self.solver.name,
            rows=normal.rows,
            columns=normal.right.shape[1],
            count=normal.count,
            dual=dual,
            weights=None if centres else w,
            constant=normal.constant(w),
            centres="of the stream" if centres else None,
            jitter=jitter,
            squared=None if centres else normal.dual_squared(w, ridge),
            freedom=normal.freedom(ridge) if normal.small else None,
            residual=float(np.max(normal.residual(w, ridge))),
            tolerance=self.solver.tolerance,
            kernel_error=max(0.0, 1.0 - normal.trace / self._trace) if centres else None,
            seconds=time.perf_counter() - begun,
        )


def sum_over(
    stream: Stream,
    kernel: Kernel,
    features: Callable[[Any], np.ndarray],
    normal: NormalEquations,
) -> float:
    """Add all rows of a stream; returns `tr(W½ K W½)/N`.

    Args:
        stream: The rows.
        kernel: The kernel, for its diagonal.
        features: `(k, F)` of some inputs.
        normal: What is added to.
    """
    progress, trace = Progress(None, "row"), 0.0
    try:
        for x, y, weights in stream:
            normal.add(features(x), y, weights)
            trace += _trace(kernel, x, weights)
            progress.step(normal.rows)
    finally:
        progress.close()
    _check_count(normal.count)
    normal.finish()
    check_trace(trace)
    return trace / normal.count


def _check_count(count: float) -> None:
    if not count > 0.0:
        raise ValueError(
            "`sample_weight` must be positive for some rows. Received: zeros throughout "
            "the dataset"
        )


def _trace(kernel: Kernel, x: Any, weights: np.ndarray | None) -> float:
    diagonal = kernel.diag(x, dtype="float64").numpy()
    return float(np.sum(diagonal if weights is None else diagonal * weights))


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    xs, ys, weights = zip(*batches, strict=True)
    given = [w for w in weights if w is not None]
    return _rows.joined(xs), np.concatenate(ys), np.concatenate(given) if given else None
