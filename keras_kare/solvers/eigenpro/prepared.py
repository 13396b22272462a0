"""Systems that `EigenPro` has prepared: rows in memory, or in a stream."""

from __future__ import annotations

import abc
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kare import _rows
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.centred import CentredOperator, less_means
from keras_kare.solvers.eigenpro.features import FeatureIterate, Mean, add_images
from keras_kare.solvers.eigenpro.run import Run
from keras_kare.solvers.eigenpro.steps import Iterate, MatrixIterate, Subspace
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared
from keras_kare.solvers.stream import OTHER_ROWS, Stream
from keras_kare.solvers.system import System, above_rounding

if TYPE_CHECKING:
    from keras_kare.solvers.eigenpro import EigenPro

LEAST_ROWS = 16
"""Smaller batches take more time for calls than for numbers."""

SPAN = 8.0
"""How far apart the eigenvalues of a batch may lie that a few directions flatten."""


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        by_features: Whether by the feature map, not by kernel values with all rows.
        components: Eigenvectors of the subspace, where the kernel has so many.
        batch_rows: Rows of a batch, or most of them where the spectrum decides.
        row_bytes: Bytes a row of a batch.
    """

    by_features: bool
    components: int
    batch_rows: int
    row_bytes: float


class EigenProPrepared(Prepared):
    """The subspace, which serves every ridge, and rows in batches.

    Attributes:
        reading: How rows are read.
        y: What stands in for `y`, `(n, c)`; see `System`.
        subspace: The subspace.
    """

    exact_leave_one_out = False
    direct = False
    solver: EigenPro
    reading: Reading
    y: np.ndarray
    subspace: Subspace
    _begun: float
    _mean: Mean | None = None

    def rough(self, tolerance: float) -> EigenProPrepared:
        config = {**self.solver.get_config(), "tolerance": tolerance}
        other = copy.copy(self)
        other.solver = type(self.solver)(**config)
        return other

    def batch_rows(self, ridge: float) -> int:
        """Rows of a batch: more would make its eigenvalues lie too far apart."""
        if self.solver.batch_size != "auto":
            return self.reading.batch_rows
        flat = self.subspace.left + len(self.y) * ridge
        ratio = SPAN * flat / max(self.subspace.next, 1e-300)
        return int(min(self.reading.batch_rows, max(LEAST_ROWS, 1.0 + ratio)))

    def out_of_time(self) -> bool:
        """Whether the user's time is over."""
        budget = self.solver.time_budget
        return budget is not None and time.monotonic() - self._begun > budget

    @abc.abstractmethod
    def iterate(self, ridge: float) -> Iterate:
        """`α = 0`, to be improved batch by batch."""

    @abc.abstractmethod
    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        """All rows once: numbers and inputs, a batch at a time."""

    @abc.abstractmethod
    def passes(self) -> Iterator[tuple[slice, Any]]:
        """All rows once, in order."""

    def _begin(
        self,
        operator: KernelOperator,
        numbers: np.ndarray,
        sample: np.ndarray,
        gram: np.ndarray,
    ) -> None:
        """The reading and the subspace.

        Args:
            operator: `K`, of all rows or of the subsample alone.
            numbers: The subsample's numbers among all rows.
            sample: Its numbers among those of `operator`.
            gram: What stands in for `K` of the subsample.
        """
        columns = self.y.shape[1]
        self.subspace = Subspace(numbers, gram, self.reading.components)
        if self.reading.by_features:
            scale = None if operator.scale is None else operator.scale[sample]
            x = operator.rows_of(sample)
            add_images(self.subspace, operator.kernel, x, scale, self._mean)
            self._step, self._holds = operator.kernel.chunk(operator.x, columns)


class EigenProArrays(EigenProPrepared):
    """Rows in memory, which come in random order."""

    def __init__(self, system: System, solver: EigenPro):
        super().__init__(system, solver)
        self._begun = time.monotonic()
        operator = system.operator
        _ = system.unit  # refuses kernels that are zero or not finite
        self.y, self._held, self._step = system.y, None, operator.rows
        self.usable = np.flatnonzero(system.root)
        rng = np.random.default_rng(solver.seed)
        count = min(solver.subsample, len(self.usable))
        rows = np.sort(rng.choice(self.usable, count, replace=False))
        self.reading = solver.reading(operator, self.y.shape[1])
        if self.reading.by_features and isinstance(operator, CentredOperator):
            self._step, _ = operator.kernel.chunk(operator.x, self.y.shape[1])
            self._mean = Mean.of(
                operator.kernel, operator.unit, operator.scale, self.passes
            )
        self._begin(operator, rows, rows, operator.block(rows, rows))
        if self.reading.by_features and self._holds:
            self._held = operator.kernel.held(operator.x)

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = Run(self, float(ridge), None if start is None else start.dual)
        run.go()
        return Solution(
            ridge=float(ridge),
            **self.system.finished(run.best),
            residual=run.residual,
            iterations=run.epochs,
            stopped=run.stopped,
            **self._facts(begun),
        )

    def iterate(self, ridge: float) -> Iterate:
        operator, columns = self.system.operator, self.y.shape[1]
        if not self.reading.by_features:
            return MatrixIterate(operator, self.subspace, columns, ridge)
        return FeatureIterate(
            operator.kernel,
            self.subspace,
            operator.rows,
            columns,
            ridge,
            operator.scale,
            self._held,
            "float32" if operator.narrow else "float64",
            self._mean,
        )

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        count = math.ceil(len(self.usable) / size)
        for numbers in np.array_split(rng.permutation(self.usable), count):
            numbers = np.sort(numbers)
            yield numbers, self._inputs(numbers)

    def passes(self) -> Iterator[tuple[slice, Any]]:
        for rows in self.system.operator.chunks(self._step):
            yield rows, self._inputs(rows)

    def _inputs(self, numbers: Any) -> Any:
        needed = self.reading.by_features and self._held is None
        return self.system.operator.rows_of(numbers) if needed else None


class EigenProStream(EigenProPrepared):
    """Rows of a stream, in its order; of each, only `α` and targets are kept.

    Args:
        kernel: A kernel with a feature map.
        stream: The rows, the same in every pass.
        solver: The solver.

    Raises:
        MemoryError: If what is kept does not fit.
        ValueError: If rows come in another order than before.
    """

    anchors = None

    def __init__(self, kernel: Kernel, stream: Stream, solver: EigenPro):
        self._begun = time.monotonic()
        self.solver, self.kernel, self.stream = solver, kernel, stream
        numbers, x = stream.sample(solver.subsample, solver.seed)
        operator = kernel.operator(x)
        self.reading = solver.reading(operator, stream.columns, streamed=True)
        needed = solver.fixed_bytes(operator, stream.columns, self.reading)
        advice = "Name fewer `components`."
        solver.check_bytes(needed, operator.features or 0, "features", advice)
        y, weights, trace = stream.targets(kernel)
        self._given, self.rows, self.scale = y, len(y), None
        needed += solver.row_bytes(self.rows, stream.columns)
        solver.check_bytes(needed, self.rows, "rows")
        self.count, self._root = float(self.rows), np.ones(self.rows)
        if weights is not None:
            self.count, self._root = float(np.sum(weights)), np.sqrt(weights)
            self.scale = self._root * math.sqrt(self.rows / self.count)
            operator = operator.scaled(self.scale[numbers])
        self._trace, self._centre = trace / self.count, np.zeros(stream.columns)
        self._step, _ = kernel.chunk(operator.x, stream.columns)
        if stream.intercept:
            self._centre = self._take_mean(y)
            y = y - self._centre
        self.y = y if weights is None else self._root[:, None] * y
        sample = np.arange(operator.rows)
        self._begin(operator, numbers, sample, self._sample_gram(operator, numbers))
        self._narrow = operator.narrow
        self._last: np.ndarray | None = None

    @property
    def unit(self) -> float:
        return self._trace / self.count

    @property
    def scales(self) -> np.ndarray:
        squares = np.sum(np.square(self.y), axis=0) / self.count
        return above_rounding(squares, self._centre)

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = Run(self, float(ridge), None if start is None else self._last)
        run.go()
        self._last, dual, constant = run.best, run.best, None
        if self._mean is not None:
            unit = self._mean.unit
            dual = dual - np.outer(unit, unit @ dual)
            values = self._product @ dual / self.rows
            constant = self._centre - values / math.sqrt(self.count)
        return Solution(
            ridge=float(ridge),
            solver=self.solver.name,
            rows=self.rows,
            columns=self.y.shape[1],
            count=self.count,
            weights=self._weights(dual),
            constant=constant,
            squared=float(np.sum(dual**2)),
            residual=run.residual,
            tolerance=self.solver.tolerance,
            iterations=run.epochs,
            stopped=run.stopped,
            seconds=time.perf_counter() - begun,
        )

    def iterate(self, ridge: float) -> Iterate:
        return FeatureIterate(
            self.kernel,
            self.subspace,
            self.rows,
            self.y.shape[1],
            ridge,
            self.scale,
            dtype="float32" if self._narrow else "float64",
            mean=self._mean,
        )

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        for rows, x in self._read(size):
            yield np.arange(rows.start, rows.stop), x

    def passes(self) -> Iterator[tuple[slice, Any]]:
        yield from self._read(self._step)

    def predictor_weights(self, solution: Solution) -> np.ndarray:
        assert solution.weights is not None
        return solution.weights

    def _take_mean(self, y: np.ndarray) -> np.ndarray:
        """For a machine with a constant: two more passes, and the targets' mean, `(c,)`."""
        unit = self._root / math.sqrt(self.count)
        self._mean = Mean.of(self.kernel, unit, self.scale, self.passes)
        self._product = np.empty(self.rows)  # K q
        for rows, x in self.passes():
            values = self.kernel.push(self.kernel.held(x), self._mean.features)
            self._product[rows] = values.numpy()[:, 0]
        if self.scale is not None:
            self._product *= self.scale
        return np.asarray(self._root**2 @ y / self.count)

    def _sample_gram(self, operator: KernelOperator, numbers: np.ndarray) -> np.ndarray:
        """What stands in for `K` of the subsample."""
        sample = np.arange(operator.rows)
        gram = operator.block(sample, sample)
        if self._mean is None:
            return gram
        q, t = self._mean.unit, self._product
        parts = q[numbers], t[numbers]
        return less_means(gram, *parts, *parts, float(q @ t))

    def _weights(self, dual: np.ndarray) -> np.ndarray:
        """`w = Jᵀ W½ α/N`, `(F, c)`, in the order of `kernel.feature_rows`."""
        v = dual * (self._root / self.count)[:, None]
        total = _rows.total(
            self.kernel.vjp(x, v[rows], dtype="float64") for rows, x in self.passes()
        )
        return np.concatenate([np.reshape(t, (v.shape[1], -1)) for t in total], axis=1).T

    def _read(self, most: int) -> Iterator[tuple[slice, Any]]:
        """All rows, at most so many at a time; refuses other rows than before."""
        at = 0
        for x, y, _ in self.stream:
            known = self._given[at : at + len(y)]
            if known.shape != y.shape or not np.allclose(known, y, rtol=1e-4, atol=1e-5):
                raise ValueError(OTHER_ROWS.format(at=at))
            size = math.ceil(len(y) / math.ceil(len(y) / most))
            end = at + len(y)
            for part in _rows.slices(x, size):
                begin, at = at, min(at + size, end)
                yield slice(begin, at), part
        if at != self.rows:
            raise ValueError(OTHER_ROWS.format(at=at))
