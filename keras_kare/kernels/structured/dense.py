"""`keras.layers.Dense`, on inputs of any rank."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, FullFactor, OuterFactor
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule


class DenseRule(LayerRule):
    """`h = a W + bias`: gradients are outer products of `a` and `∂f/∂h`."""

    def accepts(self, layer: keras.layers.Layer) -> bool:
        adapted = getattr(layer, "lora_enabled", False)
        quantized = getattr(layer, "quantization_mode", None)
        return not adapted and quantized is None

    def variables(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        return [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]

    def linear(
        self, layer: keras.layers.Layer, inputs: Any, training: Any = None
    ) -> tf.Tensor:
        h = keras.ops.matmul(inputs, layer.kernel)
        return h if layer.bias is None else keras.ops.add(h, layer.bias)

    def finish(self, layer: keras.layers.Layer, h: tf.Tensor) -> Any:
        return h if layer.activation is None else layer.activation(h)

    def factor(
        self,
        layer: keras.layers.Layer,
        variables: list[keras.Variable],
        inputs: tf.Tensor,
        gradients: tf.Tensor,
    ) -> Factor:
        if variables[0] is layer.bias:
            return FullFactor(tf.reduce_sum(gradients, axis=2))
        return OuterFactor(inputs, gradients, bias=len(variables) == 2)


register_rule(keras.layers.Dense, DenseRule())
