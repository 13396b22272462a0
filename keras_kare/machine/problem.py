"""The problem: a kernel, rows with targets, and what a machine shall fit of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kare import _rows
from keras_kare._labels import Classes
from keras_kare.kernels.kernel import Kernel
from keras_kare.machine.prediction import network_outputs
from keras_kare.solvers import System
from keras_kare.solvers.stream import Batch, Stream, StreamSystem


@dataclass(frozen=True)
class Rows:
    """Checked inputs and targets, in memory.

    Attributes:
        x: Nested structure of tensors, `(n, ...)`.
        y: `(n, c)`.
        weights: How often each row counts, `(n,)`; `None` for once.
        batch_size: Of the dataset that the rows came from; all rows for arrays.
        classes: What the targets stand for; `None` for numbers.
    """

    x: Any
    y: np.ndarray
    weights: np.ndarray | None = None
    batch_size: int = 0
    classes: Classes | None = None

    def __len__(self) -> int:
        return len(self.y)

    def parts(self) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Return inputs, targets and weights, as Keras takes validation data."""
        return self.x, self.y, self.weights

    def batches(self) -> Iterator[Batch]:
        """Yield all rows at once, as a `Stream` yields its batches."""
        yield self.parts()

    def take(self, numbers: np.ndarray) -> Rows:
        """Return the rows with these numbers."""
        weights = None if self.weights is None else self.weights[numbers]
        taken = _rows.take(self.x, numbers), self.y[numbers], weights
        return Rows(*taken, classes=self.classes)

    def counting(self) -> Rows:
        """Return the rows whose weight is not 0, if there are any."""
        if self.weights is None or np.all(self.weights > 0.0) or not np.any(self.weights):
            return self
        return self.take(np.flatnonzero(self.weights > 0.0))

    def spread(self, most: int) -> Rows:
        """Return at most so many of the rows, evenly spread."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).astype(int))

    def split(self, fraction: float) -> tuple[Rows, Rows]:
        """Return the first rows and the last `fraction` of them, as Keras splits.

        Raises:
            ValueError: If too few are left on either side.
        """
        first = math.floor(len(self) * (1.0 - fraction))
        if first < 2 or first == len(self):
            raise ValueError(
                "`validation_split` leaves too few rows to train or to validate on. "
                f"Received: validation_split={fraction}, {len(self)} rows"
            )
        numbers = np.arange(len(self))
        return self.take(numbers[:first]), self.take(numbers[first:])


@dataclass(frozen=True)
class Problem:
    """What a kernel machine is to be: bound for the time of one call.

    Attributes:
        kernel: The kernel.
        rows: What is solved on, in memory or in a stream.
        residual: Whether the machine fits what the kernel's network leaves of the targets.
        intercept: Whether there is a constant beside it.
    """

    kernel: Kernel
    rows: Rows | Stream
    residual: bool = False
    intercept: bool = False

    def system(self) -> System | StreamSystem:
        """Return the system that a solver prepares.

        Raises:
            ValueError: If `residual` does not fit the kernel or the targets.
        """
        if isinstance(self.rows, Rows):
            operator = self.kernel.operator(self.rows.x)
            y = self.targets(self.rows.x, self.rows.y)
            return System(operator, y, self.rows.weights, self.intercept)
        stream = self.rows.with_intercept(self.intercept)
        if self.residual:
            stream = stream.with_targets(self.targets)
        return StreamSystem(self.kernel, stream)

    def targets(self, x: Any, y: np.ndarray) -> np.ndarray:
        """Return what the machine fits: `y`, or what the network leaves of it.

        Raises:
            ValueError: If there is no network, or its outputs are not as many.
        """
        y = np.asarray(y, "float64")
        if not self.residual:
            return y
        f = np.asarray(network_outputs(self.kernel, x), "float64")
        if f.shape != y.shape:
            raise ValueError(
                "`residual=True` needs as many targets as the network has outputs. "
                f"Received: targets of shape {y.shape}, outputs of shape {f.shape}"
            )
        return y - f

    def held_out(self, most: int) -> tuple[Problem, Rows]:
        """Return this problem without a tenth of its rows, and that tenth.

        Args:
            most: Rows that are held out, at most.
        """
        assert isinstance(self.rows, Rows)
        order = np.random.default_rng(0).permutation(len(self.rows))
        held = order[: min(most, max(1, len(order) // 10))]
        rest = self.rows.take(np.sort(order[len(held) :]))
        return dataclasses.replace(self, rows=rest), self.rows.take(held)
