"""Products of kernels."""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

from keras_kare.kernels.combined.combination import OfSeveral


@keras.saving.register_keras_serializable(package="keras_kare")
class Product(OfSeveral):
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

    def _joined(self, parts: list[tf.Tensor]) -> tf.Tensor:
        return functools.reduce(tf.multiply, parts)
