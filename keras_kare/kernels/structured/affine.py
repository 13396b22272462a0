"""Factors of layers that compute `h = a W (+ bias)` at positions."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_kare.kernels.factors import (
    Factor,
    FullFactor,
    OuterFactor,
    positions,
)
from keras_kare.kernels.structured.rule import MakeFactor


def affine(bias: keras.Variable | None, inputs: tf.Tensor) -> MakeFactor:
    """Make factors of the variables (kernel, bias) of `h = a W + bias`.

    Args:
        bias: The layer's bias, if it has one.
        inputs: `a`, `(n, ..., p)`.
    """

    def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
        if bias is not None and variables[0] is bias:
            return bias_factor(gradients)
        b = positions(gradients, lead=2)
        a = tf.cast(positions(inputs), b.dtype)
        return OuterFactor(a, b, bias=len(variables) == 2)

    return factor


def bias_factor(gradients: tf.Tensor) -> FullFactor:
    """Return the gradient by a bias: the sum over positions; features are the last axis."""
    axes = list(range(2, gradients.shape.rank - 1))
    return FullFactor(tf.reduce_sum(gradients, axis=axes))


def channels_last(x: tf.Tensor, data_format: str, lead: int = 1) -> tf.Tensor:
    """Move the channels behind the positions; they come first in some layers."""
    if data_format == "channels_last":
        return x
    rank = x.shape.rank
    return tf.transpose(x, (*range(lead), *range(lead + 1, rank), lead))
