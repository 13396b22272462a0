"""Convolutions of one to three dimensions: plain, depthwise, separable, transposed.

A convolution is a `Dense` at every position of its output, on the window of inputs
that the position sees. A transposed convolution is one at every position of its
*input*, whose output gradients are windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import (
    Factor,
    FullFactor,
    Layout,
    OuterFactor,
    WindowFactor,
    Windows,
    length,
    positions,
)
from keras_kare.kernels.structured.affine import affine, bias_factor, channels_last
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import (
    LayerRule,
    MakeFactor,
    Watcher,
    activate,
    add_bias,
    present,
)


def _windows(layer: keras.layers.Layer) -> Windows:
    return Windows(
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(layer.dilation_rate),
        layer.padding,
    )


def _positions_of(x: tf.Tensor, first: int = 1) -> list[Any]:
    """Return the lengths of the axes of positions: numbers, or tensors where not known."""
    axes = range(first, x.shape.rank - 1)
    return [length(x, axis) for axis in axes]


class ConvRule(LayerRule):
    """The rule of `Conv1D`, `Conv2D`, `Conv3D`, with groups of channels."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        h = _convolve(layer, inputs)
        h = watch(
            add_bias(h, layer.bias, layer.data_format),
            present(layer.kernel, layer.bias),
            _convolution(layer, layer.kernel, layer.bias, tf.convert_to_tensor(inputs)),
        )
        return activate(layer, h)


def _convolve(layer: keras.layers.Layer, inputs: Any) -> tf.Tensor:
    padding = layer.padding
    if padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        sides = [(before, 0), (0, 0)]
        if layer.data_format == "channels_first":
            sides.reverse()
        inputs, padding = tf.pad(inputs, [(0, 0), *sides]), "valid"
    return keras.ops.conv(
        inputs,
        layer.kernel,
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _convolution(
    layer: keras.layers.Layer,
    kernel: keras.Variable,
    bias: keras.Variable | None,
    inputs: tf.Tensor,
) -> MakeFactor:
    windows, groups = _windows(layer), layer.groups
    *_, p, features = kernel.shape
    # Products are (group, tap, input channel, output channel); of the kernel's axis of
    # output channels, the group is the slower part.
    layout = Layout((groups, windows.taps, p, features // groups), (1, 2, 0, 3))

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        g = channels_last(gradients, layer.data_format, lead=2)
        if variables[0] is bias:
            return bias_factor(g)
        x = channels_last(tf.cast(inputs, g.dtype), layer.data_format)
        with_bias = len(variables) == 2
        if groups == 1:
            return WindowFactor(windows, x, g, with_bias, layout)
        a = _grouped(windows, x, _positions_of(g, first=2), groups)
        return OuterFactor(a, positions(g, 2, groups), with_bias, layout)

    return factor


def _grouped(windows: Windows, x: tf.Tensor, count: list[Any], groups: int) -> tf.Tensor:
    """Sort windows by groups of channels, `(n, G, T, taps * d / G)`."""
    a = positions(windows.stacked(x, count))
    taps, channels = windows.taps, x.shape[-1]
    steps = -1 if a.shape[2] is None else a.shape[2]
    rows = length(x) if steps == -1 else -1
    a = tf.reshape(a, (rows, steps, taps, groups, channels // groups))
    a = tf.transpose(a, (0, 3, 1, 2, 4))
    return tf.reshape(a, (rows, groups, steps, taps * channels // groups))


class DepthwiseConvRule(LayerRule):
    """The rule of `DepthwiseConv1D` and `DepthwiseConv2D`: each channel has its windows."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        h = _depthwise(layer, inputs, layer.kernel)
        x = tf.convert_to_tensor(inputs)
        h = watch(h, [layer.kernel], _depthwise_factor(layer, x))
        if layer.bias is not None:
            h = add_bias(h, layer.bias, layer.data_format)
            h = watch(h, [layer.bias], _channel_bias(layer))
        return activate(layer, h)


def _depthwise(layer: keras.layers.Layer, inputs: Any, kernel: keras.Variable) -> tf.Tensor:
    return keras.ops.depthwise_conv(
        inputs,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _depthwise_factor(layer: keras.layers.Layer, inputs: tf.Tensor) -> MakeFactor:
    """Write gradients out, always: a window times its multiplier is a short gradient."""
    windows, data_format = _windows(layer), layer.data_format

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        x = channels_last(tf.cast(inputs, gradients.dtype), data_format)
        g = channels_last(gradients, data_format, lead=2)
        channels = x.shape[-1]
        # (n, T, d) for each tap, (n, C, T, d, multiplier)
        outputs, multiplier = g.shape[1], g.shape[-1] // channels
        count = _positions_of(g, first=2)
        g = tf.reshape(g, tf.concat([tf.shape(g)[:-1], [channels, multiplier]], axis=0))
        over = list(range(2, g.shape.rank - 2))
        seen = windows.stacked(x, count)
        taps = [
            tf.reduce_sum(tap[:, None, ..., None] * g, axis=over)
            for tap in tf.split(seen, windows.taps, axis=-1)
        ]
        j = tf.stack(taps, axis=2)  # (n, C, taps, d, multiplier)
        size = windows.taps * channels * multiplier
        return FullFactor(tf.reshape(j, (-1, outputs, size)))

    return factor


def _channel_bias(layer: keras.layers.Layer) -> MakeFactor:
    return lambda variables, gradients: bias_factor(
        channels_last(gradients, layer.data_format, lead=2)
    )


class SeparableConvRule(LayerRule):
    """The rule of `SeparableConv1D` and `SeparableConv2D`: depthwise, then dense."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        middle = _depthwise(layer, inputs, layer.depthwise_kernel)
        x = tf.convert_to_tensor(inputs)
        middle = watch(middle, [layer.depthwise_kernel], _depthwise_factor(layer, x))
        h = keras.ops.conv(
            middle,
            layer.pointwise_kernel,
            strides=1,
            padding="valid",
            data_format=layer.data_format,
        )

        def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            g = channels_last(gradients, layer.data_format, lead=2)
            a = channels_last(middle, layer.data_format)
            return affine(layer.bias, a)(variables, g)

        h = watch(
            add_bias(h, layer.bias, layer.data_format),
            present(layer.pointwise_kernel, layer.bias),
            factor,
        )
        return activate(layer, h)


class ConvTransposeRule(LayerRule):
    """The rule of `Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        h = keras.ops.conv_transpose(
            inputs,
            layer.kernel,
            strides=list(layer.strides),
            padding=layer.padding,
            output_padding=layer.output_padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
        x = tf.convert_to_tensor(inputs)
        h = watch(h, [layer.kernel], _transposed(layer, x))
        if layer.bias is not None:
            h = add_bias(h, layer.bias, layer.data_format)
            h = watch(h, [layer.bias], _channel_bias(layer))
        return activate(layer, h)


def _transposed(layer: keras.layers.Layer, inputs: tf.Tensor) -> MakeFactor:
    windows = _windows(layer)
    *_, features, channels = layer.kernel.shape
    layout = Layout((1, channels, windows.taps, features), (0, 2, 3, 1))

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        x = channels_last(tf.cast(inputs, gradients.dtype), layer.data_format)
        g = channels_last(gradients, layer.data_format, lead=2)
        outputs, size = g.shape[1], windows.taps * features
        flat = tf.reshape(g, tf.concat([[-1], tf.shape(g)[2:]], axis=0))
        flat = tf.ensure_shape(flat, [None, *g.shape[2:]])
        seen = positions(windows.stacked(flat, _positions_of(x)))  # (n C, 1, T, size)
        a, steps = positions(x), tf.shape(seen)[2]
        seen = tf.reshape(seen, tf.stack([-1, outputs, steps, size]))
        seen = tf.ensure_shape(seen, (None, outputs, a.shape[2], size))
        b = tf.transpose(seen, (0, 2, 1, 3))[:, None]
        return OuterFactor(a, b, layout=layout)

    return factor


def _types(*names: str) -> list[type]:
    return [getattr(keras.layers, name) for name in names]


_FAMILIES: list[tuple[Callable[[], LayerRule], list[type]]] = [
    (ConvRule, _types("Conv1D", "Conv2D", "Conv3D")),
    (DepthwiseConvRule, _types("DepthwiseConv1D", "DepthwiseConv2D")),
    (SeparableConvRule, _types("SeparableConv1D", "SeparableConv2D")),
    (ConvTransposeRule, _types("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")),
]
for _rule, _layer_types in _FAMILIES:
    for _layer_type in _layer_types:
        register_rule(_layer_type, _rule())
