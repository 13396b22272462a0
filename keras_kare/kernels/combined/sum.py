"""Sums of kernels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.combined.combination import OfSeveral, widened


@keras.saving.register_keras_serializable(package="keras_kare")
class Sum(OfSeveral):
    """`K(x, x') = Σ_i K_i(x, x')`, also written `kernel + kernel`: targets that are sums.

    Where all have a finite feature map, so has the sum: theirs side by side, which gives
    heads a primal form.

    Args:
        kernels: A list of kernels, at least one.
        name: Name of the layer.

    Raises:
        TypeError: If one is no kernel.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    kernel = kk.kernels.Polynomial(1) + 0.5 * kk.kernels.Laplace()
    gram = kernel.gram(x)  # (100, 100)
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", section 4.2.4.
    """

    def __init__(self, kernels: Any, name: str | None = None, **kwargs: Any):
        super().__init__(kernels, name, **kwargs)
        self.has_features = all(kernel.has_features for kernel in kernels)

    def _joined(self, parts: list[tf.Tensor]) -> tf.Tensor:
        return tf.add_n(parts)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        if not self.has_features:
            return super().vjp(x, v, dtype)
        return [w for kernel in self.kernels for w in kernel.vjp(x, v, dtype)]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        if not self.has_features:
            return super().jvp(x, w)
        parts, begin = [], 0
        for kernel in self.kernels:
            end = begin + len(kernel._feature_shapes(x))
            parts.append(kernel.jvp(x, w[begin:end]))
            begin = end
        return self._joined(widened(parts))
