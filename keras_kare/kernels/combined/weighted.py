"""A kernel times a number."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.combined.combination import OfOne
from keras_kare.kernels.kernel import Kernel


@keras.saving.register_keras_serializable(package="keras_kare")
class Weighted(OfOne):
    """`c K(x, x')`, also written `c * kernel`, with a weight that trains.

    Args:
        kernel: The kernel.
        weight: The start of `c`, a positive number. Trains, as its logarithm.
        name: Name of the layer.

    Attributes:
        log_weight: The variable `log(c)`.

    Raises:
        TypeError: If `kernel` is no kernel.
        ValueError: If `weight` is no positive number.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = (0.5 * kk.kernels.Laplace() + kk.kernels.Gaussian()).gram(x)  # (100, 100)
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", section 4.2.4.
    """

    def __init__(
        self, kernel: Kernel, weight: float = 1.0, name: str | None = None, **kwargs: Any
    ):
        _validation.check_positive("weight", weight)
        super().__init__(kernel, name, **kwargs)
        self.weight, self.has_features = float(weight), kernel.has_features
        first = keras.initializers.Constant(np.log(weight))
        self.log_weight = self.add_weight(shape=(), initializer=first, name="log_weight")

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._times(self.kernel.gram(x, dtype))

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        return self._times(self.kernel.cross(x1, x2, dtype))

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._times(self.kernel.diag(x, dtype))

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        return [self._times(w, 0.5) for w in self.kernel.vjp(x, v, dtype)]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        return self._times(self.kernel.jvp(x, w), 0.5)

    def _times(self, values: tf.Tensor, power: float = 1.0) -> tf.Tensor:
        """Multiply by a power of the weight."""
        return values * tf.exp(power * tf.cast(self.log_weight, values.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}
