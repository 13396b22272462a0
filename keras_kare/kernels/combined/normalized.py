"""Cosines of kernels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.combined.combination import OfOne


@keras.saving.register_keras_serializable(package="keras_kare")
class Normalized(OfOne):
    """`K(x, x') / √(K(x, x) K(x', x'))`: every row counts alike, however large it is.

    Zero for rows whose kernel with themselves is 0.

    Args:
        kernel: The kernel.
        name: Name of the layer.

    Raises:
        TypeError: If `kernel` is no kernel.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.Normalized(kk.kernels.Polynomial()).gram(x)  # 1 on the diagonal
    ```

    References:
        - Shawe-Taylor, Cristianini, "Kernel methods for pattern analysis", section 5.1.
    """

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        if (found := self.kernel.normalized(x, None, dtype)) is not None:
            return found
        values = self.kernel.gram(x, dtype)
        sizes = _inverse_root(tf.linalg.diag_part(values))
        return sizes[:, None] * values * sizes

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        if (found := self.kernel.normalized(x1, x2, dtype)) is not None:
            return found
        values = self.kernel.cross(x1, x2, dtype)
        left, right = (_inverse_root(self.kernel.diag(x, dtype)) for x in (x1, x2))
        return left[:, None] * values * right

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        if (found := self.kernel.normalized_diag(x, dtype)) is not None:
            return found
        sizes = self.kernel.diag(x, dtype)
        return sizes * tf.square(_inverse_root(sizes))

    def check(self, x: Any, rows: int | None = None) -> None:
        if self.kernel.normalized_diag(x) is None:  # else values of any size do
            super().check(x, rows)
        self.built = True


def _inverse_root(sizes: tf.Tensor) -> tf.Tensor:
    """Return `1/√size`, and 0 for 0, with a gradient that is never NaN."""
    positive = sizes > 0.0
    safe = tf.where(positive, sizes, tf.ones_like(sizes))
    return tf.where(positive, tf.math.rsqrt(safe), tf.zeros_like(sizes))
