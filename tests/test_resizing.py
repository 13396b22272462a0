"""Resizing layers: their own values, and all derivatives, of a product with matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk
from keras_kare.kernels.structured.capture import Recorder, recording
from keras_kare.kernels.structured.differentiability import undifferentiable

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5", "area")
"""All that Keras has; it passes them on to TensorFlow."""


def bilinear(old: int, new: int) -> np.ndarray:
    """`(new, old)`: pixels have half-integer centres, and the border is repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        below = int(np.floor(place))
        for pixel, weight in ((below, below + 1 - place), (below + 1, place - below)):
            matrix[i, np.clip(pixel, 0, old - 1)] += weight
    return matrix


def nearest(old: int, new: int) -> np.ndarray:
    return np.eye(old)[[int((i + 0.5) * old / new) for i in range(new)]]


def made_of(way: Callable[[int, int], np.ndarray], old: Any, new: Any) -> Any:
    """The layer as a product with matrices from formulas."""
    rows, columns = (tf.constant(way(a, b)) for a, b in zip(old, new, strict=True))
    return layers.Lambda(lambda x: tf.einsum("ph,qw,nhwc->npqc", rows, columns, x))


def around(layer: Any, size: Any = (5, 4)) -> Any:
    """Convolutions before and behind."""
    return keras.Sequential(
        [
            keras.Input((*size, 2)),
            layers.Conv2D(2, 2, padding="same", activation="tanh"),
            layer,
            layers.Conv2D(2, 2, activation="tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


def copied(network: Any, layer: Any) -> Any:
    other = around(layer)
    other.set_weights(network.get_weights())
    return other


LAYERS = {
    "upsampling": (
        lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        bilinear,
        10,
        8,
    ),
    "factors": (
        lambda: layers.UpSampling2D((3, 2), interpolation="bilinear"),
        bilinear,
        15,
        8,
    ),
    "enlarging": (lambda: layers.Resizing(7, 9), bilinear, 7, 9),
    "shrinking": (lambda: layers.Resizing(3, 3), bilinear, 3, 3),
    "nearest": (lambda: layers.Resizing(7, 3, "nearest"), nearest, 7, 3),
}


def gram_by_rows(network: Any, x: np.ndarray) -> tf.Tensor:
    """Of the plain gradients of one row at a time, op by op."""
    rows = []
    for i in range(len(x)):
        with tf.GradientTape() as tape, recording(Recorder(None, lambda layer: False)):
            f = tf.reduce_sum(network(tf.constant(x[i : i + 1]), training=False))
        gradients = tape.gradient(
            f, [v.value for v in network.trainable_variables], unconnected_gradients="zero"
        )
        rows.append(tf.concat([tf.reshape(g, (-1,)) for g in gradients], axis=0))
    return tf.matmul(rows, rows, transpose_b=True)


def gram_and_gradients(
    network: Any, x: np.ndarray, gram_of: Callable[..., Any] = gram_by_rows
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of `sum(R * gram)`."""
    weights = np.random.default_rng(3).normal(size=(len(x), len(x)))
    variables = [v.value for v in network.trainable_variables]
    with tf.GradientTape() as tape:
        gram = gram_of(network, x)
        total = tf.reduce_sum(weights * gram)
    found = tape.gradient(total, variables, unconnected_gradients="zero")
    return gram.numpy(), [g.numpy() for g in found]


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    """But for single precision, in which TensorFlow resizes."""
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6 * np.max(expected[0]))
    largest = max(np.max(np.abs(slope)) for slope in expected[1])
    for gradient, slope in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=0.0, atol=2e-6 * largest)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LAYERS)
def test_kernel_and_gradient(name, rng):
    make, way, *new = LAYERS[name]
    network, x = around(make()), rng.normal(size=(4, 5, 4, 2))
    twin = copied(network, made_of(way, (5, 4), new))
    assert_same(gram_and_gradients(network, x), gram_and_gradients(twin, x))


@pytest.mark.usefixtures("float64")
def test_unknown_sizes(rng):
    """By the public method, in one trace for images of any size."""
    network = around(layers.UpSampling2D(2, interpolation="bilinear"), (None, None))
    twin = around(made_of(bilinear, (5, 4), (10, 8)))
    twin.set_weights(network.get_weights())
    x = rng.normal(size=(3, 5, 4, 2))
    kernel = kk.kernels.NTK(network)
    found = gram_and_gradients(network, x, lambda network, x: kernel.gram(x))
    assert_same(found, gram_and_gradients(twin, x))


@pytest.mark.usefixtures("float64")
def test_forward_mode(rng):
    """`J w` and `Jᵀ v` hold the same matrices."""
    network = around(layers.Resizing(7, 9, "bicubic"))
    x = rng.normal(size=(4, 5, 4, 2))
    kernel = kk.kernels.NTK(network)
    v = rng.normal(size=(4, 1))
    product = kernel.jvp(x, kernel.vjp(x, v))
    np.testing.assert_allclose(product, kernel.gram(x) @ v, rtol=1e-6)


def resizing_layers(interpolation: str, data_format: str) -> list[Any]:
    options = {"interpolation": interpolation, "data_format": data_format}
    made = [layers.UpSampling2D((2, 3), **options)]
    for height, width in ((7, 4), (2, 9), (5, 6), (10, 12)):
        for more in (
            {},
            {"antialias": True},
            {"crop_to_aspect_ratio": True},
            {"pad_to_aspect_ratio": True, "fill_value": 0.7},
        ):
            made.append(layers.Resizing(height, width, **options, **more))
    return made


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_own_values(interpolation, dtype, rng):
    """Bit for bit but for one rounding, in the layer's own type."""
    x = rng.normal(size=(2, 5, 6, 3))
    first = x.transpose(0, 3, 1, 2)
    policy = "mixed_float16" if dtype == "float16" else dtype
    for data_format, images in (("channels_last", x), ("channels_first", first)):
        images = tf.constant(images, dtype)
        for layer in resizing_layers(interpolation, data_format):
            layer.dtype_policy = keras.DTypePolicy(policy)
            own = layer(images)
            with recording(Recorder(None, lambda layer: False)):
                ours = layer(images)
            assert ours.dtype == own.dtype
            epsilon = 2.0 * np.finfo(dtype).eps
            np.testing.assert_allclose(ours, own, rtol=epsilon, atol=epsilon / 4)


def test_matrices_are_made_once(rng):
    network = around(layers.Resizing(6, 11, "lanczos3", pad_to_aspect_ratio=True))
    resize = keras.ops.image.resize
    x = rng.normal(size=(2, 5, 4, 2)).astype("float32")
    rules = recording(Recorder(None, lambda layer: False))
    with mock.patch.object(keras.ops.image, "resize", side_effect=resize) as counted, rules:
        network(x)
        many = counted.call_count
        network(x)
    assert counted.call_count == many + 1  # the layer's own values


def test_unknown_sizes_to_be_cropped(rng):
    """What is cropped is known when images come: the layer itself runs, and is named."""
    layer = layers.Resizing(7, 4, crop_to_aspect_ratio=True)
    found: list[str] = []

    @tf.function(autograph=False)
    def squares(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, recording(Recorder(None, lambda layer: False)):
            tape.watch(x)
            y = tf.square(layer(x))
        gradient = tape.gradient(y, x)
        found.extend(undifferentiable(x.graph.get_operations(), [x], [gradient]))
        return y

    traced = squares.get_concrete_function(tf.TensorSpec((None, None, None, 2)))
    assert [line.split()[0] for line in found] == ["ResizeBilinearGrad"]
    x = tf.constant(rng.normal(size=(2, 5, 6, 2)), tf.float32)
    np.testing.assert_array_equal(traced(x), tf.square(layer(x)))
