"""Arc-cosine kernels: infinitely wide networks of threshold units."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic.closed_form import ClosedForm
from keras_kare.kernels.classic.expectations import root


@keras.saving.register_keras_serializable(package="keras_kare")
class ArcCosine(ClosedForm):
    """Cho and Saul's kernel of one hidden layer of units `max(0, w·x)^p`, or several.

    `K(x, x') = (1/π) (‖x‖ ‖x'‖)^p J_p(θ)` with the angle `θ` of the rows, and
    `J_0 = π − θ`, `J_1 = sin θ + (π − θ) cos θ`,
    `J_2 = 3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)`. Each further layer takes the kernel of
    the one before for products.

    Angles come from cosines, so that order 0, which has a kink at equal rows, is right to
    the root of the type's rounding there (1e-8 in float64).

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
        if order not in ANGULAR:
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
        same, b = b is None, a if b is None else b
        products = tf.matmul(a, b, transpose_b=True) + self._square(a.dtype)
        left, right = self._sizes(a), self._sizes(b)
        for _ in range(self.depth):
            scale = root(left[:, None] * right)
            cosine = tf.math.divide_no_nan(products, scale)
            if same:  # to the last digit
                cosine = tf.linalg.set_diag(cosine, tf.ones_like(left))
            products = self._power(scale) * ANGULAR[self.order](cosine)
            left, right = self._next(left), self._next(right)
        return products

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        sizes = self._sizes(a)
        for _ in range(self.depth):
            sizes = self._next(sizes)
        return sizes

    def _square(self, dtype: Any) -> tf.Tensor:
        return tf.square(tf.cast(self.bias_value, dtype))

    def _sizes(self, a: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(a * a, axis=1) + self._square(a.dtype)

    def _next(self, sizes: tf.Tensor) -> tf.Tensor:
        """Return the kernel of rows with themselves, a layer on: `J_p(0)/π` is 1, 1, 3."""
        return (3.0 if self.order == 2 else 1.0) * self._power(sizes)

    def _power(self, sizes: tf.Tensor) -> tf.Tensor:
        """Return `sizes` to the power `p`, with a derivative at 0."""
        return sizes**self.order if self.order else tf.ones_like(sizes)

    def get_config(self) -> dict[str, Any]:
        own = {"order": self.order, "depth": self.depth, "bias": self.bias}
        return {**super().get_config(), **own}


def _angular(value: Any, slope: Any) -> Any:
    """Make a function of the cosine, divided by π, whose derivative is given.

    Args:
        value: Takes the angle, its sine and its cosine.
        slope: Takes them, and returns the derivative by the cosine, finite at 1.
    """

    @tf.custom_gradient
    def function(cosine: tf.Tensor) -> tuple[tf.Tensor, Any]:
        c = tf.clip_by_value(cosine, -1.0, 1.0)
        parts = tf.acos(c), tf.sqrt((1.0 - c) * (1.0 + c)), c
        return value(*parts) / np.pi, lambda upstream: upstream * slope(*parts) / np.pi

    return function


ANGULAR = {
    0: _angular(
        lambda t, s, c: np.pi - t, lambda t, s, c: tf.math.divide_no_nan(tf.ones_like(s), s)
    ),
    1: _angular(lambda t, s, c: s + (np.pi - t) * c, lambda t, s, c: np.pi - t),
    2: _angular(
        lambda t, s, c: 3.0 * s * c + (np.pi - t) * (1.0 + 2.0 * c * c),
        lambda t, s, c: 4.0 * (s + (np.pi - t) * c),
    ),
}
"""`J_p(θ)/π` of the cosine, by order; at 1 the derivative of order 0 counts as 0."""
