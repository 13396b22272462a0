"""Bytes that kernel values take, and how many rows of them go at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras_kare.kernels.memory import in_words
from keras_kare.kernels.structured.features import FeatureMap

LARGEST_TILE = 1024
"""Most rows of a tile: larger ones compute no faster, and leave the caches."""

AT_ONCE = 2048
"""Most rows that are computed in one piece; of tiles, symmetry saves half."""

SLACK = 2.0
"""Measured memory was up to 1.8 times what a walk through the graph gives: operations
run side by side, and keep scratch."""

GRADIENT = 2.0
"""How many times the memory of kernel values their gradient takes at most; measured."""


@dataclass(frozen=True)
class Sizes:
    """The bytes that a plan's kernel values take.

    Attributes:
        working: A row, while its features are computed.
        features: A row, its features, as long as they are held.
        pair: A pair of rows, while they meet.
        result: A pair of rows, in the result.
    """

    working: float
    features: float
    pair: float
    result: float

    @classmethod
    def of(cls, features: FeatureMap) -> Sizes:
        """Take what was counted when the plan of a feature map was made."""
        plan, itemsize = features.plan, features.dtype.size
        blocks = plan.outputs**2 if features.outputs == "full" else 1
        row = itemsize * sum(s.cost.row_numbers for s in plan.shares)
        pair = itemsize * sum(s.cost.pair_numbers for s in plan.shares)
        return cls(SLACK * plan.footprint, row, pair, float(itemsize * blocks))

    def at_once(self, rows: int) -> float:
        """Return the bytes that a Gram matrix of so many rows takes in one piece."""
        return (self.working + self.features) * rows + self.pair * rows**2

    def needs_no_tiles(self, rows: int, limit: float) -> bool:
        """Tell whether a Gram matrix of so many rows is computed in one piece."""
        return rows <= AT_ONCE and self.at_once(rows) <= limit

    def for_gradient(self, rows: int) -> float:
        """Return the bytes that it and its gradient by the weights take in one piece."""
        return GRADIENT * self.at_once(rows)

    def in_tiles(self, tile: int) -> float:
        """Return the bytes that a pair of tiles takes, beside the features held."""
        square = self.pair + 2.0 * self.result
        return (self.working + 2.0 * self.features) * tile + square * tile**2

    def tile(self, rows: int, limit: float) -> int:
        """Return the most rows of a tile whose work fits in half the limit, or 0."""
        linear, square = self.working + 2.0 * self.features, self.pair + 2.0 * self.result
        most = (math.sqrt(linear**2 + 2.0 * square * limit) - linear) / (2.0 * square)
        return int(min(most, rows, LARGEST_TILE))

    def gradient_tile(self, rows: int, limit: float) -> int:
        """Return the most rows of a tile whose gradient fits in half the limit, or 0."""
        return self.tile(rows, limit / GRADIENT)

    def panel(self, rows: int, tile: int, limit: float) -> int:
        """Return how many rows' features may be held at once, in whole tiles."""
        left = limit - self.in_tiles(tile)
        tiles = max(1, int(left // (max(self.features, 1.0) * tile)))
        return min(rows, tiles * tile)

    def check_tile(self, tile: int, limit: int) -> None:
        """Refuse a limit that no tile fits in."""
        if tile < 1:
            least = 2.0 * self.in_tiles(1)
            raise MemoryError(
                f"`memory_limit` is {in_words(limit)}, and one row at a time takes about "
                f"{in_words(least)}. Give the kernel a larger `memory_limit`, or free "
                "memory."
            )
