"""Second derivatives that TensorFlow lacks.

The NTK is made of first derivatives, so its gradient needs second ones.
TensorFlow has none for `softsign`; importing this module supplies it.
"""

from __future__ import annotations

import contextlib

import tensorflow as tf


def _softsign_grad_grad(
    op: tf.Operation, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Derivative of `g / (1 + |x|)²` by `g` and by `x`."""
    g, x = op.inputs
    scale = 1.0 + tf.abs(x)
    first = upstream / tf.square(scale)
    second = -2.0 * upstream * g * tf.sign(x) / (scale * tf.square(scale))
    return first, second


# A KeyError would say that this TensorFlow has a derivative of its own.
with contextlib.suppress(KeyError):
    tf.RegisterGradient("SoftsignGrad")(_softsign_grad_grad)
