"""Polynomial kernels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic.closed_form import ClosedForm
from keras_kare.kernels.classic.expectations import directions


@keras.saving.register_keras_serializable(package="keras_kare")
class Polynomial(ClosedForm):
    """`K(x, x') = (γ xᵀx' + b)^p`: all products of up to `p` columns.

    Args:
        degree: `p`, at least 1. Defaults to `3`.
        gamma: `γ`, a positive number; `None` for one over the number of columns. Trains, as
            its logarithm. Defaults to `None`.
        offset: `b`, at least 0, by which products of fewer columns count. Above 0 it
            trains, as its logarithm. Defaults to `1.0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    These are the parameters of scikit-learn's `polynomial_kernel`, with its defaults.

    Raises:
        ValueError: If one is out of range.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.Polynomial(degree=2).gram(x)  # (100, 100)
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", section 4.2.2.
    """

    def __init__(
        self,
        degree: int = 3,
        gamma: float | None = None,
        offset: float = 1.0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_whole("degree", degree, 1)
        _validation.check_positive("gamma", gamma, None)
        _validation.check_at_least_zero("offset", offset)
        super().__init__(memory_limit, name, **kwargs)
        self.degree, self.gamma, self.offset = degree, gamma, offset

    def _make_variables(self, columns: int) -> None:
        gamma = 1.0 / columns if self.gamma is None else self.gamma
        starts = {"log_gamma": gamma}
        if self.offset:
            starts["log_offset"] = self.offset
        for name, start in starts.items():
            initializer = keras.initializers.Constant(np.log(start))
            setattr(
                self, name, self.add_weight(shape=(), initializer=initializer, name=name)
            )

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        return self._of_products(tf.matmul(a, a if b is None else b, transpose_b=True))

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        return self._of_products(tf.reduce_sum(a * a, axis=1))

    def _of_products(self, products: tf.Tensor) -> tf.Tensor:
        base = tf.exp(tf.cast(self.log_gamma, products.dtype)) * products
        if self.offset:
            base += tf.exp(tf.cast(self.log_offset, products.dtype))
        return _power(base, self.degree)

    def normalized(self, x1: Any, x2: Any = None, dtype: str | None = None) -> tf.Tensor:
        name = "x" if x2 is None else "x1"
        a, b = self._rows(name, x1, dtype), None
        if x2 is None:
            return self._sound(self._all(a, b, dtype, self._cosines), (name, a), (name, a))
        b = self._rows("x2", x2, dtype)
        return self._sound(self._all(a, b, dtype, self._cosines), (name, a), ("x2", b))

    def normalized_diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        a = self._rows("x", x, dtype)
        sizes = tf.reduce_sum(tf.square(self._directions(a)), axis=1)
        return self._sound(sizes, ("x", a))

    def _cosines(self, a: tf.Tensor, b: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        left = self._directions(a)
        right = left if b is None else self._directions(b)
        return _power(tf.matmul(left, right, transpose_b=True), self.degree)

    def _directions(self, a: tf.Tensor) -> tf.Tensor:
        """Return rows of length one, with the root of the offset as one more column."""
        a *= tf.exp(0.5 * tf.cast(self.log_gamma, a.dtype))
        if self.offset:
            more = tf.exp(0.5 * tf.cast(self.log_offset, a.dtype))
            a = tf.concat([a, more * tf.ones_like(a[:, :1])], axis=1)
        return directions(a)

    def get_config(self) -> dict[str, Any]:
        own = {"degree": self.degree, "gamma": self.gamma, "offset": self.offset}
        return {**super().get_config(), **own}


def _power(base: tf.Tensor, degree: int) -> tf.Tensor:
    value = base
    for _ in range(degree - 1):  # `tf.pow` has no derivative by a base below 0
        value *= base
    return value
