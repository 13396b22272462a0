"""Whole networks as they are used: exact kernels and exact gradients, in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from generated_networks import jacobians_by_hand
from keras import layers, ops
from layer_networks import rows_for
from test_layer_rules import (
    COMBINATIONS,
    blocks_of,
    gradient_error,
    op_by_op,
    relative,
    rules_serve,
)

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")

VOCABULARY = 7


def u_net(depth: int = 2, filters: int = 2) -> Any:
    """Down, up by transposed convolutions, with skips; one mean for each map."""
    x = keras.Input((16, 16, 1))
    h, skips = x, []
    for level in range(depth):
        h = layers.Conv2D(filters * 2**level, 3, padding="same", activation="gelu")(h)
        skips.append(h)
        h = layers.MaxPooling2D()(h)
    h = layers.Conv2D(filters * 2**depth, 3, padding="same", activation="gelu")(h)
    for level in reversed(range(depth)):
        up = layers.Conv2DTranspose(filters * 2**level, 2, strides=2, padding="same")
        h = layers.Concatenate()([up(h), skips[level]])
        h = layers.Conv2D(filters * 2**level, 3, padding="same", activation="gelu")(h)
    pixels = layers.Conv2D(2, 1, activation="sigmoid")(h)
    return keras.Model(x, layers.GlobalAveragePooling2D()(pixels))


class Positions(layers.Layer):
    """The positions of a sequence, a row for each row of tokens."""

    def call(self, x: Any) -> Any:
        return ops.zeros_like(x) + ops.arange(x.shape[1], dtype=x.dtype)


def transformer(length: int = 6, width: int = 4) -> Any:
    """A block with a causal mask, pre-normalized, on tokens and their positions."""
    x = keras.Input((length,), dtype="int32")
    h = layers.Embedding(VOCABULARY, width)(x)
    h = h + layers.Embedding(length, width, name="position_table")(Positions()(x))
    normal = layers.LayerNormalization()(h)
    h = h + layers.MultiHeadAttention(2, 3)(normal, normal, use_causal_mask=True)
    feed = layers.Dense(2 * width, "gelu")(layers.LayerNormalization()(h))
    h = h + layers.Dense(width)(feed)
    return keras.Model(x, layers.Dense(2)(ops.mean(layers.LayerNormalization()(h), axis=1)))


def tagger() -> Any:
    x = keras.Input((4,), dtype="int32")
    h = layers.Embedding(VOCABULARY, 3)(x)
    h = layers.LSTM(3, return_sequences=True)(h)
    h = layers.TimeDistributed(layers.Dense(2, "tanh"))(h)
    return keras.Model(x, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))


def perturb(network: Any, rng: np.random.Generator, size: float) -> Any:
    """Weights moved by a part of their own size, zeros by a little."""
    for weight in network.weights:
        if not tf.as_dtype(weight.dtype).is_floating:
            continue  # the state of a random generator
        value, noise = np.asarray(weight.value), size * rng.normal(size=weight.shape)
        if weight.path.endswith("moving_variance"):
            weight.assign(value * np.exp(noise))
        else:
            weight.assign(value + noise * (np.sqrt(np.mean(value**2)) or 1.0))
    return network


def assert_exact(gram: Any, outputs: str, jacobian: np.ndarray) -> None:
    expected = COMBINATIONS[outputs](blocks_of(jacobian, jacobian))
    assert relative(gram, expected) < 1e-10


@pytest.mark.parametrize("make", [u_net, transformer, tagger])
def test_small_applications(make, rng):
    network = perturb(make(), rng, 0.3)
    x = rows_for(network, 4, rng)
    kernel = kk.kernels.NTK(network)
    with rules_serve():
        kernel.check(x)
    jacobian = jacobians_by_hand(network, x)
    assert_exact(kernel.gram(x), "sum", jacobian)
    for outputs, features in op_by_op(kernel, x, jacobian.shape[1]).items():
        assert_exact(features.gram(tf.constant(x)), outputs, jacobian)
    assert gradient_error(network, kernel.gram, x, rng) < 1e-6


def as_if_trained(network: Any, rng: np.random.Generator) -> Any:
    """Moving statistics near those of some images, so that activations keep their size."""
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    network(rng.normal(size=(32, *network.input_shape[1:])), training=True)
    return perturb(network, rng, 0.1)


@pytest.mark.parametrize(
    "name", ["MobileNetV2", pytest.param("ResNet50V2", marks=pytest.mark.slow)]
)
def test_keras_applications(name, rng):
    network = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=3, classifier_activation=None
    )
    as_if_trained(network, rng)
    x = rng.normal(size=(2, 32, 32, 3))
    kernel = kk.kernels.NTK(network)
    with rules_serve():
        kernel.check(x)
    summed = keras.Model(network.input, ops.sum(network.output, axis=1, keepdims=True))
    jacobian = jacobians_by_hand(summed, x)
    assert_exact(kernel.gram(x), "sum", jacobian)
    # Op by op: half of the time would be for the trace of the gradient.
    # Measured derivatives agree for steps from 1e-10 to 1e-8. From 1e-7 on, activations
    # pass kinks, where the kernel of a ReLU network jumps.
    gram = op_by_op(kernel, x, 1)["sum"].gram
    assert gradient_error(network, gram, tf.constant(x), rng, step=2e-9) < 1e-6
