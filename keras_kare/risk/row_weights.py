"""How often each row counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_kare import _validation


class Counted(NamedTuple):
    """Rows that count `w_i` times, as a system whose rows count once.

    Attributes:
        y: `W½ y`, `(n, c)`.
        gram: `W½ K W½ n/N`, so that dividing by `n` gives `W½ K W½/N`.
        total: `N`, the sum of the weights; `None` where each row counts once.
        root: `w½`, `(n, 1)`, by which predictions of this system are divided.
    """

    y: tf.Tensor
    gram: tf.Tensor
    total: tf.Tensor | None
    root: Any

    @property
    def constant(self) -> tf.Tensor:
        """What an intercept adds to each target of this system: `ρ`, `(n, 1)`."""
        return self.root * tf.ones_like(self.gram[:, :1])


def counted(y: tf.Tensor, gram: tf.Tensor, sample_weight: Any) -> Counted:
    """Return the system of rows that count `sample_weight` times.

    A weight of zero becomes one of the rounding unit, which lets the row be predicted
    without a formula of its own.
    """
    if sample_weight is None:
        return Counted(y, gram, None, 1.0)
    weights = _weights(sample_weight, gram)
    least = np.finfo(gram.dtype.as_numpy_dtype).eps * tf.reduce_mean(weights)
    weights = tf.maximum(weights, least)
    root, count = tf.sqrt(weights)[:, None], tf.reduce_sum(weights)
    rows = tf.cast(tf.shape(gram)[0], gram.dtype)
    return Counted(y * root, gram * root * tf.transpose(root) * (rows / count), count, root)


def _weights(sample_weight: Any, gram: tf.Tensor) -> tf.Tensor:
    if tf.executing_eagerly():
        rows = gram.shape[0]
        sample_weight = _validation.check_weights("sample_weight", sample_weight, rows)
    return tf.reshape(tf.cast(sample_weight, gram.dtype), (-1,))
