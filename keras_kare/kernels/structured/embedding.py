"""`keras.layers.Embedding`, without any one-hot array."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor, LookupFactor, length
from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule, Watcher


class EmbeddingRule(LayerRule):
    """The rule of a table: the gradient of each entry is what came back to it."""

    def call(self, layer: keras.layers.Layer, watch: Watcher, inputs: Any) -> Any:
        indices = tf.convert_to_tensor(inputs)
        if indices.dtype not in (tf.int32, tf.int64):
            indices = tf.cast(indices, tf.int32)
        h = keras.ops.take(layer.embeddings, indices, axis=0)
        h = keras.ops.cast(h, layer.compute_dtype)
        size, features = layer.embeddings.shape

        def factor(variables: list[keras.Variable], gradients: tf.Tensor) -> Factor:
            steps = indices.shape[1:].num_elements() if indices.shape.rank > 1 else 1
            rows = -1 if steps is not None else length(indices)
            flat = -1 if steps is None else steps
            b = tf.reshape(gradients, (rows, gradients.shape[1], flat, features))
            found = tf.reshape(indices, (rows, flat))
            # Negative indices count from the end, as in `keras.ops.take`.
            found = tf.where(found < 0, found + size, found)
            return LookupFactor(found, tf.transpose(b, (0, 2, 1, 3)), size)

        return watch(h, [layer.embeddings], factor)


register_rule(keras.layers.Embedding, EmbeddingRule())
