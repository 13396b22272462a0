"""Windows of inputs that the positions of a convolution see, and products of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._traced_once import traced
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
        """All windows of `x`, `(n, ..., d)`, side by side: `(n, *count, taps * d)`.

        Args:
            x: Inputs, channels last.
            count: Number of windows along each axis.
        """
        return self.places(x, count).take(x)

    def places(self, x: tf.Tensor, count: Sequence[Any]) -> Places:
        """Where these windows have what of `x`."""
        geometry = zip(self.size, self.strides, self.dilation, count, strict=True)
        axes = [
            self._axis(k, s, d, c, length(x, axis))
            for axis, (k, s, d, c) in enumerate(geometry, start=1)
        ]
        return Places(*zip(*axes, strict=True))

    def shifts(self, b: tf.Tensor, length: int) -> Places:
        """Which windows the inputs along the first axis meet.

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
        """Of one axis, `seen` and `by` of `Places`."""
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
    """Which positions windows have at which of their taps, axis by axis.

    Attributes:
        seen: Of each axis `(count, k)`: a position, or the axis' length where a window
            has none.
        by: Of each axis `(length, k)`: the window that has a position at a tap, or the
            number of windows where none has.
    """

    seen: tuple[Any, ...]
    by: tuple[Any, ...]

    def take(self, x: tf.Tensor) -> tf.Tensor:
        """What windows have, `(n, *lengths, d)` to `(n, *count, taps * d)`.

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
        """The sum of what all windows have of each position: the transposed `take`."""
        if self._in_place():
            return g
        rank = len(self.by)

        @tf.custom_gradient
        def put_back(g: tf.Tensor) -> tuple[tf.Tensor, Any]:
            taken = _gathered(g, self.by, d)
            return tf.reduce_sum(taken, range(1 + rank, 1 + 2 * rank)), self.take

        return put_back(g)

    def _in_place(self) -> bool:
        """Whether every window has the one position of its own number."""
        pairs = zip(self.seen, self.by, strict=True)
        return all(seen.shape[1] == 1 and _same(seen, by) for seen, by in pairs)


def _gathered(x: tf.Tensor, tables: Sequence[Any], d: int) -> tf.Tensor:
    """What tables name of the positions of `x`, and zeros where they name none.

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
    """Whether two tables are known to be the same."""
    known = isinstance(table, np.ndarray) and isinstance(other, np.ndarray)
    return known and np.array_equal(table, other)


def _may_reach(table: Any, length: Any) -> bool:
    """Whether a table may name the place behind the last."""
    return not isinstance(table, np.ndarray) or bool(np.any(table == length))


def _reshaped(x: tf.Tensor, shape: list[Any]) -> tf.Tensor:
    """Rows of another shape."""
    return tf.reshape(x, [-1 if _known(shape) else length(x), *shape])


_KEPT = 256
"""Geometries whose graphs are kept: of each, one serves all layers, plans and traces."""


@functools.lru_cache(maxsize=_KEPT)
def _products(
    windows: Windows, dtype: tf.DType, x: tuple[int | None, ...], b: tuple[int | None, ...]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    specs = [tf.TensorSpec(shape, dtype) for shape in (x, b)]
    return traced(lambda x, b: _outer_products(windows, x, b), *specs)


CHUNK = 2**20
"""Numbers in an array of windows that is made at a time: few enough for a cache."""

AT_ONCE = 4 * CHUNK
"""Numbers up to which all windows of a known number of rows are made without a loop."""


def outer_products(windows: Windows, x: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`sum_t b_t ⊗ window_t(x)` for every row, without an array of all windows.

    Windows are made for a few rows at a time, forwards and backwards: an array of all
    of them would be `taps` times as large as `x`, and leave every cache.

    Args:
        windows: The geometry.
        x: `(n, ..., p)`, of a known shape but for the rows.
        b: `(n, *positions, q)`, likewise.

    Returns:
        `(n, q, taps * p)`.
    """
    numbers, rows = windows.taps * math.prod(x.shape[1:]), x.shape[0]
    few = rows if rows is not None and rows * numbers <= AT_ONCE else None
    inputs, outputs = (few, *x.shape[1:]), (few, *b.shape[1:])
    return _products(windows, x.dtype, inputs, outputs)(x, b)


def _outer_products(windows: Windows, x: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    count, q = b.shape[1:-1], b.shape[-1]
    # Shifting `b` along the first axis, and `x` along the others, makes squarer products
    # than all windows of `x`, and mostly takes fewer numbers: not where `x` is narrow.
    shifts = windows.size[0] if windows.strides[0] == 1 else 1
    windows_alone = windows.taps * x.shape[-1] + q
    if windows.taps // shifts * x.shape[-1] + shifts * q > windows_alone:
        shifts = 1
    if shifts > 1:
        rest = replace(windows, size=(1, *windows.size[1:]))
        grid = [x.shape[1], *count[1:]]
    else:
        rest, grid = windows, list(count)
    steps, size = math.prod(grid), rest.taps * x.shape[-1]
    step = max(1, CHUNK // (steps * (size + shifts * q)))
    n = length(x)

    of_x = rest.places(x, grid)
    of_b = windows.shifts(b, x.shape[1]) if shifts > 1 else None

    def seen(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(of_x.take(x), (-1, steps, size))

    def shifted(b: tf.Tensor) -> tf.Tensor:
        return tf.reshape(b if of_b is None else of_b.take(b), (-1, steps, shifts * q))

    def of_rows(
        function: Callable[..., tuple[tf.Tensor, ...]],
        shapes: Sequence[Sequence[int]],
        *arrays: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Apply a function, which returns rows of these shapes, to a few rows at a time."""
        if x.shape[0] is not None:
            return list(function(*arrays))
        chunks = (n + step - 1) // step

        def body(i: tf.Tensor, *found: tf.TensorArray) -> tuple[Any, ...]:
            begin = tf.reshape(i * step, [1])
            end = tf.minimum(begin + step, n)
            parts = function(*(tf.strided_slice(t, begin, end, [1]) for t in arrays))
            pairs = zip(found, parts, strict=True)
            return i + 1, *(array.write(i, part) for array, part in pairs)

        start = [
            tf.TensorArray(x.dtype, chunks, infer_shape=False, element_shape=[None, *shape])
            for shape in shapes
        ]
        _, *done = tf.while_loop(
            lambda i, *_: i < chunks, body, (0, *start), parallel_iterations=1
        )
        return [
            tf.ensure_shape(array.concat(), [None, *shape])
            for array, shape in zip(done, shapes, strict=True)
        ]

    def forwards(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # This order of the product is the faster one on a CPU.
        return (tf.matmul(shifted(b), seen(x), transpose_a=True),)

    def backwards(x: tf.Tensor, b: tf.Tensor, g: tf.Tensor) -> tuple[tf.Tensor, ...]:
        by_seen = tf.reshape(tf.matmul(shifted(b), g), (-1, *grid, size))
        by_shifted = tf.matmul(seen(x), g, transpose_b=True)
        by_shifted = tf.reshape(by_shifted, (-1, *grid[:1], *count[1:], shifts * q))
        by_b = by_shifted if of_b is None else of_b.put_back(by_shifted, q)
        return of_x.put_back(by_seen, x.shape[-1]), by_b

    @tf.custom_gradient
    def product(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            g = tf.reshape(upstream, (-1, q, shifts, size))
            g = tf.reshape(tf.transpose(g, (0, 2, 1, 3)), (-1, shifts * q, size))
            return of_rows(backwards, [x.shape[1:], b.shape[1:]], x, b, g)

        (j,) = of_rows(forwards, [(shifts * q, size)], x, b)
        j = tf.reshape(j, (-1, shifts, q, size))
        j = tf.transpose(j, (0, 2, 1, 3))
        return tf.reshape(j, (-1, q, shifts * size)), gradient

    return product(x, b)


def _known(count: Sequence[Any]) -> bool:
    """Whether all of these lengths are numbers."""
    return all(isinstance(c, int) for c in count)


def _at_least_zero(value: Any) -> Any:
    return max(value, 0) if isinstance(value, int) else tf.maximum(value, 0)
