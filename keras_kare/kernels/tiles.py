"""Kernel values of any number of rows, a tile at a time.

Features of a *panel* of rows are held; the other rows pass by in tiles. A symmetric
matrix has each pair of tiles computed once. Nothing here knows what a feature is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from keras_kare._progress import Progress

ALIGNMENT = 64
"""Bytes that TensorFlow wants the address of an array to be a multiple of."""


class Engine(Protocol):
    """The functions that a tile is computed with."""

    def features(self, side: int, rows: slice) -> Any:
        """Return features of some rows of the first (0) or second (1) input."""

    def gram(self, features: Any) -> tf.Tensor:
        """Return kernel values between all rows of these features."""

    def cross(self, features: Any, others: Any) -> tf.Tensor:
        """Return kernel values between the rows of two features."""


class Target(Protocol):
    """A place where tiles go."""

    def done(self, i: int, j: int) -> bool:
        """Tell whether this pair of tiles is there already."""

    def write(self, i: int, j: int, rows: slice, columns: slice, values: tf.Tensor) -> None:
        """Store one pair of tiles (and its mirror image, where symmetric)."""

    def close(self) -> None:
        """Close the target at the end, also where the work was interrupted."""


@dataclass(frozen=True)
class Grid:
    """Tiles of a matrix.

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        tile: Most rows, and columns, of a tile.
        panel: Rows whose features are held at once.
        symmetric: Whether only pairs of tiles on and above the diagonal are computed.
    """

    rows: int
    columns: int
    tile: int
    panel: int
    symmetric: bool

    def bounds(self, index: int, size: int) -> slice:
        """Return the rows of a tile."""
        return slice(index * self.tile, min(size, (index + 1) * self.tile))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles down and across."""
        return math.ceil(self.rows / self.tile), math.ceil(self.columns / self.tile)

    def panels(self) -> Iterator[range]:
        """Yield row tiles that go together."""
        count, step = self.shape[0], max(1, self.panel // self.tile)
        for begin in range(0, count, step):
            yield range(begin, min(count, begin + step))

    def pairs(self) -> Iterator[tuple[range, int, list[int]]]:
        """Yield `(panel, column tile, row tiles to pair it with)`."""
        for panel in self.panels():
            for j in range(panel.start if self.symmetric else 0, self.shape[1]):
                yield panel, j, [i for i in panel if i <= j or not self.symmetric]


def compute(engine: Engine, grid: Grid, target: Target) -> None:
    """Compute all tiles that the target does not hold yet, and write them to it."""
    missing = [
        (panel, j, [i for i in tiles if not target.done(i, j)])
        for panel, j, tiles in grid.pairs()
    ]
    total = sum(len(tiles) for _, _, tiles in grid.pairs())
    done = total - sum(len(tiles) for _, _, tiles in missing)
    progress = Progress(total, "tile", done)
    kept: dict[int, Any] = {}
    current: range | None = None
    try:
        for panel, j, tiles in missing:
            if panel is not current:
                kept.clear()
                current = panel
            if not tiles:
                continue
            other = None
            if not (grid.symmetric and j in panel):
                other = engine.features(0 if grid.symmetric else 1, _side(grid, 1, j))
            for i in (*tiles, j) if other is None else tiles:
                if i not in kept:
                    kept[i] = engine.features(0, _side(grid, 0, i))
            for i in tiles:
                if grid.symmetric and i == j:
                    values = engine.gram(kept[i])
                else:
                    values = engine.cross(kept[i], kept[j] if other is None else other)
                target.write(i, j, _side(grid, 0, i), _side(grid, 1, j), values)
                progress.step()
    finally:
        target.close()
        progress.close()


def _side(grid: Grid, side: int, index: int) -> slice:
    return grid.bounds(index, (grid.rows, grid.columns)[side])


def mirrored(block: np.ndarray) -> np.ndarray:
    """Return `K(x', x)`: rows swapped, and the outputs of a full kernel too."""
    return block.transpose((1, 0, 3, 2) if block.ndim == 4 else (1, 0))


class ArrayTarget:
    """A target in memory, or mapped from a disk: a NumPy array."""

    def __init__(self, array: Any, symmetric: bool):
        self.array = array
        self.symmetric = symmetric

    def done(self, i: int, j: int) -> bool:
        return False

    def write(self, i: int, j: int, rows: slice, columns: slice, values: tf.Tensor) -> None:
        block = values.numpy()
        self.array[rows, columns] = block
        if self.symmetric and i != j:
            self.array[columns, rows] = mirrored(block)

    def close(self) -> None:
        pass


class TensorTarget(ArrayTarget):
    """A target of which the host's memory never has two copies: a tensor."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, symmetric: bool):
        size = math.prod(shape) * dtype.itemsize
        raw = np.empty(size + ALIGNMENT, np.uint8)
        begin = -raw.ctypes.data % ALIGNMENT
        array = raw[begin : begin + size].view(dtype).reshape(shape)
        super().__init__(array, symmetric)

    def result(self) -> tf.Tensor:
        """Return all values; the array must not be written to any more."""
        tensor = tf.experimental.dlpack.from_dlpack(self.array.__dlpack__())
        return tf.identity(tensor)  # on the default device; no copy on a CPU
