"""Small networks around each layer that has a rule, by family, and their rows.

A name is `"family: variant"`. Axes are a few positions, layers a few units, and
activations smooth, so that finite differences measure KARE's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

Make = Callable[[], Any]

VOCABULARY = 7
LARGE_VOCABULARY = 2000
LENGTH = 5


# Builders


def chain(shape: tuple[int | None, ...], *parts: Any, c: int = 1) -> Any:
    """A sequence of layers, flattened into a `Dense` of `c` outputs."""
    return keras.Sequential([keras.Input(shape), *parts, layers.Flatten(), layers.Dense(c)])


def pooled(shape: tuple[int | None, ...], *parts: Any, c: int = 1) -> Any:
    """A sequence of layers over positions, averaged: lengths may be unknown."""
    pool = layers.GlobalAveragePooling1D()
    return keras.Sequential([keras.Input(shape), *parts, pool, layers.Dense(c)])


def first(
    shape: tuple[int | None, ...], make: Callable[..., Any], *args: Any, **kwargs: Any
) -> Make:
    """The layer under test, fed with the rows themselves."""
    c = kwargs.pop("c", 1)
    return lambda: chain(shape, make(*args, **kwargs), layers.Activation("tanh"), c=c)


def between(
    shape: tuple[int | None, ...], make: Callable[..., Any], *args: Any, **kwargs: Any
) -> Make:
    """The layer under test behind a `Dense`, so that gradients flow through it."""
    c = kwargs.pop("c", 1)

    def network() -> Any:
        before = layers.Dense(shape[-1], "tanh")
        return chain(shape, before, make(*args, **kwargs), layers.Activation("tanh"), c=c)

    return network


def twice(
    shape: tuple[int | None, ...], make: Callable[..., Any], *args: Any, **kwargs: Any
) -> Make:
    """The same layer used twice, one use behind the other."""

    def network() -> Any:
        x, shared = keras.Input(shape), make(*args, **kwargs)
        h = ops.tanh(shared(ops.tanh(shared(x))))
        return functional(x, h)

    return network


def freezing(make: Make, kind: type, *names: str) -> Make:
    """A network whose layers of one kind do not train the named variables."""

    def network() -> Any:
        made = make()
        for layer in made.layers:
            if isinstance(layer, kind):
                for name in names:
                    getattr(layer, name).trainable = False
        return made

    return network


def functional(inputs: Any, h: Any, c: int = 1) -> Any:
    return keras.Model(inputs, layers.Dense(c)(layers.Flatten()(h)))


def tokens(length: int | None = LENGTH) -> Any:
    return keras.Input((length,), dtype="int32")


# Dense


def dense_at_two_ranks() -> Any:
    """One kernel, called on a sequence and on its mean."""
    x, shared = keras.Input((3, 4)), layers.Dense(4, "tanh")
    mean = ops.mean(shared(x), axis=1)
    return keras.Model(x, layers.Dense(1)(shared(mean)))


def dense_at_two_lengths() -> Any:
    a, b = keras.Input((3, 4)), keras.Input((2, 4))
    shared = layers.Dense(3, "tanh")
    h = layers.Concatenate()([layers.Flatten()(shared(a)), layers.Flatten()(shared(b))])
    return keras.Model([a, b], layers.Dense(1)(h))


def dense_in_an_inner_model() -> Any:
    """The same inner model called twice, on other inputs."""
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3, "gelu")]
    )
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], layers.Dense(1)(inner(a) * inner(b)))


def dense_of_many_outputs() -> Any:
    x = keras.Input((3, 4))
    return keras.Model(x, layers.Dense(2)(layers.Dense(3, "tanh")(x)))


def wide() -> Any:
    """Few positions of many features: positions are contracted first."""
    return chain((2, 30), layers.Dense(40, "tanh"))


Dense = layers.Dense
DENSE: dict[str, Make] = {
    "rank 2": first((4,), Dense, 5, c=3),
    "rank 3": between((3, 4), Dense, 3),
    "rank 4": between((2, 3, 4), Dense, 3),
    "no bias": between((3, 4), Dense, 3, use_bias=False),
    "frozen kernel": freezing(between((3, 4), Dense, 3), Dense, "kernel"),
    "frozen bias": freezing(between((3, 4), Dense, 3), Dense, "bias"),
    "twice": twice((3, 4), Dense, 4),
    "twice, frozen bias": freezing(twice((3, 4), Dense, 4), Dense, "bias"),
    "at two ranks": dense_at_two_ranks,
    "at two lengths": dense_at_two_lengths,
    "in an inner model": dense_in_an_inner_model,
    "many outputs": dense_of_many_outputs,
    "unknown length": lambda: pooled((None, 4), Dense(3, "tanh")),
    "wide": wide,
}


# EinsumDense


def einsum(
    equation: str,
    inputs: tuple[int | None, ...],
    outputs: Any,
    bias: str | None = None,
    c: int = 1,
) -> Make:
    return between(inputs, layers.EinsumDense, equation, outputs, bias_axes=bias, c=c)


def einsum_twice() -> Any:
    x = keras.Input((3, 4))
    shared = layers.EinsumDense("abc,cd->abd", (3, 4), "tanh", bias_axes="d")
    return functional(x, shared(shared(x)))


def einsum_to_one_number() -> Any:
    x = keras.Input((4,))
    h = layers.EinsumDense("ab,b->a", ())(x)
    return functional(x, ops.tanh(h)[:, None])


def einsum_unknown_length() -> Any:
    layer = layers.EinsumDense("abc,cd->abd", (None, 3), "tanh", bias_axes="d")
    return pooled((None, 4), layer)


def einsum_that_moves_rows() -> Any:
    """An equation that moves the rows, and a transposition that moves them back."""
    x = keras.Input((3, 4))
    h = layers.EinsumDense("abc,cd->bad", (None, 5), bias_axes="d")(x)
    h = ops.tanh(ops.transpose(h, (1, 0, 2)))
    return keras.Model(x, layers.Dense(1)(ops.reshape(h, (-1, 15))))


EINSUM: dict[str, Make] = {
    "ab,bc->ac": einsum("ab,bc->ac", (4,), 3, "c"),
    "ab,cb->ac no bias": einsum("ab,cb->ac", (4,), 3),
    "ab,b->ab": einsum("ab,b->ab", (4,), 4, "b"),
    "ab,b->a": einsum_to_one_number,
    "abc,cd->abd": einsum("abc,cd->abd", (3, 4), (3, 5), "d"),
    "abc,cd->abd bias bd": einsum("abc,cd->abd", (3, 4), (3, 2), "bd"),
    "abc,cd->abd bias b": einsum("abc,cd->abd", (3, 4), (3, 2), "b"),
    "abc,cd->adb": einsum("abc,cd->adb", (3, 4), (5, 3), "d"),
    "abc,cd->ad": einsum("abc,cd->ad", (3, 4), 5, "d"),
    "abc,bd->adc": einsum("abc,bd->adc", (3, 4), (5, 4), "d"),
    "abc,bcd->ad": einsum("abc,bcd->ad", (3, 4), 5, "d"),
    "abc,bcd->abd": einsum("abc,bcd->abd", (3, 4), (3, 5), "bd"),
    "abc,bcd->abd bias d": einsum("abc,bcd->abd", (3, 4), (3, 5), "d", c=2),
    "abc,bdc->abd no bias": einsum("abc,bdc->abd", (3, 4), (3, 2)),
    "abc,bc->abc": einsum("abc,bc->abc", (3, 4), (3, 4), "bc"),
    "abc,bc->ab": einsum("abc,bc->ab", (3, 4), (3,), "b"),
    "abc,d->abcd": einsum("abc,d->abcd", (3, 4), (3, 4, 2), "d"),
    "abc,cde->abde": einsum("abc,cde->abde", (3, 4), (3, 2, 3), "de"),
    "abc,cde->abde bias e": einsum("abc,cde->abde", (3, 4), (3, 2, 3), "e"),
    "abc,cde->abde bias d": einsum("abc,cde->abde", (3, 4), (3, 2, 3), "d"),
    "abc,dce->adbe": einsum("abc,dce->adbe", (3, 4), (2, 3, 3), "de"),
    "abcd,cde->abe": einsum("abcd,cde->abe", (3, 2, 4), (3, 5), "e"),
    "abcd,bde->abce": einsum("abcd,bde->abce", (3, 2, 4), (3, 2, 3), "be"),
    "...x,xy->...y": einsum("...x,xy->...y", (2, 3, 4), 3, "y"),
    "...bc,bcd->...bd": einsum("...bc,bcd->...bd", (2, 3, 4), (3, 2), "bd"),
    "ab...,bc->ac...": einsum("ab...,bc->ac...", (4, 3, 2), 5, "c"),
    "frozen kernel": freezing(
        einsum("abc,bcd->abd", (3, 4), (3, 5), "bd"), layers.EinsumDense, "kernel"
    ),
    "frozen bias": freezing(
        einsum("abc,cd->abd", (3, 4), (3, 5), "d"), layers.EinsumDense, "bias"
    ),
    "twice": einsum_twice,
    "unknown length": einsum_unknown_length,
    "wide": einsum("abc,cde->abde", (2, 30), (2, 5, 8), "de"),
    "rows moved": einsum_that_moves_rows,
}


# Convolutions


def convolution_of_two_images() -> Any:
    """One layer on images of other sizes."""
    a, b = keras.Input((4, 4, 2)), keras.Input((3, 5, 2))
    shared = layers.Conv2D(3, 2, activation="tanh")
    h = [layers.Flatten()(shared(a)), layers.Flatten()(shared(b))]
    return keras.Model([a, b], layers.Dense(1)(layers.Concatenate()(h)))


def convolution_of_unknown_size() -> Any:
    return keras.Sequential(
        [
            keras.Input((None, None, 2)),
            layers.Conv2D(3, 2, padding="same", strides=2, activation="tanh"),
            layers.Conv2D(2, 2, padding="same", activation="tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


def convolution_as_output() -> Any:
    x = keras.Input((3, 3, 2))
    return keras.Model(x, layers.Conv2D(2, 2)(layers.Conv2D(2, 2, activation="tanh")(x)))


Conv1D, Conv2D, Conv3D = layers.Conv1D, layers.Conv2D, layers.Conv3D
CONV1D: dict[str, Make] = {
    "valid": first((6, 2), Conv1D, 3, 3, c=3),
    "same": between((6, 2), Conv1D, 3, 3, padding="same"),
    "even kernel, same": between((5, 2), Conv1D, 3, 4, padding="same"),
    "causal": between((6, 2), Conv1D, 3, 3, padding="causal"),
    "causal, dilation": between((6, 2), Conv1D, 3, 2, padding="causal", dilation_rate=3),
    "causal, strides": between((7, 2), Conv1D, 3, 3, padding="causal", strides=2),
    "strides": between((8, 2), Conv1D, 3, 3, strides=2),
    "strides, same": between((7, 2), Conv1D, 3, 3, strides=2, padding="same"),
    "strides 4, kernel 2": between((9, 2), Conv1D, 3, 2, strides=4),
    "dilation": between((7, 2), Conv1D, 3, 3, dilation_rate=2),
    "dilation, same": between((6, 2), Conv1D, 3, 2, dilation_rate=3, padding="same"),
    "kernel of full length": between((4, 3), Conv1D, 5, 4),
    "groups": between((6, 4), Conv1D, 6, 3, groups=2),
    "groups, strides, same": between(
        (7, 4), Conv1D, 2, 3, groups=2, strides=2, padding="same"
    ),
    "no bias": between((6, 2), Conv1D, 3, 3, use_bias=False),
    "twice, shrinking": twice((7, 3), Conv1D, 3, 3),
    "unknown length": lambda: pooled(
        (None, 2), Conv1D(3, 3, strides=2, padding="same", activation="gelu")
    ),
    "wide": between((4, 24), Conv1D, 30, 3),
}

CONV2D: dict[str, Make] = {
    "valid": first((4, 5, 2), Conv2D, 3, (3, 2), c=3),
    "same": between((4, 5, 2), Conv2D, 3, 3, padding="same"),
    "even kernel, same": between((3, 4, 2), Conv2D, 3, (2, 4), padding="same"),
    "strides": between((5, 6, 2), Conv2D, 3, 3, strides=(1, 2)),
    "strides, same": between((5, 4, 2), Conv2D, 3, 3, strides=2, padding="same"),
    "patches": between((4, 4, 2), Conv2D, 3, 2, strides=2),
    "strides 3, kernel 2": between((6, 5, 2), Conv2D, 3, 2, strides=3),
    "dilation": between((5, 5, 2), Conv2D, 3, 2, dilation_rate=(2, 1)),
    "dilation, same": between((4, 5, 2), Conv2D, 3, 3, dilation_rate=2, padding="same"),
    "kernel 1, strides": between((4, 5, 4), Conv2D, 5, 1, strides=2),
    "groups, strides, same": between(
        (5, 4, 4), Conv2D, 2, 3, groups=2, strides=2, padding="same", c=2
    ),
    "groups of one channel": between((3, 4, 3), Conv2D, 6, 2, groups=3, use_bias=False),
    "no bias": between((4, 4, 2), Conv2D, 3, 3, use_bias=False),
    "frozen kernel": freezing(between((4, 4, 2), Conv2D, 3, 3), Conv2D, "kernel"),
    "frozen bias": freezing(between((4, 4, 2), Conv2D, 3, 3), Conv2D, "bias"),
    "twice": twice((3, 4, 3), Conv2D, 3, 3, padding="same"),
    "two images": convolution_of_two_images,
    "unknown size": convolution_of_unknown_size,
    "as output": convolution_as_output,
    "wide": between((3, 3, 20), Conv2D, 30, 2),
}

CONV3D: dict[str, Make] = {
    "valid": between((3, 3, 4, 2), Conv3D, 2, 2),
    "strides, same": between((3, 2, 4, 2), Conv3D, 2, (3, 2, 3), strides=2, padding="same"),
    "dilation": between((3, 3, 4, 1), Conv3D, 2, 2, dilation_rate=(1, 2, 2)),
    "groups": between((3, 2, 2, 4), Conv3D, 4, 2, groups=2),
    "no bias": between((2, 3, 3, 2), Conv3D, 2, 2, use_bias=False),
}

Depth1D, Depth2D = layers.DepthwiseConv1D, layers.DepthwiseConv2D
DEPTHWISE: dict[str, Make] = {
    "1D": first((6, 3), Depth1D, 3),
    "1D, multiplier": between((6, 2), Depth1D, 2, depth_multiplier=3, padding="same"),
    "1D, dilation": between((7, 3), Depth1D, 2, dilation_rate=3, padding="same"),
    "2D": between((4, 5, 3), Depth2D, (2, 3)),
    "2D, multiplier": between((4, 4, 2), Depth2D, 2, depth_multiplier=3),
    "2D, strides, same": between((5, 6, 3), Depth2D, 3, strides=2, padding="same"),
    "2D, dilation": between((5, 5, 2), Depth2D, 2, dilation_rate=2, depth_multiplier=2),
    "2D, no bias": between((4, 4, 3), Depth2D, 3, use_bias=False, c=3),
    "2D, frozen kernel": freezing(between((4, 4, 3), Depth2D, 3), Depth2D, "kernel"),
    "2D, frozen bias": freezing(between((4, 4, 3), Depth2D, 3), Depth2D, "bias"),
    "2D, twice": twice((4, 4, 2), Depth2D, 3, padding="same"),
    "2D, wide": between((3, 3, 40), Depth2D, 2),
}

Separable1D, Separable2D = layers.SeparableConv1D, layers.SeparableConv2D
SEPARABLE: dict[str, Make] = {
    "1D": first((6, 3), Separable1D, 4, 3),
    "1D, multiplier, strides": between(
        (7, 2), Separable1D, 4, 2, depth_multiplier=2, strides=2, padding="same"
    ),
    "1D, dilation, no bias": between(
        (7, 2), Separable1D, 4, 3, dilation_rate=2, use_bias=False
    ),
    "2D": between((4, 5, 3), Separable2D, 4, (3, 2), c=2),
    "2D, multiplier, same": between(
        (4, 4, 2), Separable2D, 3, 3, depth_multiplier=2, padding="same"
    ),
    "2D, strides": between((5, 5, 2), Separable2D, 3, 3, strides=2),
    "2D, dilation": between((5, 5, 2), Separable2D, 3, 2, dilation_rate=2),
    "2D, frozen depthwise": freezing(
        between((4, 4, 2), Separable2D, 3, 2), Separable2D, "depthwise_kernel"
    ),
    "2D, frozen pointwise and bias": freezing(
        between((4, 4, 2), Separable2D, 3, 2), Separable2D, "pointwise_kernel", "bias"
    ),
    "2D, twice": twice((4, 4, 2), Separable2D, 2, 3, padding="same"),
}

Transpose1D, Transpose2D = layers.Conv1DTranspose, layers.Conv2DTranspose
Transpose3D = layers.Conv3DTranspose
TRANSPOSED: dict[str, Make] = {
    "1D": first((4, 2), Transpose1D, 3, 3),
    "1D, strides": between((3, 2), Transpose1D, 3, 3, strides=2),
    "1D, strides, same": between((3, 2), Transpose1D, 3, 4, strides=2, padding="same"),
    "1D, strides 3, kernel 2": between((3, 2), Transpose1D, 3, 2, strides=3),
    "1D, output padding": between(
        (3, 2), Transpose1D, 3, 3, strides=2, padding="same", output_padding=1
    ),
    "2D": between((3, 3, 2), Transpose2D, 3, (3, 2), c=3),
    "2D, upsampling": between((2, 3, 2), Transpose2D, 3, 2, strides=2),
    "2D, strides, same": between((2, 3, 2), Transpose2D, 3, 3, strides=2, padding="same"),
    "2D, strides, even, same": between(
        (3, 2, 2), Transpose2D, 2, 4, strides=(2, 1), padding="same"
    ),
    "2D, strides 3, kernel 2": between((2, 2, 2), Transpose2D, 2, 2, strides=3),
    "2D, output padding": between(
        (2, 2, 2), Transpose2D, 2, 3, strides=2, output_padding=1
    ),
    "2D, output padding, same": between(
        (2, 3, 2), Transpose2D, 2, 3, strides=2, output_padding=1, padding="same"
    ),
    "2D, no bias": between((3, 3, 2), Transpose2D, 3, 2, use_bias=False),
    "2D, frozen kernel": freezing(
        between((3, 3, 2), Transpose2D, 3, 2, strides=2), Transpose2D, "kernel"
    ),
    "2D, frozen bias": freezing(
        between((3, 3, 2), Transpose2D, 3, 2, strides=2), Transpose2D, "bias"
    ),
    "2D, twice": twice((3, 3, 2), Transpose2D, 2, 2, padding="same"),
    "3D": between((2, 2, 2, 2), Transpose3D, 2, 2),
    "3D, strides, same": between(
        (2, 1, 2, 2), Transpose3D, 2, 3, strides=2, padding="same"
    ),
}

if tf.config.list_physical_devices("GPU"):  # what TensorFlow has no CPU kernels for
    FIRST = {"data_format": "channels_first"}
    CONV1D["channels first"] = between((2, 6), Conv1D, 3, 3, **FIRST)
    CONV2D["channels first"] = between((2, 4, 4), Conv2D, 3, 3, **FIRST)
    CONV2D["channels first, strides, same"] = between(
        (2, 5, 4), Conv2D, 3, 3, strides=2, padding="same", **FIRST
    )
    DEPTHWISE["2D, channels first"] = between((3, 4, 4), Depth2D, 3, **FIRST)
    TRANSPOSED["1D, dilation"] = between((4, 2), Transpose1D, 3, 2, dilation_rate=2)
    TRANSPOSED["2D, dilation"] = between((3, 3, 2), Transpose2D, 2, 2, dilation_rate=2)
    TRANSPOSED["2D, channels first"] = between(
        (2, 3, 3), Transpose2D, 3, 2, strides=2, **FIRST
    )


# Embedding


def embedded(*parts: Any, c: int = 1, length: int | None = LENGTH, **kwargs: Any) -> Make:
    vocabulary = kwargs.pop("vocabulary", VOCABULARY)

    def network() -> Any:
        x = tokens(length)
        h = layers.Activation("tanh")(layers.Embedding(vocabulary, 3, **kwargs)(x))
        h = layers.GlobalAveragePooling1D()(h) if length is None else layers.Flatten()(h)
        return keras.Model(x, layers.Dense(c)(h))

    return network


def embedding_of_one_token() -> Any:
    x = keras.Input((), dtype="int32")
    return keras.Model(x, layers.Dense(1)(ops.tanh(layers.Embedding(VOCABULARY, 3)(x))))


def embedding_of_pairs() -> Any:
    """Tokens of two axes."""
    x = keras.Input((2, 3), dtype="int32")
    return functional(x, ops.tanh(layers.Embedding(VOCABULARY, 3)(x)))


def embedding_of_floats() -> Any:
    """Keras casts floating tokens."""
    x = tokens()
    h = layers.Embedding(VOCABULARY, 3)(ops.cast(x, "float32"))
    return functional(x, ops.tanh(h))


def embedding_twice() -> Any:
    """One table for questions and answers of other lengths."""
    a, b = tokens(), tokens(3)
    table = layers.Embedding(VOCABULARY, 4)
    p, q = ops.mean(table(a), axis=1), ops.mean(ops.tanh(table(b)), axis=1)
    return keras.Model([a, b], layers.Dense(1)(p * q))


class AddPositions(layers.Layer):
    """Adds to each position its row of a table, looked up by tokens without rows."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.table = layers.Embedding(length, 3, name="position_table")

    def build(self, shape: Any) -> None:
        self.table.build()

    def call(self, x: Any) -> Any:
        return x + self.table(ops.arange(x.shape[1], dtype="int32"))


def embedding_of_positions(length: int) -> Make:
    def network() -> Any:
        x = tokens(length)
        h = AddPositions(length)(layers.Embedding(VOCABULARY, 3)(x))
        return functional(x, ops.tanh(h))

    return network


def embedding_and_features() -> Any:
    x, features = tokens(), keras.Input((4,))
    h = layers.GlobalAveragePooling1D()(layers.Embedding(VOCABULARY, 3)(x))
    h = layers.Concatenate()([h, layers.Dense(3, "tanh")(features)])
    return keras.Model([x, features], layers.Dense(1)(layers.Dense(4, "tanh")(h)))


class TiedEmbedding(keras.Model):
    """A language model whose output layer is the transposed table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(3, 4)
        self.hidden = layers.Dense(4, "tanh")

    def call(self, x: Any) -> Any:
        h = self.hidden(ops.mean(self.table(x), axis=1))
        return ops.matmul(h, ops.transpose(self.table.embeddings))


def tied_embedding() -> Any:
    x = tokens()
    return keras.Model(x, TiedEmbedding()(x))


def reversible_embedding() -> Any:
    """Keras' own tied table."""
    x, table = tokens(), layers.ReversibleEmbedding(3, 4)
    h = layers.Dense(4, "tanh")(ops.mean(table(x), axis=1))
    return keras.Model(x, table(h, reverse=True))


EMBEDDING: dict[str, Make] = {
    "tokens": embedded(c=3),
    "one token": embedding_of_one_token,
    "tokens of two axes": embedding_of_pairs,
    "floating tokens": embedding_of_floats,
    "unknown length": embedded(length=None),
    "large vocabulary": embedded(vocabulary=LARGE_VOCABULARY),
    "long, large vocabulary": embedded(length=40, vocabulary=LARGE_VOCABULARY),
    "masked mean": embedded(length=None, mask_zero=True),
    "twice": embedding_twice,
    "and features": embedding_and_features,
    "positions": embedding_of_positions(LENGTH),
    # As many positions as the library plans with rows: not to be taken for rows.
    "four positions": embedding_of_positions(4),
    "tied": tied_embedding,
}
if hasattr(layers, "ReversibleEmbedding"):  # in late Keras only
    EMBEDDING["reversible"] = reversible_embedding


# Normalization

Batch, Layer = layers.BatchNormalization, layers.LayerNormalization
Group = layers.GroupNormalization
NORMALIZATION: dict[str, Make] = {
    "batch, rank 2": between((4,), Batch),
    "batch, rank 3": between((3, 4), Batch),
    "batch, axis 1": between((3, 4), Batch, axis=1),
    "batch, no scale": between((3, 4), Batch, scale=False),
    "batch, no center": between((3, 4), Batch, center=False, epsilon=0.1),
    "batch, neither": between((3, 4), Batch, center=False, scale=False),
    "batch, frozen": between((3, 4), Batch, trainable=False),
    "batch, frozen gamma": freezing(between((3, 4), Batch), Batch, "gamma"),
    "batch, twice": twice((3, 4), Batch),
    "layer, rank 2": between((4,), Layer, c=3),
    "layer, rank 3": between((3, 4), Layer),
    "layer, two axes": between((3, 4), Layer, axis=[1, 2]),
    "layer, last two of three": between((2, 3, 4), Layer, axis=[-2, -1]),
    "layer, no scale": between((3, 4), Layer, scale=False),
    "layer, no center": between((3, 4), Layer, center=False, epsilon=0.1),
    "layer, neither": between((3, 4), Layer, center=False, scale=False),
    "layer, frozen gamma": freezing(between((3, 4), Layer), Layer, "gamma"),
    "layer, twice": twice((3, 4), Layer),
    "layer, unknown length": lambda: pooled((None, 4), Dense(4, "tanh"), Layer()),
    "group": between((2, 3, 4), Group, groups=2),
    "group, axis 1": between((4, 3), Group, groups=2, axis=1),
    "group, instance": between((3, 4), Group, groups=-1),
    "group, no scale": between((3, 4), Group, groups=2, scale=False),
    "group, no center": between((3, 4), Group, groups=2, center=False),
    "group, twice": twice((3, 4), Group, groups=2),
}
if hasattr(layers, "RMSNormalization"):  # since Keras 3.9
    RMS = layers.RMSNormalization
    NORMALIZATION |= {
        "rms, rank 2": between((4,), RMS),
        "rms, rank 3": between((3, 4), RMS),
        "rms, two axes": between((2, 3, 4), RMS, axis=[2, 3]),
        "rms, twice": twice((3, 4), RMS),
    }

PReLU = layers.PReLU
PRELU: dict[str, Make] = {
    "rank 2": between((4,), PReLU),
    "rank 3": between((3, 4), PReLU),
    "shared axis": between((3, 4), PReLU, shared_axes=[1]),
    "shared axes": between((2, 3, 4), PReLU, shared_axes=[1, 2]),
    "shared channels": between((2, 3, 4), PReLU, shared_axes=[3]),
    "one slope": between((3, 4), PReLU, shared_axes=[1, 2]),
    "twice": twice((3, 4), PReLU, shared_axes=[1]),
}


# Attention


def self_attention(*names: str, c: int = 1, call: Any = None, **kwargs: Any) -> Make:
    """Attention of a sequence to itself; `names` are inner layers that do not train."""
    sizes = {"num_heads": 2, "key_dim": 3, **kwargs}

    def network() -> Any:
        x = keras.Input((4, 5))
        h = layers.Dense(5, "tanh")(x)
        attention = layers.MultiHeadAttention(**sizes)
        h = ops.tanh(attention(h, h, **(call or {})))
        for name in names:
            getattr(attention, name).trainable = False
        return functional(x, h, c)

    return network


def cross_attention(make: Callable[[], Any], *, keys: bool = False) -> Make:
    """Queries of one length, values (and keys) of another length and width."""

    def network() -> Any:
        q, v, k = keras.Input((3, 5)), keras.Input((4, 4)), keras.Input((4, 6))
        inputs = [q, v, k] if keys else [q, v]
        return functional(inputs, ops.tanh(make()(*inputs)))

    return network


def masked_attention(make: Callable[[], Any]) -> Make:
    """A mask of each row's own, given as an input."""

    def network() -> Any:
        q, v = keras.Input((3, 5)), keras.Input((4, 5))
        mask = keras.Input((3, 4), dtype="bool", name="mask")
        return functional([q, v, mask], ops.tanh(make()(q, v, attention_mask=mask)))

    return network


def padded_attention(make: Callable[[], Any], *, causal: bool = False) -> Make:
    """Masks that tokens bring along."""

    def network() -> Any:
        x = tokens()
        h = layers.Embedding(VOCABULARY, 4, mask_zero=True)(x)
        h = make()(h, h, use_causal_mask=causal)
        return keras.Model(x, layers.Dense(1)(ops.mean(ops.tanh(h), axis=1)))

    return network


def attention_twice() -> Any:
    x = keras.Input((3, 4))
    shared = layers.MultiHeadAttention(2, 2)
    h = ops.tanh(shared(x, x))
    return functional(x, ops.tanh(shared(h, x, use_causal_mask=True)))


def attention_over_two_axes() -> Any:
    x = keras.Input((2, 3, 4))
    attention = layers.MultiHeadAttention(2, 2, attention_axes=(1, 2))
    return functional(x, ops.tanh(attention(x, x)))


def grouped_attention(call: Any = None, **kwargs: Any) -> Make:
    sizes = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2, **kwargs}

    def network() -> Any:
        x = keras.Input((4, 5))
        h = layers.Dense(5, "tanh")(x)
        return functional(
            x, ops.tanh(layers.GroupQueryAttention(**sizes)(h, h, **(call or {})))
        )

    return network


def attention_scores() -> Any:
    """The attention and its scores, both used."""
    x = keras.Input((3, 4))
    h, scores = layers.MultiHeadAttention(2, 2)(x, x, return_attention_scores=True)
    parts = [layers.Flatten()(ops.tanh(h)), layers.Flatten()(scores)]
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()(parts)))


def additive_attention() -> Any:
    """Attention without projections, but with a learned scale."""
    x = keras.Input((3, 4))
    q, v = layers.Dense(4, "tanh")(x), layers.Dense(4)(x)
    return functional(x, ops.tanh(layers.AdditiveAttention()([q, v])))


CAUSAL = {"use_causal_mask": True}


def heads() -> Any:
    return layers.MultiHeadAttention(2, 3)


def query_groups() -> Any:
    return layers.GroupQueryAttention(3, 4, 2)


ATTENTION: dict[str, Make] = {
    "self": self_attention(c=2),
    "one head": self_attention(num_heads=1),
    "causal": self_attention(call=CAUSAL),
    "value dim": self_attention(value_dim=2),
    "output shape of two axes": self_attention(output_shape=(2, 3)),
    "frozen query": self_attention("_query_dense"),
    "cross, keys": cross_attention(heads, keys=True),
    "cross, value dim": cross_attention(lambda: layers.MultiHeadAttention(2, 3, 4)),
    "mask": masked_attention(heads),
    "padded, causal": padded_attention(heads, causal=True),
    "twice": attention_twice,
    "two axes": attention_over_two_axes,
    "scores": attention_scores,
    "additive": additive_attention,
    "grouped": grouped_attention(),
    "grouped, causal": grouped_attention(CAUSAL),
    "grouped, no bias": grouped_attention(use_bias=False),
    "grouped, mask": masked_attention(query_groups),
    "grouped, padded": padded_attention(query_groups),
}


# Recurrent layers


def sequence(make: Callable[[], Any], c: int = 1) -> Make:
    """A recurrent layer behind a `Dense`, whatever it returns."""
    return lambda: chain((3, 2), Dense(2, "tanh"), make(), c=c)


def padded(make: Callable[[], Any], *, mean: bool = False) -> Make:
    """Masked steps, at the end and elsewhere."""

    def network() -> Any:
        x = tokens(4)
        h = make()(layers.Embedding(VOCABULARY, 2, mask_zero=True)(x))
        h = layers.GlobalAveragePooling1D()(h) if mean else h
        return keras.Model(x, layers.Dense(1)(h))

    return network


def recurrent_twice(make: Callable[[], Any]) -> Make:
    """The same cell over the sequence and over its own outputs."""

    def network() -> Any:
        x, shared = keras.Input((3, 2)), make()
        return functional(x, shared(shared(x)))

    return network


def encoder_decoder() -> Any:
    """States that pass from one recurrent layer to the next."""
    x, y = keras.Input((3, 2)), keras.Input((2, 2))
    _, *states = layers.LSTM(2, return_state=True)(x)
    return functional([x, y], layers.LSTM(2, return_sequences=True)(y, states))


def stacked_recurrent() -> Any:
    return chain(
        (3, 2), layers.GRU(2, return_sequences=True), layers.LSTM(2), Dense(3, "tanh")
    )


def both_ways(make: Callable[..., Any], **kwargs: Any) -> Callable[[], Any]:
    """A recurrent layer that reads in both directions."""
    merge = {"merge_mode": kwargs.pop("merge_mode", "concat")}
    return lambda: layers.Bidirectional(make(2, **kwargs), **merge)


RNN, LSTM, GRU = layers.SimpleRNN, layers.LSTM, layers.GRU
RECURRENT: dict[str, Make] = {
    "rnn": sequence(lambda: RNN(2)),
    "rnn, no bias, softplus": sequence(lambda: RNN(2, "softplus", use_bias=False)),
    "rnn, backwards": sequence(lambda: RNN(2, go_backwards=True, return_sequences=True)),
    "rnn, unrolled": sequence(lambda: RNN(2, unroll=True)),
    "lstm, unrolled, padded": padded(lambda: LSTM(2, unroll=True)),
    "gru, unrolled, backwards": sequence(
        lambda: GRU(2, unroll=True, go_backwards=True, return_sequences=True)
    ),
    "cells, stacked": sequence(
        lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2, reset_after=False)])
    ),
    "cells, stacked, padded": padded(
        lambda: layers.RNN([layers.GRUCell(2), layers.SimpleRNNCell(2)])
    ),
    "rnn, zeros for masked": padded(
        lambda: RNN(2, return_sequences=True, zero_output_for_mask=True), mean=True
    ),
    "rnn, padded": padded(lambda: RNN(2)),
    "rnn, twice": recurrent_twice(lambda: RNN(2, return_sequences=True)),
    "lstm, sequences": sequence(lambda: LSTM(3, return_sequences=True), c=2),
    "lstm, no bias": sequence(lambda: LSTM(2, use_bias=False)),
    "lstm, activations": sequence(lambda: LSTM(2, "softplus", recurrent_activation="tanh")),
    "lstm, padded, sequences": padded(lambda: LSTM(2, return_sequences=True), mean=True),
    "lstm, encoder and decoder": encoder_decoder,
    "gru": sequence(lambda: GRU(2)),
    "gru, reset before": sequence(lambda: GRU(2, reset_after=False)),
    "gru, reset before, no bias": sequence(
        lambda: GRU(2, reset_after=False, use_bias=False, return_sequences=True)
    ),
    "gru, backwards": sequence(lambda: GRU(2, go_backwards=True)),
    "gru, padded": padded(lambda: GRU(2)),
    "stacked": stacked_recurrent,
    "both ways, lstm": sequence(both_ways(LSTM, return_sequences=True)),
    "both ways, gru, sum": sequence(both_ways(GRU, merge_mode="sum")),
    "both ways, padded": padded(both_ways(RNN)),
}


def distributed(make: Callable[[], Any], shape: tuple[int | None, ...]) -> Make:
    return lambda: chain(shape, layers.TimeDistributed(make()), layers.Activation("tanh"))


def distributed_model() -> Any:
    return keras.Sequential([layers.Dense(3, "tanh"), layers.Dense(2)])


def distributed_after_mask() -> Any:
    x = tokens(4)
    h = layers.Embedding(VOCABULARY, 2, mask_zero=True)(x)
    h = layers.TimeDistributed(layers.Dense(3, "tanh"))(h)
    return keras.Model(x, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))


TIME_DISTRIBUTED: dict[str, Make] = {
    "dense": distributed(lambda: Dense(3), (3, 4)),
    "dense of rank 3": distributed(lambda: Dense(3), (2, 3, 4)),
    "convolution": distributed(lambda: Conv1D(2, 2), (2, 4, 2)),
    "model": distributed(distributed_model, (3, 4)),
    "normalization": distributed(layers.LayerNormalization, (3, 4)),
    "after a mask": distributed_after_mask,
}


FAMILIES: dict[str, dict[str, Make]] = {
    "dense": DENSE,
    "einsum": EINSUM,
    "conv1d": CONV1D,
    "conv2d": CONV2D,
    "conv3d": CONV3D,
    "depthwise": DEPTHWISE,
    "separable": SEPARABLE,
    "transposed": TRANSPOSED,
    "embedding": EMBEDDING,
    "normalization": NORMALIZATION,
    "prelu": PRELU,
    "attention": ATTENTION,
    "recurrent": RECURRENT,
    "time distributed": TIME_DISTRIBUTED,
}

NETWORKS: dict[str, Make] = {
    f"{family}: {variant}": make
    for family, variants in FAMILIES.items()
    for variant, make in variants.items()
}

FALLBACK = {
    "attention: additive",  # no rule
    "einsum: abc,cd->ad",  # sums an axis that neither kernel nor output has
    "einsum: rows moved",
    "embedding: positions",  # tokens without rows
    "embedding: four positions",
    "embedding: tied",
    "embedding: reversible",  # no rule
}
"""Networks of which the plain Jacobian serves a part; rules serve all the others."""


# Rows and weights


def rows_for(network: Any, n: int, rng: np.random.Generator) -> Any:
    """Random rows: numbers, tokens or masks, as the network's inputs say."""
    sizes = [
        layer.input_dim
        for layer in network._flatten_layers()
        if isinstance(layer, layers.Embedding) and layer.name != "position_table"
    ]
    vocabulary = min(sizes, default=VOCABULARY)
    single = isinstance(network, keras.Sequential)
    return keras.tree.map_structure(
        lambda spec: _random_rows(spec, n, vocabulary, rng),
        network.inputs[0] if single else network.input,
    )


def _random_rows(spec: Any, n: int, vocabulary: int, rng: np.random.Generator) -> Any:
    shape = (n, *(LENGTH if d is None else d for d in spec.shape[1:]))
    if spec.dtype == "bool":
        mask = rng.random(shape) < 0.6
        mask[..., 0] = True  # each query sees something
        return mask
    if spec.dtype.startswith("int"):
        # Few tokens, so that they repeat in a row and among rows; 0 is the padding.
        few = np.array([0, 1, 2, vocabulary // 2, vocabulary - 1])
        return few[rng.integers(0, len(few), size=shape)].astype(spec.dtype)
    return rng.normal(size=shape)


def randomise(network: Any, rng: np.random.Generator) -> Any:
    """No weight at its initial value: zeros and ones would hide mistakes."""
    for weight in network.weights:
        if not tf.as_dtype(weight.dtype).is_floating:
            continue  # the state of a random generator
        noise = rng.normal(size=weight.shape)
        value = np.asarray(weight.value, "float64")
        if weight.path.endswith("moving_variance"):
            weight.assign(0.5 + rng.random(size=weight.shape))
        else:
            weight.assign(value + 0.3 * noise)
    return network
