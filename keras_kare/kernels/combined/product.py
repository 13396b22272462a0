"""Products of kernels."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.combined.combination import Combination


@keras.saving.register_keras_serializable(package="keras_kare")
class Product(Combination):
    """`K(x, x') = Π_i K_i(x, x')`, also written `kernel * kernel`: alike in every respect.

    Args:
        kernels: A list of kernels, at least one.
        name: Name of the layer.

    Raises:
        TypeError: If one is no kernel.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    first, rest = kk.kernels.On(kk.kernels.Laplace(), [0]), kk.kernels.Polynomial(2)
    gram = (first * rest).gram(x)  # (100, 100)
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", section 4.2.4.
    """

    def __init__(self, kernels: Any, name: str | None = None, **kwargs: Any):
        if not isinstance(kernels, list | tuple) or not kernels:
            raise TypeError(
                "`kernels` must be a list of kernels, at least one. "
                f"Received: kernels={kernels!r}"
            )
        super().__init__(kernels, name, **kwargs)

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return _product([kernel.gram(x, dtype) for kernel in self.kernels])

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        return _product([kernel.cross(x1, x2, dtype) for kernel in self.kernels])

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return _product([kernel.diag(x, dtype) for kernel in self.kernels])


def _product(parts: list[tf.Tensor]) -> tf.Tensor:
    wide = any(part.dtype == tf.float64 for part in parts)
    same = [tf.cast(part, tf.float64) if wide else part for part in parts]
    return functools.reduce(tf.multiply, same)
