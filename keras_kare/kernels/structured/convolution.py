"""Convolutions of one to three dimensions: plain, depthwise, separable, transposed.

A convolution is a `Dense` at every position of its output, on the window of inputs
that the position sees. A transposed convolution is one at every position of its
*input*, whose output gradients are windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor
from keras_kare.kernels.structured.affine import (
    affine,
    bias_factor,
    channels_last,
    positions,
)
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import (
    LayerRule,
    MakeFactor,
    Watch,
    activate,
    add_bias,
    present,
)


class Windows:
    """The windows of inputs that the positions of a convolution's output see.

    Args:
        layer: A convolution: its `kernel_size`, `strides`, `dilation_rate` and
            `padding` are read.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.size = tuple(layer.kernel_size)
        self.strides = tuple(layer.strides)
        self.dilation = tuple(layer.dilation_rate)
        self.padding = layer.padding

    @property
    def taps(self) -> int:
        """Number of positions in a window."""
        return math.prod(self.size)

    def each(self, x: tf.Tensor, like: tf.Tensor) -> Iterator[tf.Tensor]:
        """For each tap of the window, what every output position sees there.

        Args:
            x: `(n, ..., d)`, inputs, channels last.
            like: Any array with the positions of the output in axes 1, 2, ...

        Yields:
            `(n, ..., d)` with the positions of the output, a tap at a time in the
            order of the kernel.
        """
        axes = range(1, 1 + len(self.size))
        count = [_length(like, axis) for axis in axes]
        x = tf.pad(x, [(0, 0), *self._padding(x, count), (0, 0)])
        for tap in itertools.product(*(range(k) for k in self.size)):
            begin = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            cut = [
                slice(b, b + (c - 1) * s + 1, s)
                for b, c, s in zip(begin, count, self.strides, strict=True)
            ]
            yield x[(slice(None), *cut)]

    def stacked(self, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """All windows, `(n, ..., taps, d)`."""
        return tf.stack(list(self.each(x, like)), axis=-2)

    def _padding(self, x: tf.Tensor, count: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Zeros before and after each axis, as TensorFlow's `SAME` puts them."""
        sides: list[tuple[Any, Any]] = []
        geometry = zip(self.size, self.strides, self.dilation, count, strict=True)
        for axis, (k, s, d, c) in enumerate(geometry, start=1):
            if self.padding == "valid":
                sides.append((0, 0))
            elif self.padding == "causal":
                sides.append((d * (k - 1), 0))
            else:
                total = (c - 1) * s + (k - 1) * d + 1 - _length(x, axis)
                total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
                sides.append((total // 2, total - total // 2))
        return sides


def _length(x: tf.Tensor, axis: int) -> Any:
    """Length of an axis: a number, or a tensor where it is not known while tracing."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


class ConvRule(LayerRule):
    """`Conv1D`, `Conv2D`, `Conv3D`, with groups of channels."""

    def call(self, layer: keras.layers.Layer, watch: Watch, inputs: Any) -> Any:
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
    windows, groups = Windows(layer), layer.groups
    *_, p, features = kernel.shape
    # (group, tap, input channel, output channel), of which the group is the slower
    # half of the output channel in the kernel.
    layout = Layout((groups, windows.taps, p, features // groups), (1, 2, 0, 3))

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        x = channels_last(inputs, layer.data_format)
        g = channels_last(gradients, layer.data_format, lead=2)
        split = affine(bias, lambda: _grouped(windows, x, g[:, 0], groups), layout, groups)
        return split(variables, g)

    return factor


def _grouped(windows: Windows, x: tf.Tensor, like: tf.Tensor, groups: int) -> tf.Tensor:
    """Windows by groups of channels, `(n, G, T, taps * d / G)`."""
    if windows.taps == 1:
        return positions(next(windows.each(x, like)), groups=groups)
    seen = windows.stacked(x, like)
    taps, channels = windows.taps, x.shape[-1]
    flat = positions(tf.reshape(seen, _merged(seen, taps * channels)))
    if groups == 1:
        return flat
    steps = -1 if flat.shape[2] is None else flat.shape[2]
    rows = tf.shape(x)[0] if steps == -1 else -1
    flat = tf.reshape(flat, (rows, steps, taps, groups, channels // groups))
    flat = tf.transpose(flat, (0, 3, 1, 2, 4))
    return tf.reshape(flat, (rows, groups, steps, taps * channels // groups))


def _merged(x: tf.Tensor, size: int, axes: int = 2) -> tf.Tensor:
    """The shape of `x` with its last axes merged into one of `size`."""
    return tf.concat([tf.shape(x)[: x.shape.rank - axes], [size]], axis=0)


class DepthwiseConvRule(LayerRule):
    """`DepthwiseConv1D` and `DepthwiseConv2D`: every channel has its own windows."""

    def call(self, layer: keras.layers.Layer, watch: Watch, inputs: Any) -> Any:
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
    """Always written out: a window times its multiplier is a short gradient."""
    windows, data_format = Windows(layer), layer.data_format

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        x = channels_last(tf.cast(inputs, gradients.dtype), data_format)
        g = channels_last(gradients, data_format, lead=2)
        channels = x.shape[-1]
        # (n, T, d) for each tap, (n, C, T, d, multiplier)
        count, multiplier = g.shape[1], g.shape[-1] // channels
        g = tf.reshape(g, tf.concat([tf.shape(g)[:-1], [channels, multiplier]], axis=0))
        over = list(range(2, g.shape.rank - 2))
        taps = [
            tf.reduce_sum(seen[:, None, ..., None] * g, axis=over)
            for seen in windows.each(x, g[:, 0])
        ]
        j = tf.stack(taps, axis=2)  # (n, C, taps, d, multiplier)
        size = windows.taps * channels * multiplier
        return FullFactor(tf.reshape(j, (-1, count, size)))

    return factor


def _channel_bias(layer: keras.layers.Layer) -> MakeFactor:
    return lambda variables, gradients: bias_factor(
        channels_last(gradients, layer.data_format, lead=2)
    )


class SeparableConvRule(LayerRule):
    """`SeparableConv1D` and `SeparableConv2D`: depthwise, then one dense layer."""

    def call(self, layer: keras.layers.Layer, watch: Watch, inputs: Any) -> Any:
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
            return affine(layer.bias, lambda: positions(a))(variables, g)

        h = watch(
            add_bias(h, layer.bias, layer.data_format),
            present(layer.pointwise_kernel, layer.bias),
            factor,
        )
        return activate(layer, h)


class ConvTransposeRule(LayerRule):
    """`Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`."""

    def call(self, layer: keras.layers.Layer, watch: Watch, inputs: Any) -> Any:
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
    windows = Windows(layer)
    *_, features, channels = layer.kernel.shape
    layout = Layout((1, channels, windows.taps, features), (0, 2, 3, 1))

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        x = channels_last(tf.cast(inputs, gradients.dtype), layer.data_format)
        g = channels_last(gradients, layer.data_format, lead=2)
        count = g.shape[1]
        flat = tf.reshape(g, tf.concat([[-1], tf.shape(g)[2:]], axis=0))
        flat.set_shape([None, *g.shape[2:]])
        seen = windows.stacked(flat, x)
        seen = tf.reshape(seen, _merged(seen, windows.taps * features))
        b = positions(seen)[:, 0]  # (n C, T, taps * features)
        a = positions(x)
        steps = -1 if a.shape[2] is None else a.shape[2]
        rows = tf.shape(x)[0]
        b = tf.reshape(b, tf.stack([rows, count, steps, windows.taps * features]))
        b = tf.ensure_shape(b, (None, count, a.shape[2], windows.taps * features))
        return OuterFactor(a, tf.transpose(b, (0, 2, 1, 3))[:, None], layout=layout)

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
