"""Outer products with windows, without an array of all windows.

Windows are made for a few rows at a time, forwards and backwards: an array of all of them
would be `taps` times as large as the inputs, and leave every cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_kare._traced_once import traced
from keras_kare.kernels.factors.factor import length
from keras_kare.kernels.factors.windows import Places, Windows

CHUNK = 2**20
"""Numbers in an array of windows that is made at a time: few enough for a cache."""

AT_ONCE = 4 * CHUNK
"""Numbers up to which all windows of a known number of rows are made without a loop."""

_KEPT = 256
"""Geometries whose graphs are kept: of each, one serves all layers, plans and traces."""


def outer_products(windows: Windows, x: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return `sum_t b_t ⊗ window_t(x)` for every row, without an array of all windows.

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
    return _traced(windows, x.dtype, inputs, outputs)(x, b)


@functools.lru_cache(maxsize=_KEPT)
def _traced(
    windows: Windows, dtype: tf.DType, x: tuple[int | None, ...], b: tuple[int | None, ...]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    specs = [tf.TensorSpec(shape, dtype) for shape in (x, b)]
    return traced(lambda x, b: _Products.of(windows, x, b).outer(x, b), *specs)


@dataclass(frozen=True)
class _Products:
    """A way to make the products of one geometry.

    Attributes:
        of_x: Where windows have what of the inputs.
        of_b: Which windows the inputs along the first axis meet, where `b` is shifted
            along it; else `None`.
        grid: Number of windows along each axis.
        size: Numbers in a window.
        shifts: By how many positions `b` is shifted along the first axis.
        x: Shape of the inputs, `(n, ..., p)`; `n` is `None` where rows go in a loop.
        b: Shape of the gradients, `(n, *positions, q)`.
    """

    of_x: Places
    of_b: Places | None
    grid: tuple[int, ...]
    size: int
    shifts: int
    x: tf.TensorShape
    b: tf.TensorShape

    @classmethod
    def of(cls, windows: Windows, x: tf.Tensor, b: tf.Tensor) -> _Products:
        """Choose how for inputs and gradients of these shapes.

        Shifting `b` along the first axis, and `x` along the others, makes squarer
        products than all windows of `x`, and mostly takes fewer numbers: not where `x`
        is narrow.
        """
        count, p, q = b.shape[1:-1], x.shape[-1], b.shape[-1]
        shifts = windows.size[0] if windows.strides[0] == 1 else 1
        shifted_too = windows.taps // shifts * p + shifts * q
        if shifts == 1 or shifted_too > windows.taps * p + q:
            grid = tuple(count)
            places = windows.places(x, grid)
            return cls(places, None, grid, windows.taps * p, 1, x.shape, b.shape)
        rest = replace(windows, size=(1, *windows.size[1:]))
        grid = (x.shape[1], *count[1:])
        of_b = windows.shifts(b, x.shape[1])
        places, size = rest.places(x, grid), rest.taps * p
        return cls(places, of_b, grid, size, shifts, x.shape, b.shape)

    def outer(self, x: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """Return the products, `(n, q, taps * p)`, whose gradient makes windows anew."""
        q, shifts, size = self.b[-1], self.shifts, self.size

        @tf.custom_gradient
        def product(x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
            def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
                g = tf.reshape(upstream, (-1, q, shifts, size))
                g = tf.reshape(tf.transpose(g, (0, 2, 1, 3)), (-1, shifts * q, size))
                return self._of_rows(self._backwards, [self.x[1:], self.b[1:]], x, b, g)

            (j,) = self._of_rows(self._forwards, [(shifts * q, size)], x, b)
            j = tf.reshape(j, (-1, shifts, q, size))
            j = tf.transpose(j, (0, 2, 1, 3))
            return tf.reshape(j, (-1, q, shifts * size)), gradient

        return product(x, b)

    def _forwards(self, x: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Multiply a few rows' windows with their gradients."""
        # This order of the product is the faster one on a CPU.
        return (tf.matmul(self._shifted(b), self._seen(x), transpose_a=True),)

    def _backwards(self, x: tf.Tensor, b: tf.Tensor, g: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return a few rows' gradients by `x` and by `b`."""
        count, q = self.b[1:-1], self.b[-1]
        by_seen = tf.reshape(tf.matmul(self._shifted(b), g), (-1, *self.grid, self.size))
        by_shifted = tf.matmul(self._seen(x), g, transpose_b=True)
        shape = (-1, *self.grid[:1], *count[1:], self.shifts * q)
        by_b = tf.reshape(by_shifted, shape)
        if self.of_b is not None:
            by_b = self.of_b.put_back(by_b, q)
        return self.of_x.put_back(by_seen, self.x[-1]), by_b

    def _seen(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(self.of_x.take(x), (-1, math.prod(self.grid), self.size))

    def _shifted(self, b: tf.Tensor) -> tf.Tensor:
        taken = b if self.of_b is None else self.of_b.take(b)
        return tf.reshape(taken, (-1, math.prod(self.grid), self.shifts * self.b[-1]))

    def _of_rows(
        self,
        function: Callable[..., tuple[tf.Tensor, ...]],
        shapes: Sequence[Sequence[int]],
        *arrays: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Apply a function, which returns rows of these shapes, to a few rows at a time."""
        if self.x[0] is not None:
            return list(function(*arrays))
        n, dtype = length(arrays[0]), arrays[0].dtype
        numbers = math.prod(self.grid) * (self.size + self.shifts * self.b[-1])
        step = max(1, CHUNK // numbers)
        chunks = (n + step - 1) // step

        def body(i: tf.Tensor, *found: tf.TensorArray) -> tuple[Any, ...]:
            begin = tf.reshape(i * step, [1])
            end = tf.minimum(begin + step, n)
            parts = function(*(tf.strided_slice(t, begin, end, [1]) for t in arrays))
            pairs = zip(found, parts, strict=True)
            return i + 1, *(array.write(i, part) for array, part in pairs)

        start = [
            tf.TensorArray(dtype, chunks, infer_shape=False, element_shape=[None, *shape])
            for shape in shapes
        ]
        _, *done = tf.while_loop(
            lambda i, *_: i < chunks, body, (0, *start), parallel_iterations=1
        )
        return [
            tf.ensure_shape(array.concat(), [None, *shape])
            for array, shape in zip(done, shapes, strict=True)
        ]
