"""What a layer family says about itself so that its share of the NTK is fast."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from keras_kare.kernels.factors import Factor

MakeFactor = Callable[[list[keras.Variable], tf.Tensor], Factor]
"""`(variables, gradients) -> factor`.

`variables` are those that are asked for, in the order given to `watch`, never
empty; `gradients`, `(n, C) + h.shape[1:]`, are the gradients of the `C` outputs by
`h`. The factor's `vjp` and `jvp` have one array a variable, in this order.
"""


class Watcher(Protocol):
    """A function that `LayerRule.call` is given to show an intermediate result."""

    def __call__(
        self,
        h: tf.Tensor,
        variables: Sequence[keras.Variable],
        factor: MakeFactor,
        through: Sequence[tf.Tensor] = (),
    ) -> tf.Tensor:
        """Watch `h`, which depends on `variables` directly, and return it.

        Args:
            h: `(n, ...)`: a result through which alone the layer's outputs depend
                on the variables. It may be watched again for other variables.
            variables: The variables that `h` is computed from.
            factor: Makes per-example gradients from gradients by `h`.
            through: Other results that the variables enter by, where these are added to
                `h`, or to parts of it, later: their gradients are those of `h`. A list
                may be filled after the call.
        """


class LayerRule(abc.ABC):
    """The way the layers of one type contribute to the NTK.

    While a network is traced, the rule runs in place of the layer's `call`. It
    computes the same, and shows through `watch` every intermediate result `h` that
    is computed from variables, with a function that turns the gradients of the
    outputs by `h` into per-example gradients by the variables.

    A rule is chosen by the layer's exact type: a subclass may compute something
    else, and needs a rule of its own. A variable is served by rules only where the
    traced graph proves that it reaches the outputs through watched results alone, and
    where its gradients agree with plain ones on made-up rows at perturbed weights.

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
        def call(self, layer, watch, inputs):
            def factor(variables, gradients):  # gradients: (rows, outputs, features)
                a = tf.cast(inputs, gradients.dtype)
                return kk.kernels.FullFactor(a[:, None] * gradients)

            return watch(inputs * layer.scale, [layer.scale], factor)

    kk.kernels.register_rule(Scale, ScaleRule())
    ```
    """

    corrects: bool = False
    """Whether `call` is also wanted where nothing is watched, since TensorFlow's
    second derivative of the layer's own `call` is wrong."""

    loses_rows: bool = False
    """Whether TensorFlow forgets in the layer's own call how many rows there are, which
    are as many as the inputs have."""

    def accepts(self, layer: keras.layers.Layer) -> bool:
        """Tell whether this instance is one that the rule describes.

        Defaults to layers without adapters (LoRA), without quantization, and without
        tensors in places of variables, which may be computed from anything.
        """
        adapted = getattr(layer, "lora_enabled", False)
        quantized = getattr(layer, "quantization_mode", None)
        replaced = any(isinstance(value, tf.Tensor) for value in vars(layer).values())
        return not adapted and quantized is None and not replaced

    @abc.abstractmethod
    def call(
        self, layer: keras.layers.Layer, watch: Watcher, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute what `layer.call(*args, **kwargs)` does, shown through `watch`.

        Args:
            layer: The layer.
            watch: See `Watcher`.
            *args: As the layer's own `call`.
            **kwargs: As the layer's own `call`.

        Returns:
            The layer's outputs; or `NotImplemented`, before anything is watched, for
            arguments that the rule does not cover: the layer's own `call` then runs.
        """


def present(*variables: keras.Variable | None) -> list[keras.Variable]:
    """Return those of a layer's variables that it has."""
    return [variable for variable in variables if variable is not None]


def add_bias(
    h: tf.Tensor, bias: keras.Variable | None, data_format: str = "channels_last"
) -> tf.Tensor:
    """Add a bias along the axis of features."""
    if bias is None:
        return h
    if data_format == "channels_last":
        return keras.ops.add(h, bias)
    shape = (1, -1) + (1,) * (len(h.shape) - 2)
    return keras.ops.add(h, keras.ops.reshape(bias, shape))


def activate(layer: keras.layers.Layer, h: tf.Tensor) -> Any:
    """Return `layer.activation(h)`, where the layer has one."""
    return h if layer.activation is None else layer.activation(h)
