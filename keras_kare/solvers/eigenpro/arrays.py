"""Rows in memory, which come in random order."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_kare.solvers.eigenpro.prepared import EigenProPrepared
from keras_kare.solvers.eigenpro.run import EigenProRun
from keras_kare.solvers.solution import Solution


class EigenProArrays(EigenProPrepared):
    """A prepared system of rows in memory."""

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = EigenProRun(self, float(ridge), None if start is None else start.dual).go()
        return self._solution(run, begun, **self.of_rows.finished(run.best))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        usable = np.flatnonzero(self.of_rows.root)
        count = math.ceil(len(usable) / size)
        for numbers in np.array_split(rng.permutation(usable), count):
            numbers = np.sort(numbers)
            yield numbers, self._inputs(numbers)

    def passes(self) -> Iterator[tuple[slice, Any]]:
        for rows in self.of_rows.operator.chunks(self._step):
            yield rows, self._inputs(rows)

    def _holding(self) -> Any:
        operator = self.of_rows.operator
        return operator.kernel.held(operator.x)

    def _inputs(self, numbers: Any) -> Any:
        needed = self.reading.by_features and self._held is None
        return self.of_rows.operator.rows_of(numbers) if needed else None
