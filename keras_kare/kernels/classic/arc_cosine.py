"""Arc-cosine kernels: infinitely wide networks of threshold units."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic.closed_form import ClosedForm
from keras_kare.kernels.classic.expectations import (
    apart_after_relu,
    apart_after_squares,
    apart_after_steps,
    apart_of,
    root,
)

APART = {0: apart_after_steps, 1: apart_after_relu, 2: apart_after_squares}
"""What layers make of one minus the cosine of the angle of rows, by order."""


@keras.saving.register_keras_serializable(package="keras_kare")
class ArcCosine(ClosedForm):
    """Cho and Saul's kernel of one hidden layer of units `max(0, w·x)^p`, or several.

    `K(x, x') = (1/π) (‖x‖ ‖x'‖)^p J_p(θ)` with the angle `θ` of the rows, and
    `J_0 = π − θ`, `J_1 = sin θ + (π − θ) cos θ`,
    `J_2 = 3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)`. Each further layer takes the kernel of
    the one before for products. Equal and near rows keep all digits; of order 0, which has
    a kink there too, opposite rows keep half of them.

    Args:
        order: `p`: 0 for steps, 1 for ReLU, 2 for squares. Defaults to `1`.
        depth: Number of layers, at least 1. Defaults to `1`.
        bias: A number that each row has as one more column. Trains. Defaults to `0.0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Raises:
        ValueError: If one is out of range.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.ArcCosine(order=1, depth=3).gram(x)  # (100, 100)
    ```

    References:
        - Cho, Saul, "Kernel methods for deep learning", NeurIPS 2009, eq. 3 to 11.
    """

    def __init__(
        self,
        order: int = 1,
        depth: int = 1,
        bias: float = 0.0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if order not in APART:
            raise ValueError(f"`order` must be 0, 1 or 2. Received: order={order!r}")
        _validation.check_whole("depth", depth, 1)
        if not (_validation.is_number(bias) and np.isfinite(bias)):
            raise ValueError(f"`bias` must be a number. Received: bias={bias!r}")
        super().__init__(memory_limit, name, **kwargs)
        self.order, self.depth, self.bias = int(order), depth, float(bias)

    def _make_variables(self, columns: int) -> None:
        self.bias_value = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(np.float64(self.bias)),
            name="bias",
        )

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        left, right = self._sizes(a), self._sizes(a if b is None else b)
        apart = apart_of(self._wider(a), None if b is None else self._wider(b))
        for _ in range(self.depth):
            scale = root(left[:, None] * right)
            apart = APART[self.order](apart)
            values = self._next(scale) * (1.0 - apart)
            left, right = self._next(left), self._next(right)
        return values

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        sizes = self._sizes(a)
        for _ in range(self.depth):
            sizes = self._next(sizes)
        return sizes

    def _sizes(self, a: tf.Tensor) -> tf.Tensor:
        bias = tf.cast(self.bias_value, a.dtype)
        return tf.reduce_sum(a * a, axis=1) + tf.square(bias)

    def _wider(self, a: tf.Tensor) -> tf.Tensor:
        """Return rows with the bias; those of zeros have a direction of their own."""
        bias = tf.cast(self.bias_value, a.dtype) * tf.ones_like(a[:, :1])
        rows = tf.concat([a, bias], axis=1)
        zero = tf.reduce_all(rows == 0.0, axis=1, keepdims=True)
        return tf.concat([rows, tf.cast(zero, a.dtype)], axis=1)

    def _next(self, sizes: tf.Tensor) -> tf.Tensor:
        """Return the kernel of rows with themselves, a layer on: `J_p(0)/π` is 1, 1, 3."""
        if self.order == 0:  # a power of 0 has no derivative at 0
            return tf.ones_like(sizes)
        return 3.0 * sizes * sizes if self.order == 2 else sizes

    def get_config(self) -> dict[str, Any]:
        own = {"order": self.order, "depth": self.depth, "bias": self.bias}
        return {**super().get_config(), **own}
