"""The step that every kernel trains by: the loss of some rows, differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.recompute import attach
from keras_kare.losses import GramLoss


def differentiated(
    loss: GramLoss,
    kernel: Kernel,
    variables: Sequence[Any],
    x: Any,
    y: Any,
    *weights: Any,
    intercept: bool = False,
    step: int = 0,
    extras: Callable[[], Sequence[tf.Tensor]] | None = None,
    scale: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Return the loss of rows, predictions of them, and gradients by the weights.

    Args:
        loss: What the kernel minimises. Not called itself: Keras would cast to its own
            precision.
        kernel: The kernel.
        variables: What to differentiate by; zero where the loss does not depend on one, as
            KARE on the last bias.
        x: Rows, `(n, ...)`.
        y: Targets, `(n, c)` or `(n,)`.
        *weights: How often each row counts, `(n,)`; only if given.
        intercept: Whether the machine has a constant. Defaults to `False`.
        step: Number of the step, for losses that supply their gradients. Defaults to `0`.
        extras: Returns what else is minimised, such as regularisers. Defaults to nothing.
        scale: Scales what is differentiated, and not the loss that is returned. Defaults
            to no scale.

    Returns:
        A scalar; `(n, c)`; one array a variable.
    """
    constant = {"intercept": True} if intercept else {}
    sources = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        if loss.supplies_gradients:
            with tape.stop_recording():
                found = loss.value_and_gradients(
                    kernel, x, columns(y, sources[0]), step, *weights, **constant
                )
            value, predictions = _recorded(kernel, sources[0].dtype, *found)
        else:
            gram = kernel.gram(x)
            value, predictions = loss.evaluate(columns(y, gram), gram, *weights, **constant)
        if extras is not None and (more := extras()):
            value += tf.add_n([tf.cast(extra, value.dtype) for extra in more])
        scaled = value if scale is None else scale(value)
    gradients = tape.gradient(
        scaled, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, predictions, gradients


def columns(y: Any, like: tf.Tensor) -> tf.Tensor:
    """Return targets as `(n, c)`, of the type of `like`."""
    y = tf.cast(y, like.dtype)
    if y.shape.rank == 2:
        return y
    count = y.shape[1:].num_elements() if y.shape.rank else 1
    return tf.reshape(y, (-1, count))


def _recorded(
    kernel: Kernel, dtype: Any, value: float, gradients: list[tf.Tensor], predictions: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a loss whose gradients by the kernel's variables are known, for the tape."""
    loss = attach(
        tf.constant(value, dtype),
        kernel.trainable_variables,
        lambda upstream: [tf.cast(upstream, g.dtype) * g for g in gradients],
    )
    return loss, tf.constant(predictions, dtype)
