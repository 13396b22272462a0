"""Outer products with windows of inputs, as convolutions have them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kare.kernels.factors.factor import Factor, length
from keras_kare.kernels.factors.full import FullFactor
from keras_kare.kernels.factors.layout import Layout, positions
from keras_kare.kernels.factors.outer import OuterFactor
from keras_kare.kernels.factors.window_products import outer_products
from keras_kare.kernels.factors.windows import Windows


class WindowFactor(OuterFactor):
    """An `OuterFactor` whose `a` are windows: products need no array of all windows.

    Args:
        windows: The geometry.
        x: `(n, ..., d)`: inputs, channels last.
        g: `(n, C, *positions, q)`: gradients of the outputs by `h`.
        bias: As in `OuterFactor`.
        layout: As in `OuterFactor`.
    """

    def __init__(
        self, windows: Windows, x: tf.Tensor, g: tf.Tensor, bias: bool, layout: Layout
    ):
        super().__init__(x, positions(g, lead=2), bias, layout)
        self._windows, self._g = windows, g

    @property
    def a(self) -> tf.Tensor:
        """The windows, made where they are asked for: products do without them."""
        g = self._g
        count = [length(g, axis) for axis in range(2, g.shape.rank - 1)]
        return positions(self._windows.stacked(self._a, count))

    @property
    def _sizes(self) -> tuple[int, Any, int]:
        return 1, self.b.shape[2], self._windows.taps * self._a.shape[-1]

    def formed(self) -> FullFactor:
        where, (count, q) = self._g.shape[2:-1], self.b.shape[3:]
        if not (where.is_fully_defined() and self._a.shape[1:].is_fully_defined()):
            return super().formed()
        b = tf.reshape(self.b, (-1, *where, count * q))
        j = outer_products(self._windows, self._a, b)
        return self._written_out(tf.reshape(j, (-1, 1, count, q * j.shape[2])))

    def condensed(self) -> Factor:
        return self.formed() if self._forms() else self.with_parts(self.parts())
