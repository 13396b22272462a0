"""Windows of inputs that the positions of a convolution see, and products of them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_kare._traced_once import traced


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
        shape = x.shape[1:]
        if self.taps > 1 and shape.is_fully_defined() and _known(count):
            return _stacked(self, x.dtype, tuple(shape), tuple(count))(x)
        return self.beside(x, count)

    def beside(self, x: tf.Tensor, count: Sequence[Any]) -> tf.Tensor:
        """The same, tap by tap in the graph that is being traced."""
        seen = self.each(x, count)
        return seen[0] if len(seen) == 1 else tf.concat(seen, axis=-1)

    def each(self, x: tf.Tensor, count: Sequence[Any]) -> list[tf.Tensor]:
        """`(n, *count, d)` for each tap, in the order of the kernel."""
        return [self.tap(x, count, tap) for tap in self._taps()]

    def tap(self, x: tf.Tensor, count: Sequence[Any], tap: Sequence[int]) -> tf.Tensor:
        """What every window has at one of its positions.

        Its gradient puts values back by padding: TensorFlow's own, of a strided
        slice, is many times slower on a CPU.
        """
        begin, before, after = [], [], []
        axes = zip(tap, self.size, self.strides, self.dilation, count, strict=True)
        for axis, (t, k, s, d, c) in enumerate(axes, start=1):
            length = _length(x, axis)
            first = t * d - self._zeros_before(k, s, d, c, length)
            end = first + (c - 1) * s + 1
            begin.append(_at_least_zero(first))
            before.append(_at_least_zero(-first))
            after.append(_at_least_zero(end - length))
        return _cut(x, begin, before, after, self.strides, count)

    def shifted(self, b: tf.Tensor, length: int) -> tf.Tensor:
        """What the inputs along the first axis meet: `b`, shifted once a tap.

        Args:
            b: `(n, *positions, q)`, with a stride of one along the first axis.
            length: Length of the first axis of the inputs.

        Returns:
            `(n, length, ..., size[0] * q)`: for each input position the `b` of those
            windows that have it at their first, second, ... tap.
        """
        k, d, count = self.size[0], self.dilation[0], b.shape[1]
        zeros = self._zeros_before(k, 1, d, count, length)
        others = b.shape.rank - 3
        moved = []
        for tap in range(k):
            first = zeros - tap * d
            sides = [max(first, 0)], [max(-first, 0)], [max(first + length - count, 0)]
            begin, before, after = ([*side, *([0] * others)] for side in sides)
            shape = [length, *b.shape[2:-1]]
            moved.append(_cut(b, begin, before, after, (1,) * (others + 1), shape))
        return tf.concat(moved, axis=-1)

    def _taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(k) for k in self.size)))

    def _zeros_before(self, k: int, s: int, d: int, count: Any, length: Any) -> Any:
        if self.padding == "valid":
            return 0
        if self.padding == "causal":
            return d * (k - 1)
        return _at_least_zero((count - 1) * s + (k - 1) * d + 1 - length) // 2


_KEPT = 256
"""Geometries whose graphs are kept: of each, one serves all layers, plans and traces."""


@functools.lru_cache(maxsize=_KEPT)
def _stacked(
    windows: Windows, dtype: tf.DType, shape: tuple[int, ...], count: tuple[int, ...]
) -> Callable[[tf.Tensor], tf.Tensor]:
    rows = tf.TensorSpec([None, *shape], dtype)
    return traced(lambda x: windows.beside(x, count), rows)


@functools.lru_cache(maxsize=_KEPT)
def _products(
    windows: Windows, dtype: tf.DType, x: tuple[int, ...], b: tuple[int, ...]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    specs = [tf.TensorSpec([None, *shape], dtype) for shape in (x, b)]
    return traced(lambda x, b: _outer_products(windows, x, b), *specs)


CHUNK = 2**20
"""Numbers in an array of windows that is made at a time: few enough for a cache."""


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
    return _products(windows, x.dtype, tuple(x.shape[1:]), tuple(b.shape[1:]))(x, b)


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
    n = tf.shape(x)[0]

    def seen(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rest.beside(x, grid), (-1, steps, size))

    def shifted(b: tf.Tensor) -> tf.Tensor:
        moved = windows.shifted(b, x.shape[1]) if shifts > 1 else b
        return tf.reshape(moved, (-1, steps, shifts * q))

    def of_rows(
        function: Callable[..., tuple[tf.Tensor, ...]], *arrays: tf.Tensor
    ) -> list[tf.Tensor]:
        """Apply a function to a few rows of all arrays at a time."""
        chunks = (n + step - 1) // step

        def body(i: tf.Tensor, *found: tf.TensorArray) -> tuple[Any, ...]:
            rows = slice(i * step, tf.minimum(n, (i + 1) * step))
            parts = function(*(array[rows] for array in arrays))
            pairs = zip(found, parts, strict=True)
            return i + 1, *(array.write(i, part) for array, part in pairs)

        like = [t.shape[1:] for t in function(*(array[:1] for array in arrays))]
        start = [
            tf.TensorArray(x.dtype, chunks, infer_shape=False, element_shape=[None, *shape])
            for shape in like
        ]
        _, *done = tf.while_loop(
            lambda i, *_: i < chunks, body, (0, *start), parallel_iterations=1
        )
        shapes = zip(done, like, strict=True)
        return [tf.ensure_shape(array.concat(), [None, *shape]) for array, shape in shapes]

    def forwards(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # This order of the product is the faster one on a CPU.
        return (tf.matmul(shifted(b), seen(x), transpose_a=True),)

    def backwards(x: tf.Tensor, b: tf.Tensor, g: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch([x, b])
            right, left = seen(x), shifted(b)
        by_right, by_left = tf.matmul(left, g), tf.matmul(right, g, transpose_b=True)
        return tuple(
            tape.gradient([right, left], [x, b], output_gradients=[by_right, by_left])
        )

    @tf.custom_gradient
    def product(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            g = tf.reshape(upstream, (-1, q, shifts, size))
            g = tf.reshape(tf.transpose(g, (0, 2, 1, 3)), (-1, shifts * q, size))
            return of_rows(backwards, x, b, g)

        j = tf.reshape(of_rows(forwards, x, b)[0], (-1, shifts, q, size))
        j = tf.transpose(j, (0, 2, 1, 3))
        return tf.reshape(j, (-1, q, shifts * size)), gradient

    return product(x, b)


def _cut(
    x: tf.Tensor,
    begin: list[Any],
    before: list[Any],
    after: list[Any],
    strides: tuple[int, ...],
    count: Sequence[Any],
) -> tf.Tensor:
    """`count` positions of `x` from `begin` on, in steps, after padding with zeros."""

    def forwards(x: tf.Tensor) -> tf.Tensor:
        sides = [(0, 0), *zip(before, after, strict=True), (0, 0)]
        if any(not isinstance(s, int) or s for pair in sides for s in pair):
            x = tf.pad(x, sides)
        cut = [
            slice(b, b + (c - 1) * s + 1, s)
            for b, c, s in zip(begin, count, strides, strict=True)
        ]
        return x[(slice(None), *cut)]

    def backwards(upstream: tf.Tensor) -> tf.Tensor:
        for axis, s in enumerate(strides, start=1):
            upstream = _spread(upstream, axis, s)
        # Where zeros were added in front, positions are dropped, and the other way.
        sides, keep = [(0, 0)], []
        lengths = [_length(x, axis) for axis in range(1, 1 + len(strides))]
        places = zip(begin, before, count, strides, lengths, strict=True)
        for b, pad, c, s, length in places:
            end = b - pad + (c - 1) * s + 1
            sides.append((b, _at_least_zero(length - end)))
            keep.append(slice(pad, pad + length))
        padded = tf.pad(upstream, [*sides, (0, 0)])
        return padded[(slice(None), *keep)]

    @tf.custom_gradient
    def cut(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return forwards(x), backwards

    return cut(x)


def _spread(x: tf.Tensor, axis: int, step: int) -> tf.Tensor:
    """Zeros between the positions of an axis: `step - 1` of them."""
    if step == 1:
        return x
    rank = x.shape.rank
    sides = [(0, step - 1 if a == axis + 1 else 0) for a in range(rank + 1)]
    spread = tf.pad(tf.expand_dims(x, axis + 1), sides)
    shape = tf.shape(x)
    new = tf.concat([shape[:axis], [shape[axis] * step], shape[axis + 1 :]], axis=0)
    spread = tf.reshape(spread, new)
    last = (_length(x, axis) - 1) * step + 1
    static = x.shape.as_list()
    static[axis] = last if isinstance(last, int) else None
    spread = tf.slice(spread, [0] * rank, [last if a == axis else -1 for a in range(rank)])
    return tf.ensure_shape(spread, static)


def _length(x: tf.Tensor, axis: int) -> Any:
    """Length of an axis: a number, or a tensor where it is not known while tracing."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


def _known(count: Sequence[Any]) -> bool:
    """Whether all of these lengths are numbers."""
    return all(isinstance(c, int) for c in count)


def _at_least_zero(value: Any) -> Any:
    return max(value, 0) if isinstance(value, int) else tf.maximum(value, 0)
