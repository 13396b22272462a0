"""Rows that never are in memory together: a stream of batches, and its system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_kare import _rows
from keras_kare._progress import Progress
from keras_kare.kernels.kernel import Kernel
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.system import AbstractSystem, above_rounding, check_trace

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
        """Read batches of at least `TOGETHER` rows, but for the last."""
        waiting: list[Batch] = []
        rows = 0
        for batch in self.batches():
            waiting.append(batch)
            rows += len(batch[1])
            if rows >= TOGETHER:
                yield joined(waiting)
                waiting, rows = [], 0
        if waiting:
            yield joined(waiting)

    def check_order(self) -> None:
        """Refuse, before long work, rows that do not even begin the same when read anew."""
        x, y, _ = next(self.batches())
        now, then = keras.tree.flatten((x, y)), keras.tree.flatten((self.first, self._y))
        if not all(map(np.array_equal, now, then)):
            raise ValueError(OTHER_ROWS.format(at=0))

    def with_targets(self, targets: Callable[[Any, np.ndarray], np.ndarray]) -> Stream:
        """Return these rows with other targets, made of inputs and targets."""

        def batches() -> Iterator[Batch]:
            for x, y, weights in self.batches():
                yield x, targets(x, y), weights

        return Stream(batches, self.intercept)

    def with_intercept(self, intercept: bool) -> Stream:
        """Return these rows for machines with a constant, or without."""
        return Stream(self.batches, intercept)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, Any]:
        """Draw so many rows: their numbers, in order, and their inputs.

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


class StreamSystem(AbstractSystem):
    """`(K/n + λI) α = y` of a stream's rows, with its targets, weights and intercept.

    What only a whole pass over the rows can tell is known after a first `read`, which is
    part of every solver's preparation.

    Args:
        kernel: The kernel.
        stream: The rows.

    Attributes:
        centre: Zeros: targets are taken as they come.

    Example:

    ```python
    from keras_kare.solvers.stream import Stream

    def batches():
        for begin in range(0, len(x), 100):
            rows = slice(begin, begin + 100)
            yield x[rows], y[rows], None  # each row counts once

    prepared = kk.solvers.Primal().prepare(kk.solvers.StreamSystem(kernel, Stream(batches)))
    prepared.solve(0.1 * prepared.unit).weights
    ```
    """

    def __init__(self, kernel: Kernel, stream: Stream):
        self.kernel, self.stream = kernel, stream
        self.columns, self.intercept = stream.columns, stream.intercept
        self.rows, self.count, self._trace = 0, 0.0, 0.0
        self.centre = self._squares = np.zeros(self.columns)

    def read(self) -> Iterator[Batch]:
        """Read all rows once, and take down what they tell together.

        Raises:
            ValueError: At the end, if no row counts, or the kernel is zero or not finite.
        """
        rows, count, trace, about = 0, 0.0, 0.0, np.zeros(self.columns)
        mass, squares = np.zeros(self.columns), np.zeros(self.columns)
        progress = Progress(None, "row")
        try:
            for x, y, weights in self.stream:
                yield x, y, weights
                if self.intercept and not rows:  # about a mean, so that few digits are lost
                    about = np.mean(y, axis=0, dtype="float64")
                counted = np.ones(len(y)) if weights is None else weights
                rows += len(y)
                count += float(np.sum(counted, dtype="float64"))
                trace += float(counted @ self.kernel.diag(x, dtype="float64").numpy())
                mass += counted @ (y - about)
                squares += counted @ np.square(y - about)
                progress.step(rows)
        finally:
            progress.close()
        _check_count(count)
        check_trace(trace)
        self.rows, self.count, self._trace = rows, count, trace
        if self.intercept:
            squares -= mass**2 / count
        self._squares = above_rounding(squares / count, about)

    @property
    def unit(self) -> float:
        return self._trace / self.count**2

    @property
    def scales(self) -> np.ndarray:
        return self._squares

    def predictor(self, solution: Solution) -> np.ndarray:
        assert solution.dual is not None
        return solution.dual

    def predictor_weights(self, solution: Solution) -> np.ndarray:
        assert solution.weights is not None
        return solution.weights

    def anchors_of(self, solution: Solution) -> Any:
        return None


def _check_count(count: float) -> None:
    if not count > 0.0:
        raise ValueError(
            "`sample_weight` must be positive for some rows. Received: zeros throughout "
            "the dataset"
        )


def joined(batches: list[Batch]) -> Batch:
    """Put batches one after the other."""
    if len(batches) == 1:
        return batches[0]
    xs, ys, weights = zip(*batches, strict=True)
    given = [w for w in weights if w is not None]
    return _rows.joined(xs), np.concatenate(ys), np.concatenate(given) if given else None
