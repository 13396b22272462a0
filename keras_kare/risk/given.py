"""What risks are given: tensors of one type, whose rows count once or several times."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare._sentences import sentence

_NOT_FINITE = sentence("`y` holds NaN or Inf")

_NOT_POSITIVE = sentence("`ridge` must be a positive finite number. Received: ridge=")


def checked(y: Any, gram: Any, ridge: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return tensors of one type and fitting shapes; outside of graphs, check values."""
    gram = _tensor("gram", gram)
    if not gram.dtype.is_floating:
        raise ValueError(
            f"`gram` must hold floats. Received: gram of dtype {gram.dtype.name}"
        )
    if gram.dtype.size < 4:  # no factorisations in half precision
        gram = tf.cast(gram, tf.float32)
    if gram.shape.rank != 2 or not gram.shape[:1].is_compatible_with(gram.shape[1:]):
        raise ValueError(
            "`gram` must be a square matrix, the kernel between all rows. "
            f"Received: gram of shape {tuple(gram.shape)}"
        )
    if gram.shape[0] is not None and gram.shape[0] < 2:
        raise ValueError(
            "`gram` must have at least two rows: one row says nothing about others. "
            f"Received: gram of shape {tuple(gram.shape)}"
        )
    y = _columns(y, gram)
    _validation.check_positive_scalar("ridge", ridge)
    if not tf.is_tensor(ridge):  # whose way to float64 must not be through float32
        ridge = np.asarray(ridge, "float64").reshape(())
    ridge = tf.cast(ridge, gram.dtype)
    if tf.executing_eagerly():
        _validation.check_finite("y", y)
        _validation.check_finite("gram", gram)
        _refuse_asymmetric(gram)
        return y, gram, ridge
    y = tf.debugging.check_numerics(y, _NOT_FINITE)
    positive = tf.debugging.Assert(  # of text alone, it is an operation and no branch
        tf.math.is_finite(ridge) & (ridge > 0), [_NOT_POSITIVE, tf.strings.as_string(ridge)]
    )
    with tf.control_dependencies([positive]):
        return y, gram, tf.identity(ridge)


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


def _refuse_asymmetric(gram: tf.Tensor) -> None:
    """Refuse what is no Gram matrix, such as a kernel between different rows."""
    off = tf.reduce_max(tf.abs(gram - tf.transpose(gram)))
    if off > 1e-3 * tf.reduce_max(tf.abs(gram)):
        raise ValueError(
            "`gram` must be symmetric: the kernel between all rows and the same rows. "
            f"Received: gram that differs from its transpose by up to {float(off):.1e}"
        )


def _tensor(name: str, value: Any) -> tf.Tensor:
    if not tf.is_tensor(value):
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise ValueError(
                f"`{name}` must hold numbers. Received: {name} of dtype {value.dtype}"
            )
    return tf.convert_to_tensor(value)


def _columns(y: Any, gram: tf.Tensor) -> tf.Tensor:
    y = _tensor("y", y)
    if y.shape.rank == 0 or not y.shape[:1].is_compatible_with(gram.shape[:1]):
        raise ValueError(
            "`y` must have one row for each row of `gram`. Received: y of shape "
            f"{tuple(y.shape)}, gram of shape {tuple(gram.shape)}"
        )
    if y.shape[1:].num_elements() == 0:
        raise ValueError(f"`y` has no columns. Received: y of shape {tuple(y.shape)}")
    y = tf.cast(y, gram.dtype)
    return y if y.shape.rank == 2 else tf.reshape(y, (tf.shape(gram)[0], -1))


def _weights(sample_weight: Any, gram: tf.Tensor) -> tf.Tensor:
    if tf.executing_eagerly():
        rows = gram.shape[0]
        sample_weight = _validation.check_weights("sample_weight", sample_weight, rows)
    # Gradients in closed form are by `y`, `K` and `z`: none by weights, not a wrong one.
    return tf.stop_gradient(tf.reshape(tf.cast(sample_weight, gram.dtype), (-1,)))
