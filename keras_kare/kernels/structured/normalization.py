"""Normalisation layers, with second derivatives that are right.

`tf.nn.moments` stops the gradient of the mean. That is harmless for the first
derivative of the variance, whose term vanishes, but not for the second, so that
KARE's gradient through `LayerNormalization` and `GroupNormalization` would be off.
The formulas below are the layers' own, without that stop.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import CallRule


def _standardize(x: tf.Tensor, axes: list[int], epsilon: float) -> tf.Tensor:
    centred = x - tf.reduce_mean(x, axis=axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon)


def _at_least_float32(x: Any) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def _scale_and_shift(x: tf.Tensor, gamma: Any, beta: Any, shape: list[int]) -> tf.Tensor:
    if gamma is not None:
        x *= tf.cast(tf.reshape(gamma, shape), x.dtype)
    if beta is not None:
        x += tf.cast(tf.reshape(beta, shape), x.dtype)
    return x


class LayerNormalizationRule(CallRule):
    """`gamma (x - mean) / sqrt(variance + epsilon) + beta` over `layer.axis`."""

    def call(self, layer: keras.layers.Layer, inputs: Any) -> Any:
        x = _at_least_float32(inputs)
        rank = len(x.shape)
        axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        axes = [axis % rank for axis in axes]
        if getattr(layer, "rms_scaling", False):
            variance = tf.math.reduce_variance(x, axis=axes, keepdims=True)
            normalized = x * tf.math.rsqrt(variance + layer.epsilon)
        else:
            normalized = _standardize(x, axes, layer.epsilon)
        shape = [x.shape[axis] if axis in axes else 1 for axis in range(rank)]
        outputs = _scale_and_shift(normalized, layer.gamma, layer.beta, shape)
        return tf.cast(outputs, layer.compute_dtype)


class GroupNormalizationRule(CallRule):
    """Standardise groups of channels over all positions, then scale and shift."""

    def call(self, layer: keras.layers.Layer, inputs: Any) -> Any:
        x = _at_least_float32(inputs)
        rank = len(x.shape)
        last = [axis for axis in range(rank) if axis != layer.axis % rank]
        last.append(layer.axis % rank)
        x = tf.transpose(x, last)
        shape, channels = tf.shape(x), x.shape[-1]
        grouped = (shape[0], -1, layer.groups, channels // layer.groups)
        x = _standardize(tf.reshape(x, grouped), [1, 3], layer.epsilon)
        x = _scale_and_shift(
            tf.reshape(x, shape), layer.gamma, layer.beta, [1] * (rank - 1) + [channels]
        )
        x = tf.transpose(x, [last.index(axis) for axis in range(rank)])
        return tf.cast(x, layer.compute_dtype)


register_rule(keras.layers.LayerNormalization, LayerNormalizationRule())
register_rule(keras.layers.GroupNormalization, GroupNormalizationRule())
