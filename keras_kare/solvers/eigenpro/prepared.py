"""A system that `EigenPro` has prepared: the subspace, and how rows are read."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kare.solvers.centred import CentredOperator
from keras_kare.solvers.eigenpro.feature_steps import FeatureIterate, Mean, add_images
from keras_kare.solvers.eigenpro.steps import Iterate, MatrixIterate, Subspace
from keras_kare.solvers.iterative import Iterative, IterativePrepared
from keras_kare.solvers.system import AbstractSystem, System

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
        named: Whether the user has named the rows of a batch.
    """

    by_features: bool
    components: int
    batch_rows: int
    row_bytes: float
    named: bool


class EigenProPrepared(IterativePrepared):
    """The subspace, which serves every ridge, and rows in batches.

    Args:
        system: The system that was given.
        solver: The solver.
        of_rows: The system of all rows by an operator: the one given, or one that reads
            the stream.
        reading: How rows are read.
        numbers: The subsample's numbers among all rows, in increasing order.

    Attributes:
        y: What stands in for `y`, `(n, c)`; see `System`.
        subspace: The subspace.
    """

    def __init__(
        self,
        system: AbstractSystem,
        solver: Iterative,
        of_rows: System,
        reading: Reading,
        numbers: np.ndarray,
    ):
        super().__init__(system, solver)
        self.of_rows, self.reading, self.y = of_rows, reading, of_rows.y
        self._mean: Mean | None = None
        self._held: Any = None
        operator, self._step = of_rows.operator, of_rows.rows
        if reading.by_features:
            self._step, holds = operator.kernel.chunk(operator.x, of_rows.columns)
        if reading.by_features and isinstance(operator, CentredOperator):
            self._mean = Mean.of(operator, self.passes)
        gram = operator.block(numbers, numbers)
        self.subspace = Subspace(numbers, gram, reading.components)
        if reading.by_features:
            add_images(self.subspace, operator, self._mean)
            self._held = self._holding() if holds else None

    @abc.abstractmethod
    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        """Read all rows once: numbers and inputs, a batch at a time."""

    @abc.abstractmethod
    def passes(self) -> Iterator[tuple[slice, Any]]:
        """Read all rows once, in order."""

    def _holding(self) -> Any:
        """Return what `kernel.held` gives of all rows, where that can be kept."""
        return None

    def batch_rows(self, ridge: float) -> int:
        """Return the rows of a batch: of more, eigenvalues would lie too far apart."""
        if self.reading.named:
            return self.reading.batch_rows
        flat = self.subspace.left + len(self.y) * ridge
        ratio = SPAN * flat / max(self.subspace.next, 1e-300)
        return int(min(self.reading.batch_rows, max(LEAST_ROWS, 1.0 + ratio)))

    def iterate(self, ridge: float) -> Iterate:
        """Return `α = 0`, to be improved batch by batch."""
        operator, columns = self.of_rows.operator, self.of_rows.columns
        if not self.reading.by_features:
            return MatrixIterate(operator, self.subspace, columns, ridge)
        return FeatureIterate(
            operator, self.subspace, columns, ridge, self._held, self._mean
        )
