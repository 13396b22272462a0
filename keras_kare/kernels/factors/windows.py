"""Windows of inputs that the positions of a convolution see, and products of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare.kernels.factors.factor import length


@dataclass(frozen=True)
class Windows:
    """The geometry of a convolution over channels-last positions.

    Attributes:
        size: Length of the window along each axis.
        strides: Steps between windows.
        dilation: Steps inside a window.
        padding: `"valid"`, `"same"` (zeros as TensorFlow puts them) or `"causal"`.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str

    @property
    def taps(self) -> int:
        """Number of positions in a window."""
        return math.prod(self.size)

    def stacked(self, x: tf.Tensor, count: Sequence[Any]) -> tf.Tensor:
        """Put all windows of `x`, `(n, ..., d)`, side by side: `(n, *count, taps * d)`.

        Args:
            x: Inputs, channels last.
            count: Number of windows along each axis.
        """
        return self.places(x, count).take(x)

    def places(self, x: tf.Tensor, count: Sequence[Any]) -> Places:
        """Return where these windows have what of `x`."""
        geometry = zip(self.size, self.strides, self.dilation, count, strict=True)
        axes = [
            self._axis(k, s, d, c, length(x, axis))
            for axis, (k, s, d, c) in enumerate(geometry, start=1)
        ]
        return Places(*zip(*axes, strict=True))

    def shifts(self, b: tf.Tensor, length: int) -> Places:
        """Return which windows the inputs along the first axis meet.

        Args:
            b: `(n, *positions, q)`, with a stride of one along the first axis.
            length: Length of the first axis of the inputs.

        Returns:
            Places of `(n, length, ..., size[0] * q)`: for each input position the `b` of
            those windows that have it at their first, second, ... tap.
        """
        count, *others = b.shape[1:-1]
        seen, by = self._axis(self.size[0], 1, self.dilation[0], count, length)
        axes = [(by, seen), *(self._axis(1, 1, 1, c, c) for c in others)]
        return Places(*zip(*axes, strict=True))

    def _axis(self, k: int, s: int, d: int, count: Any, length: Any) -> tuple[Any, Any]:
        """Return `seen` and `by` of `Places` for one axis."""
        zeros = self._zeros_before(k, s, d, count, length)
        known = isinstance(count, int) and isinstance(length, int)
        numbers, where = (np.arange, np.where) if known else (tf.range, tf.where)
        taps = numbers(k, dtype="int32") * d - zeros
        seen = numbers(count, dtype="int32")[:, None] * s + taps
        ahead = numbers(length, dtype="int32")[:, None] - taps
        by = ahead // s
        seen_by_it = (ahead % s == 0) & (by >= 0) & (by < count)
        inside = (seen >= 0) & (seen < length)
        return where(inside, seen, length), where(seen_by_it, by, count)

    def _zeros_before(self, k: int, s: int, d: int, count: Any, length: Any) -> Any:
        if self.padding == "valid":
            return 0
        if self.padding == "causal":
            return d * (k - 1)
        return _at_least_zero((count - 1) * s + (k - 1) * d + 1 - length) // 2


@dataclass(frozen=True)
class Places:
    """The positions that windows have at their taps, axis by axis.

    Attributes:
        seen: Of each axis `(count, k)`: a position, or the axis' length where a window
            has none.
        by: Of each axis `(length, k)`: the window that has a position at a tap, or the
            number of windows where none has.
    """

    seen: tuple[Any, ...]
    by: tuple[Any, ...]

    def take(self, x: tf.Tensor) -> tf.Tensor:
        """Return what windows have, `(n, *lengths, d)` to `(n, *count, taps * d)`.

        One gather for all taps, whose gradient is another: TensorFlow's own, of a gather
        and of strided slices, are many times slower on a CPU.
        """
        if self._in_place():
            return x
        d = x.shape[-1]
        numbers = math.prod(table.shape[1] for table in self.seen) * d

        @tf.custom_gradient
        def take(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
            taken = _gathered(x, self.seen, d)
            shape = [length(table, 0) for table in self.seen]
            return _reshaped(taken, [*shape, numbers]), lambda g: self.put_back(g, d)

        return take(x)

    def put_back(self, g: tf.Tensor, d: int) -> tf.Tensor:
        """Sum what all windows have of each position: the transposed `take`."""
        if self._in_place():
            return g
        rank = len(self.by)

        @tf.custom_gradient
        def put_back(g: tf.Tensor) -> tuple[tf.Tensor, Any]:
            taken = _gathered(g, self.by, d)
            return tf.reduce_sum(taken, range(1 + rank, 1 + 2 * rank)), self.take

        return put_back(g)

    def _in_place(self) -> bool:
        """Tell whether every window has the one position of its own number."""
        pairs = zip(self.seen, self.by, strict=True)
        return all(seen.shape[1] == 1 and _same(seen, by) for seen, by in pairs)


def _gathered(x: tf.Tensor, tables: Sequence[Any], d: int) -> tf.Tensor:
    """Gather what tables name of the positions of `x`, and zeros where they name none.

    Args:
        x: `(n, *lengths, d)`, or `(n, *lengths, taps * d)`, where each tap takes its own.
        tables: `(count, k)` for each axis: a position, or the axis' length for none.
        d: Numbers that belong together.

    Returns:
        `(n, *count, *k, d)`.
    """
    lengths = [length(x, axis) for axis in range(1, 1 + len(tables))]
    zeros = [int(_may_reach(*pair)) for pair in zip(tables, lengths, strict=True)]
    if any(zeros):
        x = tf.pad(x, [(0, 0), *((0, zero) for zero in zeros), (0, 0)])
    step, tap = x.shape[-1] // d, int(x.shape[-1] > d)
    places: Any = 0
    for axis in reversed(range(len(tables))):
        table, k = tables[axis], tables[axis].shape[1]
        table = table * step + np.arange(k, dtype="int32") * tap
        before, among, every = (None,) * axis, (None,) * (len(tables) - 1), slice(None)
        table = table[(*before, every, *among, every, *among[axis:])]
        # Added up in the graph, which holds the small tables of axes alone.
        places = tf.convert_to_tensor(table, "int32") + places
        step, tap = step * (lengths[axis] + zeros[axis]), tap * k
    return tf.gather(_reshaped(x, [step, d]), places, axis=1)


def _same(table: Any, other: Any) -> bool:
    """Tell whether two tables are known to be the same."""
    known = isinstance(table, np.ndarray) and isinstance(other, np.ndarray)
    return known and np.array_equal(table, other)


def _may_reach(table: Any, length: Any) -> bool:
    """Tell whether a table may name the place behind the last."""
    return not isinstance(table, np.ndarray) or bool(np.any(table == length))


def _reshaped(x: tf.Tensor, shape: list[Any]) -> tf.Tensor:
    """Give rows another shape."""
    return tf.reshape(x, [-1 if _known(shape) else length(x), *shape])


def _known(count: Sequence[Any]) -> bool:
    """Tell whether all of these lengths are numbers."""
    return all(isinstance(c, int) for c in count)


def _at_least_zero(value: Any) -> Any:
    return max(value, 0) if isinstance(value, int) else tf.maximum(value, 0)
