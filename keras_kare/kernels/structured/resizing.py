"""Resizing of images, with the second derivatives that TensorFlow lacks.

The gradient of `ResizeBilinearGrad` is registered as none, so that KARE's gradient lost
what goes through it in silence; those of the other methods are missing altogether. But
resizing is a matrix along each axis. It is read off TensorFlow's own resizing of an
identity matrix, and its product differentiates to any order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule, Watcher

_PIECE = 2**22  # numbers resized at once to read off a matrix


@dataclass(frozen=True)
class _Way:
    """The arguments of `keras.ops.image.resize`."""

    interpolation: str
    antialias: bool = False
    crop: bool = False
    pad: bool = False

    def resize(
        self, x: Any, size: Any, fill: float = 0.0, data_format: str = "channels_last"
    ) -> Any:
        return keras.ops.image.resize(
            x,
            size,
            interpolation=self.interpolation,
            antialias=self.antialias,
            crop_to_aspect_ratio=self.crop,
            pad_to_aspect_ratio=self.pad,
            fill_value=fill,
            data_format=data_format,
        )

    def matrices(self, old: Any, new: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Return both axes' matrices, `(new, old)` each; `None` where sizes are not known.

        Without cropping and padding the axes know nothing of each other, and a matrix
        can be made within the graph.
        """
        if all(isinstance(size, int) for size in (*old, *new)):
            return _known_matrices(self, tuple(old), tuple(new))
        if self.crop or self.pad:
            return None
        return self.along(old[0], new[0]), self.along(old[1], new[1])

    def along(self, old: Any, new: Any) -> tf.Tensor:
        """Return the matrix of an axis: columns resized as images one pixel wide."""
        resized = self.resize(tf.eye(old)[None, :, None, :], (new, 1))
        return tf.reshape(resized, (new, old))


@functools.lru_cache(maxsize=64)
def _known_matrices(
    way: _Way, old: tuple[int, int], new: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    with tf.init_scope():
        if not (way.crop or way.pad):
            heights, widths = (way.along(a, b) for a, b in zip(old, new, strict=True))
            return np.asarray(heights), np.asarray(widths)
        ones = np.asarray(way.resize(tf.ones((1, *old, 1)), new))[0, :, :, 0]
        row, column = np.unravel_index(np.argmax(np.abs(ones)), ones.shape)
        heights = _columns(way, old, new, axis=0)[:, column]
        widths = _columns(way, old, new, axis=1)[row]
        return heights, widths / ones[row, column]


def _columns(
    way: _Way, old: tuple[int, int], new: tuple[int, int], axis: int
) -> np.ndarray:
    """Resize images that are one in one row (or column) and zero in the others.

    Returns:
        Array `(new height, new width, old size of the axis)`.
    """
    eye = np.eye(old[axis], dtype="float32")
    eye = eye[:, None, :] if axis == 0 else eye[None, :, :]
    images = np.broadcast_to(eye, (*old, old[axis]))[None]
    step = max(1, _PIECE // (old[0] * old[1] + new[0] * new[1]))
    pieces = [
        np.asarray(way.resize(tf.constant(images[..., start : start + step]), new))[0]
        for start in range(0, old[axis], step)
    ]
    return np.concatenate(pieces, axis=-1)


def _resized(way: _Way, x: tf.Tensor, new: Any, data_format: str, fill: float = 0.0) -> Any:
    """Return what `way.resize` does, to the last bit, with all derivatives."""
    axes = (2, 3) if data_format == "channels_first" else (1, 2)
    matrices = way.matrices([keras.ops.shape(x)[a] for a in axes], new)
    if matrices is None:
        return NotImplemented
    letters = "nchw" if data_format == "channels_first" else "nhwc"
    wide = x.dtype if x.dtype == tf.float64 else tf.float32
    product = tf.cast(x, wide)
    for old_letter, new_letter, matrix in zip("hw", "pq", matrices, strict=True):
        after = letters.replace(old_letter, new_letter)
        equation = f"{new_letter}{old_letter},{letters}->{after}"
        product = tf.einsum(equation, tf.cast(matrix, wide), product)
        letters = after
    # TensorFlow's own values, which are of type float32 whatever the images are.
    own = way.resize(x, new, fill, data_format)
    product += tf.stop_gradient(tf.cast(own, wide) - product)
    return tf.cast(product, own.dtype)


class UpSampling2DRule(LayerRule):
    """The rule of resizing by whole factors. `"nearest"` is right as it is."""

    corrects = True

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        if layer.interpolation == "nearest" or not x.dtype.is_floating:
            return NotImplemented
        first = layer.data_format == "channels_first"
        height, width = keras.ops.shape(x)[2:] if first else keras.ops.shape(x)[1:3]
        new = (height * layer.size[0], width * layer.size[1])
        return _resized(_Way(layer.interpolation), x, new, layer.data_format)


class ResizingRule(LayerRule):
    """The rule of resizing to one size, cropped or padded to keep the sides' ratio."""

    corrects = True

    def call(
        self, layer: keras.layers.Layer, watch: Watcher, data: Any, training: Any = True
    ) -> Any:
        if isinstance(data, dict):  # with boxes, labels, masks
            return NotImplemented
        x = tf.convert_to_tensor(data)
        if x.shape.rank != 4 or not x.dtype.is_floating:
            return NotImplemented
        way = _Way(
            layer.interpolation,
            getattr(layer, "antialias", False),
            layer.crop_to_aspect_ratio,
            layer.pad_to_aspect_ratio,
        )
        new = (layer.height, layer.width)
        resized = _resized(way, x, new, layer.data_format, layer.fill_value)
        if resized is NotImplemented or resized.dtype == x.dtype:
            return resized
        return tf.saturate_cast(resized, x.dtype)


register_rule(keras.layers.UpSampling2D, UpSampling2DRule())
register_rule(keras.layers.Resizing, ResizingRule())
