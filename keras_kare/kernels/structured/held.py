"""What the rows of some passes leave for products: factors, and the arrays in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from keras_kare.kernels.factors import Factor

Arrays = list[list[tf.Tensor]]
"""The arrays of each factor: all that leaves a traced function, and rows come first."""


class Group(NamedTuple):
    """A factor of what is held.

    Attributes:
        places: Where its variables are among those that train.
        factor: In the form in which it is held.
        arrange: Makes an array a variable of what its `vjp` returns.
    """

    places: tuple[int, ...]
    factor: Factor
    arrange: Callable[[list[tf.Tensor]], list[tf.Tensor]]


@dataclass(frozen=True)
class Held:
    """All that kernel values and products with vectors need of rows.

    Attributes:
        groups: A factor a share of the kernel.
        arrays: The arrays of these factors, made once.
    """

    groups: tuple[Group, ...]
    arrays: Arrays

    def of(self, arrays: Arrays) -> Held:
        """Return the same of other rows, which have these arrays."""
        pairs = zip(self.groups, arrays, strict=True)
        groups = (g._replace(factor=g.factor.with_parts(parts)) for g, parts in pairs)
        return Held(tuple(groups), arrays)

    def fits(self, arrays: Arrays) -> bool:
        """Tell whether arrays have these shapes, but for their numbers of rows."""
        own, others = ([t for g in a for t in g] for a in (self.arrays, arrays))
        return len(own) == len(others) and all(
            a.shape[1:].is_compatible_with(b.shape[1:])
            for a, b in zip(own, others, strict=True)
        )


def in_arrays(held: Callable[[Any], Held]) -> tuple[Callable[[Any], Arrays], list[Held]]:
    """Split a function that is to be traced into arrays, and what they stand for.

    Returns:
        The function that is to be traced; and a list, empty until it has been.
    """
    traced: list[Held] = []

    def arrays(x: Any) -> Arrays:
        traced[:] = [held(x)]
        return traced[0].arrays

    return arrays, traced
