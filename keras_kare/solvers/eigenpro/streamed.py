"""Rows of a stream, in its order; of each, only `α` and targets are kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.eigenpro.prepared import EigenProPrepared
from keras_kare.solvers.eigenpro.run import EigenProRun
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.stream import OTHER_ROWS, StreamSystem


class StreamOperator(KernelOperator):
    """`K` of all rows of a stream, of which a subsample is in memory.

    Products with all rows read the stream; rows and blocks are those of the subsample.

    Args:
        system: The system, whose stream has rows in the same order in every pass.
        y: All targets as they came, by which rows are known again, `(n, c)`.
        numbers: The subsample's numbers among all rows, in increasing order.
        x: Its inputs.
    """

    def __init__(self, system: StreamSystem, y: np.ndarray, numbers: np.ndarray, x: Any):
        super().__init__(system.kernel, x)
        self._stream, self._y, self._numbers = system.stream, y, numbers
        self.rows, self.features = len(y), self.kernel.feature_count(self.x)
        self.shape = self.rows, self.rows

    def scaled(self, scale: np.ndarray) -> StreamOperator:
        other = copy.copy(self)
        other.scale = scale if self.scale is None else scale * self.scale
        return other

    def rows_of(self, rows: Any) -> Any:
        return _rows.take(self.x, np.searchsorted(self._numbers, rows))

    def vjp(self, v: Any) -> list[tf.Tensor]:
        v = self._in(v)
        step, _ = self.kernel.chunk(self.x, v.shape[1])
        return _rows.total(
            self.kernel.vjp(x, v[rows], dtype="float64") for rows, x in self.read(step)
        )

    def read(self, most: int) -> Iterator[tuple[slice, Any]]:
        """Read all rows, at most so many at a time; refuse others than before."""
        at = 0
        for x, y, _ in self._stream:
            known = self._y[at : at + len(y)]
            if known.shape != y.shape or not np.allclose(known, y, rtol=1e-4, atol=1e-5):
                raise ValueError(OTHER_ROWS.format(at=at))
            size = math.ceil(len(y) / math.ceil(len(y) / most))
            end = at + len(y)
            for part in _rows.slices(x, size):
                begin, at = at, min(at + size, end)
                yield slice(begin, at), part
        if at != self.rows:
            raise ValueError(OTHER_ROWS.format(at=at))


class EigenProStream(EigenProPrepared):
    """A prepared system of a stream, whose solutions have weights in place of `α`."""

    _last: np.ndarray | None = None

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun, of_rows = time.perf_counter(), self.of_rows
        run = EigenProRun(self, float(ridge), None if start is None else self._last).go()
        self._last, answer = run.best, of_rows.finished(run.best)
        dual = answer.pop("dual")
        parts = of_rows.unscaled.vjp(dual * (of_rows.root / of_rows.count)[:, None])
        weights = np.concatenate([np.reshape(t, (len(t), -1)) for t in parts], axis=1).T
        squared = float(np.sum(dual**2))
        return self._solution(run, begun, weights=weights, squared=squared, **answer)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        for rows, x in self._operator.read(size):
            yield np.arange(rows.start, rows.stop), x

    def passes(self) -> Iterator[tuple[slice, Any]]:
        return self._operator.read(self._step)

    @property
    def _operator(self) -> StreamOperator:
        operator = self.of_rows.unscaled
        assert isinstance(operator, StreamOperator)
        return operator
