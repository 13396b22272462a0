"""What a layer family says about itself so that its share of the NTK is fast."""

from __future__ import annotations

import abc
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor


class LayerRule(abc.ABC):
    """How the layers of one type contribute to the NTK.

    While a network is traced, the rule runs in place of the layer's `call`, in
    two steps: `linear`, whose result the gradient tape watches, and `finish`.
    Afterwards, `factor` turns what was seen into per-example gradients.

    A rule is chosen by the layer's exact type: a subclass may compute something
    else, and needs a rule of its own. Each use is verified once, against a plain
    gradient at perturbed weights; a rule that does not hold for a variable is not
    used for it.

    Example:

    ```python
    import keras
    import tensorflow as tf
    import keras_kare as kk

    class Scale(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(input_shape[-1],))

        def call(self, inputs):
            return inputs * self.scale

    class ScaleRule(kk.kernels.LayerRule):
        def variables(self, layer):
            return [layer.scale]

        def linear(self, layer, inputs):
            return inputs * layer.scale

        def factor(self, layer, variables, inputs, gradients):
            # gradients: (outputs, rows, positions, features)
            return kk.kernels.FullFactor(tf.reduce_sum(inputs * gradients, axis=2))

    kk.kernels.register_rule(Scale, ScaleRule())
    ```
    """

    def accepts(self, layer: keras.layers.Layer) -> bool:
        """Whether this instance is one that the rule describes. Defaults to `True`."""
        return True

    @abc.abstractmethod
    def variables(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """The variables that `linear` uses."""

    @abc.abstractmethod
    def linear(self, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> tf.Tensor:
        """The part of `layer.call` that uses the variables, `(n, ..., features)`."""

    def finish(self, layer: keras.layers.Layer, h: tf.Tensor) -> Any:
        """The rest of `layer.call`. Defaults to nothing: `h` itself."""
        return h

    @abc.abstractmethod
    def factor(
        self,
        layer: keras.layers.Layer,
        variables: list[keras.Variable],
        inputs: tf.Tensor,
        gradients: tf.Tensor,
    ) -> Factor:
        """Per-example gradients with respect to `variables`.

        Args:
            layer: The layer.
            variables: Those of `variables(layer)` that are asked for, in the
                same order; never empty. The factor's `vjp` and `jvp` use this
                order, one array a variable.
            inputs: First argument of `linear`, `(n, T, p)`: all positions of all
                calls, flattened.
            gradients: Gradients of the `C` outputs with respect to what `linear`
                returned, `(C, n, T, q)`.
        """


class CallRule(abc.ABC):
    """A corrected `call` for layers whose second derivative TensorFlow gets wrong."""

    @abc.abstractmethod
    def call(self, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        """What `layer.call` should compute."""
