"""Second derivatives that TensorFlow lacks.

The NTK is made of first derivatives, so its gradient needs second ones. TensorFlow has
none for `softsign`, local response normalisation and most ways to resize an image;
importing this module supplies them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

Gradients = tuple[tf.Tensor | None, ...]


def _softsign_grad_grad(op: tf.Operation, upstream: tf.Tensor) -> Gradients:
    """Differentiate `g / (1 + |x|)²` by `g` and by `x`."""
    g, x = op.inputs
    scale = 1.0 + tf.abs(x)
    first = upstream / tf.square(scale)
    second = -2.0 * upstream * g * tf.sign(x) / (scale * tf.square(scale))
    return first, second


def _normalization_grad_grad(op: tf.Operation, upstream: tf.Tensor) -> Gradients:
    """Differentiate `g s⁻ᵇ - 2ab x W(g x s⁻ᵇ⁻¹)` with `s = bias + a W(x²)`.

    `W` sums over a window of channels. The third input is a function of the second,
    `x s⁻ᵇ`, so that its derivative is in that of the second.
    """
    radius, bias, a, b = (
        op.get_attr(name) for name in ("depth_radius", "bias", "alpha", "beta")
    )
    g, x, _ = op.inputs
    channel = tf.range(tf.shape(x)[-1])
    window = tf.cast(tf.abs(channel[:, None] - channel) <= radius, x.dtype)
    with tf.GradientTape() as tape:
        tape.watch([g, x])
        s = bias + a * tf.tensordot(tf.square(x), window, 1)
        inner = tf.tensordot(g * x * s ** (-b - 1.0), window, 1)
        first = g * s**-b - 2.0 * a * b * x * inner
    return *tape.gradient(first, [g, x], output_gradients=upstream), None


def _resized(op: tf.Operation, upstream: tf.Tensor, resize: Any, **given: Any) -> tf.Tensor:
    """Resize, which is what the gradient of resizing is the transpose of."""
    g = op.inputs[0]
    return tf.cast(resize(images=upstream, size=tf.shape(g)[1:3], **given), g.dtype)


def _nearest_grad_grad(op: tf.Operation, upstream: tf.Tensor) -> Gradients:
    names = ("align_corners", "half_pixel_centers")
    given = {name: op.get_attr(name) for name in names}
    return _resized(op, upstream, tf.raw_ops.ResizeNearestNeighbor, **given), None


def _bicubic_grad_grad(op: tf.Operation, upstream: tf.Tensor) -> Gradients:
    """Resize; the second input, the image, only tells the size."""
    names = ("align_corners", "half_pixel_centers")
    given = {name: op.get_attr(name) for name in names}
    first = _resized(op, upstream, tf.raw_ops.ResizeBicubic, **given)
    return first, tf.zeros_like(op.inputs[1])


def _translate_grad_grad(op: tf.Operation, upstream: tf.Tensor) -> Gradients:
    """Resize; the second input, the image, only tells the size."""
    _, image, scale, translation = op.inputs
    given = {name: op.get_attr(name) for name in ("kernel_type", "antialias")}
    given |= {"scale": scale, "translation": translation}
    first = _resized(op, upstream, tf.raw_ops.ScaleAndTranslate, **given)
    return first, tf.zeros_like(image), None, None


_GRADIENTS = {
    "LRNGrad": _normalization_grad_grad,
    "ResizeBicubicGrad": _bicubic_grad_grad,
    "ResizeNearestNeighborGrad": _nearest_grad_grad,
    "ScaleAndTranslateGrad": _translate_grad_grad,
    "SoftsignGrad": _softsign_grad_grad,
}
for _name, _gradient in _GRADIENTS.items():
    # A KeyError would say that this TensorFlow has a derivative of its own.
    with contextlib.suppress(KeyError):
        tf.RegisterGradient(_name)(_gradient)
