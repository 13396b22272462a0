"""A kernel of values only, for tests."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.kernel import Kernel


@keras.saving.register_keras_serializable(package="tests")
class Gaussian(Kernel):
    """`exp(-|x - x'|²)`: without a network, variables, or a finite feature map."""

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self.cross(x, x, dtype)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        a, b = (tf.cast(x, dtype or keras.config.floatx()) for x in (x1, x2))
        return tf.exp(-tf.reduce_sum(tf.square(a[:, None] - b[None]), axis=2))

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return tf.ones(tf.shape(x)[0], dtype or keras.config.floatx())
