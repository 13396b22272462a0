"""Factors of layers that compute `h = a W (+ bias)` at positions."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, Layout, OuterFactor
from keras_kare.kernels.structured.rule import MakeFactor

Positions = Callable[[], tf.Tensor]


def affine(
    bias: keras.Variable | None,
    inputs: Positions,
    layout: Layout | None = None,
    groups: int = 1,
) -> MakeFactor:
    """Factors of the variables (kernel, bias) of `h = a W + bias`.

    Args:
        bias: The layer's bias, if it has one.
        inputs: Makes `a`, `(n, G, T, p)`: called only where it is needed.
        layout: As in `OuterFactor`.
        groups: Number `G` of groups of features.
    """

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        if bias is not None and variables[0] is bias:
            return bias_factor(gradients)
        b = positions(gradients, lead=2, groups=groups)
        a = tf.cast(inputs(), b.dtype)
        return OuterFactor(a, b, bias=len(variables) == 2, layout=layout)

    return factor


def bias_factor(gradients: tf.Tensor) -> FullFactor:
    """The gradient by a bias: the sum over positions; features are the last axis."""
    axes = list(range(2, gradients.shape.rank - 1))
    return FullFactor(tf.reduce_sum(gradients, axis=axes))


def positions(x: tf.Tensor, lead: int = 1, groups: int = 1) -> tf.Tensor:
    """Flatten the axes between rows and features to `T` positions.

    Args:
        x: `(n, ..., d)`, or `(n, C, ..., d)` with `lead=2`.
        lead: Number of axes before the positions.
        groups: Number `G` of groups of features.

    Returns:
        `(n, G, T, d / G)`, or `(n, G, T, C, d / G)`.
    """
    inner = x.shape[lead:-1]
    count = inner.num_elements() if inner.is_fully_defined() else -1
    features = x.shape[-1] // groups
    rows = tf.shape(x)[0] if count == -1 else -1
    if lead == 1:
        x = tf.reshape(x, (rows, count, groups, features))
        return (
            tf.transpose(x, (0, 2, 1, 3)) if groups > 1 else tf.expand_dims(x[:, :, 0], 1)
        )
    outputs = x.shape[1]
    x = tf.reshape(x, (rows, outputs, count, groups, features))
    if groups == outputs == 1:
        return tf.reshape(x, (rows, 1, count, 1, features))
    return tf.transpose(x, (0, 3, 2, 1, 4))


def channels_last(x: tf.Tensor, data_format: str, lead: int = 1) -> tf.Tensor:
    """Move the channels behind the positions; they come first in some layers."""
    if data_format == "channels_last":
        return x
    rank = x.shape.rank
    return tf.transpose(x, (*range(lead), *range(lead + 1, rank), lead))
