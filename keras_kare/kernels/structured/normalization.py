"""Normalisation layers, with second derivatives that are right.

`tf.nn.moments` stops the gradient of the mean. That is harmless for the first
derivative of the variance, whose term vanishes, but not for the second, so that
KARE's gradient through `LayerNormalization` and `GroupNormalization` would be off.
The formulas below are the layers' own, without that stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule, MakeFactor, Watcher


def elementwise(x: tf.Tensor | None, axes: Sequence[int]) -> MakeFactor:
    """Make the factor of a scale (by `x`) or of a shift (no `x`) along `axes` of `h`."""

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        each = gradients
        if x is not None:
            each = tf.cast(x, gradients.dtype)[:, None] * gradients
        over = [a + 1 for a in range(1, each.shape.rank - 1) if a not in axes]
        return FullFactor(tf.reduce_sum(each, axis=over))

    return factor


def scale_and_shift(
    watch: Watcher,
    x: tf.Tensor,
    gamma: keras.Variable | None,
    beta: keras.Variable | None,
    axes: Sequence[int],
) -> tf.Tensor:
    """Return `gamma x + beta`, both along `axes`; either may be missing."""
    shape = [x.shape[a] if a in axes else 1 for a in range(x.shape.rank)]
    h = x
    if gamma is not None:
        h *= tf.reshape(tf.cast(gamma, x.dtype), shape)
    if beta is not None:
        h += tf.reshape(tf.cast(beta, x.dtype), shape)
    if gamma is not None:
        h = watch(h, [gamma], elementwise(x, axes))
    return h if beta is None else watch(h, [beta], elementwise(None, axes))


def _standardize(x: tf.Tensor, axes: list[int], epsilon: float) -> tf.Tensor:
    centred = x - tf.reduce_mean(x, axis=axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon)


def _at_least_float32(x: Any) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def _axes(layer: keras.layers.Layer, rank: int) -> list[int]:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return sorted(axis % rank for axis in axes)


class LayerNormalizationRule(LayerRule):
    """The rule of `gamma (x - mean) / sqrt(variance + epsilon) + beta` over some axes."""

    corrects = True

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        x = _at_least_float32(inputs)
        axes = _axes(layer, len(x.shape))
        if getattr(layer, "rms_scaling", False):
            variance = tf.math.reduce_variance(x, axis=axes, keepdims=True)
            normalized = x * tf.math.rsqrt(variance + layer.epsilon)
        else:
            normalized = _standardize(x, axes, layer.epsilon)
        h = scale_and_shift(watch, normalized, layer.gamma, layer.beta, axes)
        return tf.cast(h, layer.compute_dtype)


class RMSNormalizationRule(LayerRule):
    """The rule of `scale x / sqrt(mean(x²) + epsilon)` over some axes."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        x = _at_least_float32(inputs)
        axes = _axes(layer, len(x.shape))
        mean = tf.reduce_mean(tf.square(x), axis=axes, keepdims=True)
        normalized = x * tf.math.rsqrt(mean + layer.epsilon)
        # The layer's scale has the shape of its axes, but only the last when one.
        h = scale_and_shift(watch, normalized, layer.scale, None, axes)
        return tf.cast(h, layer.compute_dtype)


class GroupNormalizationRule(LayerRule):
    """The rule that standardises groups of channels, then scales and shifts."""

    corrects = True

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        x = _at_least_float32(inputs)
        rank = len(x.shape)
        last = [axis for axis in range(rank) if axis != layer.axis % rank]
        last.append(layer.axis % rank)
        moved = tf.transpose(x, last)
        shape, channels = tf.shape(moved), moved.shape[-1]
        grouped = (shape[0], -1, layer.groups, channels // layer.groups)
        standard = _standardize(tf.reshape(moved, grouped), [1, 3], layer.epsilon)
        standard = tf.ensure_shape(tf.reshape(standard, shape), moved.shape)
        h = scale_and_shift(watch, standard, layer.gamma, layer.beta, [rank - 1])
        h = tf.transpose(h, [last.index(axis) for axis in range(rank)])
        return tf.cast(h, layer.compute_dtype)


class BatchNormalizationRule(LayerRule):
    """The rule of `gamma (x - moving mean) / sqrt(moving variance + epsilon) + beta`.

    In training mode rows interact, and there is no NTK; kernels never run it so.
    """

    def call(
        self,
        layer: keras.layers.Layer,
        watch: Watcher,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
    ) -> Any:
        if training and layer.trainable:
            return NotImplemented
        x = _at_least_float32(inputs)
        axis = layer.axis % len(x.shape)
        shape = [1] * len(x.shape)
        shape[axis] = x.shape[axis]
        mean, variance = (
            tf.reshape(tf.cast(v, x.dtype), shape)
            for v in (layer.moving_mean, layer.moving_variance)
        )
        x = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
        h = scale_and_shift(watch, x, layer.gamma, layer.beta, [axis])
        return tf.cast(h, layer.compute_dtype)


class PReLURule(LayerRule):
    """The rule of `max(x, 0) + alpha min(x, 0)`, with one `alpha` along some axes."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        positive, negative = keras.activations.relu(x), -keras.activations.relu(-x)
        repeated = [a for a in range(1, x.shape.rank) if layer.alpha.shape[a - 1] == 1]
        axes = [a for a in range(1, x.shape.rank) if a not in repeated]
        h = positive + layer.alpha * negative
        return watch(h, [layer.alpha], elementwise(negative, axes))


register_rule(keras.layers.LayerNormalization, LayerNormalizationRule())
register_rule(keras.layers.GroupNormalization, GroupNormalizationRule())
register_rule(keras.layers.BatchNormalization, BatchNormalizationRule())
register_rule(keras.layers.PReLU, PReLURule())
if hasattr(keras.layers, "RMSNormalization"):  # since Keras 3.9
    register_rule(keras.layers.RMSNormalization, RMSNormalizationRule())
