"""Windows of inputs that the positions of a convolution see, and products of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


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
        seen = [self.tap(x, count, tap) for tap in self._taps()]
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

    def _taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(k) for k in self.size)))

    def _zeros_before(self, k: int, s: int, d: int, count: Any, length: Any) -> Any:
        if self.padding == "valid":
            return 0
        if self.padding == "causal":
            return d * (k - 1)
        return _at_least_zero((count - 1) * s + (k - 1) * d + 1 - length) // 2


def outer_products(windows: Windows, x: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`sum_t b_t ⊗ window_t(x)` for every row, without an array of all windows.

    Args:
        windows: The geometry.
        x: `(n, ..., p)`.
        b: `(n, *positions, q)`.

    Returns:
        `(n, q, taps, p)`. Its gradients, too, go tap by tap.
    """
    count = [_length(b, axis) for axis in range(1, b.shape.rank - 1)]

    @tf.custom_gradient
    def product(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
        flat = _flat(b)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                seen = windows.each(x, count)
            by_b = [
                tf.matmul(_flat(part), upstream[:, :, i], transpose_b=True)
                for i, part in enumerate(seen)
            ]
            by_x = [
                tf.reshape(tf.matmul(flat, upstream[:, :, i]), tf.shape(part))
                for i, part in enumerate(seen)
            ]
            back = tape.gradient(seen, x, output_gradients=by_x)
            return back, tf.reshape(tf.add_n(by_b), tf.shape(b))

        taps = [
            tf.matmul(flat, _flat(part), transpose_a=True)
            for part in windows.each(x, count)
        ]
        return tf.stack(taps, axis=2), gradient

    return product(x, b)


def _flat(x: tf.Tensor) -> tf.Tensor:
    """`(n, T, d)`."""
    steps = x.shape[1:-1].num_elements() if x.shape[1:-1].is_fully_defined() else -1
    rows = tf.shape(x)[0] if steps == -1 else -1
    return tf.reshape(x, (rows, steps, x.shape[-1]))


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


def _at_least_zero(value: Any) -> Any:
    return max(value, 0) if isinstance(value, int) else tf.maximum(value, 0)
