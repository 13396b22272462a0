"""The layer types that generated networks are made around; see `generated_networks.py`.

Most keep the shape of what they take, so that one layer can be called on its own
outputs, and twice on two views of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import layers, ops

VOCABULARY = 6
"""Tokens are 0 (padding) to 5; the last is the rare one."""


@dataclass(frozen=True)
class Part:
    """A layer type.

    Attributes:
        shape: Of one row that it takes.
        make: Makes the layer; takes `dtype`, and `activation` where `activates`.
        call: Calls it. Defaults to `layer(x)`.
        activates: Whether `make` takes an activation.
        same: Whether it keeps the shape.
        tokens: Whether it takes whole numbers.
        masks: Whether it heeds the mask of padded steps.
        heavy: Whether TensorFlow takes minutes to make its Jacobian inside a loop or a
            branch, or on a part of the rows.
        empty: Whether TensorFlow can differentiate it for no rows. The gradient of a
            depthwise convolution is then memory that nobody wrote to.
    """

    shape: tuple[int, ...]
    make: Callable[..., Any]
    call: Callable[[Any, Any], Any] = lambda layer, x: layer(x)
    activates: bool = False
    same: bool = True
    tokens: bool = False
    masks: bool = False
    heavy: bool = False
    empty: bool = True


class Scale(layers.Layer):
    """A layer without a rule."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


class Bent(layers.Dense):
    """A user's subclass of a layer that has a rule, which is not that layer."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return ops.add(super().call(inputs), ops.mean(self.kernel) * inputs)


def adapted(**kwargs: Any) -> Any:
    """A `Dense` with a low-rank update beside its frozen kernel."""
    layer = layers.Dense(4, **kwargs)
    layer.build((None, 4))
    layer.enable_lora(1)
    return layer


FLAT, STEPS, IMAGE = (4,), (3, 4), (3, 3, 2)


DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")


def active(shape: tuple[int, ...], kind: Any, *args: Any, **more: Any) -> Part:
    """A layer with an `activation`."""
    empty = kind.__name__ not in DEPTHWISE
    return Part(shape, lambda **k: kind(*args, **more, **k), activates=True, empty=empty)


def steps(*args: Any, **more: Any) -> Part:
    return active(STEPS, *args, **more)


def image(*args: Any, **more: Any) -> Part:
    return active(IMAGE, *args, **more)


def plain(shape: tuple[int, ...], kind: Any, *args: Any, **more: Any) -> Part:
    return Part(shape, lambda **k: kind(*args, **more, **k))


def recurrent(kind: Any, **more: Any) -> Part:
    def make(**k: Any) -> Any:
        return kind(2, return_sequences=True, **more, **k)

    return Part((2, 2), make, masks=True, heavy=True)


def attention(layer: Any, x: Any) -> Any:
    return layer(x, x)


PARTS: dict[str, Part] = {
    "dense": Part(FLAT, lambda **k: layers.Dense(4, **k), activates=True),
    "dense no bias": Part(FLAT, lambda **k: layers.Dense(4, use_bias=False, **k)),
    "dense of steps": steps(layers.Dense, 4),
    "einsum": steps(layers.EinsumDense, "abc,cd->abd", (None, 4), bias_axes="d"),
    "einsum heads": steps(layers.EinsumDense, "abc,cd->abd", (3, 4), bias_axes="bd"),
    "conv1d": steps(layers.Conv1D, 4, 2, padding="same"),
    "conv1d causal": steps(layers.Conv1D, 4, 2, padding="causal", dilation_rate=2),
    "conv1d strided": Part(
        STEPS, lambda **k: layers.Conv1D(3, 2, strides=2, padding="same", **k), same=False
    ),
    "conv2d": image(layers.Conv2D, 2, 2, padding="same"),
    "depthwise1d": steps(layers.DepthwiseConv1D, 2, padding="same"),
    "depthwise2d": image(layers.DepthwiseConv2D, 2, padding="same"),
    "separable1d": steps(layers.SeparableConv1D, 4, 2, padding="same"),
    "separable2d": image(layers.SeparableConv2D, 2, 2, padding="same"),
    "transposed1d": steps(layers.Conv1DTranspose, 4, 2, padding="same"),
    "transposed2d": image(layers.Conv2DTranspose, 2, 2, padding="same"),
    "embedding": Part(
        (3,), lambda **k: layers.Embedding(VOCABULARY, 4, **k), same=False, tokens=True
    ),
    "embedding masked": Part(
        (3,),
        lambda **k: layers.Embedding(VOCABULARY, 4, mask_zero=True, **k),
        same=False,
        tokens=True,
    ),
    "layer norm": plain(STEPS, layers.LayerNormalization),
    "group norm": plain(STEPS, layers.GroupNormalization, 2),
    "batch norm": plain(FLAT, layers.BatchNormalization),
    "prelu": plain(STEPS, layers.PReLU, alpha_initializer="uniform"),
    "rnn": recurrent(layers.SimpleRNN),
    "lstm": recurrent(layers.LSTM),
    "gru": recurrent(layers.GRU),
    "gru reset before": recurrent(layers.GRU, reset_after=False),
    "attention": Part(
        STEPS,
        lambda **k: layers.MultiHeadAttention(2, 2, **k),
        attention,
        masks=True,
        heavy=True,
    ),
    "grouped attention": Part(
        STEPS, lambda **k: layers.GroupQueryAttention(2, 2, 1, **k), attention, heavy=True
    ),
    "distributed": Part(
        STEPS, lambda **k: layers.TimeDistributed(layers.Dense(4, **k)), activates=True
    ),
    "no rule": plain(STEPS, Scale),
    "subclass": Part(FLAT, lambda **k: Bent(4, **k), activates=True),
    "low rank": Part(FLAT, adapted),
}
if hasattr(layers, "RMSNormalization"):  # since Keras 3.9
    PARTS["rms norm"] = plain(STEPS, layers.RMSNormalization)
