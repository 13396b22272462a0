"""`keras.layers.TextVectorization`, which has no variable that trains."""

from __future__ import annotations

from typing import Any

import keras

from keras_kare.kernels.structured.registry import register_rule
from keras_kare.kernels.structured.rule import LayerRule, Watcher


class TextVectorizationRule(LayerRule):
    """The rule of words: a row each, also where sentences are of unequal length.

    TensorFlow splits text into ragged rows, and no longer knows afterwards how many there
    are; without that, no layer behind could be shown to have rows on its first axis.
    """

    loses_rows = True

    def call(
        self, layer: keras.layers.Layer, watch: Watcher, *args: Any, **kwargs: Any
    ) -> Any:
        return NotImplemented


register_rule(keras.layers.TextVectorization, TextVectorizationRule())
