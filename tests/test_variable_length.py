"""Networks whose inputs leave lengths or sizes open: any length, and two at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from generated_networks import jacobians_by_hand
from keras import layers, ops
from test_layer_rules import COMBINATIONS, blocks_of

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")

D = 4


def steps(*between: Any) -> Any:
    pool = layers.GlobalAveragePooling1D()
    return keras.Sequential([keras.Input((None, D)), *between, pool, layers.Dense(2)])


def image(*between: Any) -> Any:
    pool = layers.GlobalAveragePooling2D()
    return keras.Sequential([keras.Input((None, None, 2)), *between, pool, layers.Dense(2)])


def attention() -> Any:
    x = keras.Input((None, D))
    h = layers.MultiHeadAttention(2, 2)(x, x)
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))


def at_two_lengths() -> Any:
    """The same layer on all steps, and on all but one."""
    x, shared = keras.Input((None, D)), layers.Dense(3, "tanh")
    h = ops.mean(shared(x), axis=1) * ops.mean(shared(x[:, 1:]), axis=1)
    return keras.Model(x, layers.Dense(2)(h))


def tokens() -> Any:
    table = layers.Embedding(6, D, mask_zero=True)
    pool = layers.GlobalAveragePooling1D()
    return keras.Sequential(
        [keras.Input((None,), dtype="int32"), table, pool, layers.Dense(2)]
    )


class Subclassed(keras.Model):
    """Says nothing of the lengths that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = layers.Dense(3, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(ops.mean(self.hidden(x), axis=1))


NETWORKS: dict[str, Callable[[], Any]] = {
    "dense": lambda: steps(layers.Dense(3, "tanh")),
    "dense, no bias": lambda: steps(layers.Dense(3, "tanh", use_bias=False)),
    "einsum": lambda: steps(
        layers.EinsumDense("abc,cde->abde", (None, 2, 2), bias_axes="de"),
        layers.EinsumDense("abde,dec->abc", (None, 3)),
        layers.Activation("tanh"),
    ),
    "conv1d": lambda: steps(layers.Conv1D(3, 3, padding="same", activation="tanh")),
    "conv1d: strides, causal": lambda: steps(
        layers.Conv1D(3, 2, strides=2), layers.Conv1D(3, 2, padding="causal")
    ),
    "conv1d: transposed": lambda: steps(layers.Conv1DTranspose(3, 2, strides=2)),
    "conv2d": lambda: image(layers.Conv2D(3, 2, activation="tanh")),
    "conv2d: strides, same": lambda: image(
        layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh")
    ),
    "separable": lambda: image(layers.SeparableConv2D(3, 2, activation="tanh")),
    "attention": attention,
    "embedding": tokens,
    "layer norm": lambda: steps(layers.LayerNormalization(), layers.Dense(3, "tanh")),
    "at two lengths": at_two_lengths,
}


def rows(network: Any, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    shape = network.input_shape
    if len(shape) == 2:
        return np.c_[np.ones((n, 1)), rng.integers(0, 6, (n, length - 1))].astype("int32")
    size = (length, length - 1)[: len(shape) - 2]
    return rng.normal(size=(n, *size, shape[-1]))


def close(values: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(
        values, expected, rtol=0, atol=1e-10 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_function_of_unknown_length(name, rng):
    check_function(name, "sum", rng)


@pytest.mark.parametrize("name", ["dense", "conv2d", "attention"])
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_outputs(name, outputs, rng):
    check_function(name, outputs, rng)


def check_function(name: str, outputs: str, rng: np.random.Generator) -> None:
    """One trace for all lengths, planned on rows of one, used with others."""
    network = NETWORKS[name]()
    kernel, combine = kk.kernels.NTK(network, outputs), COMBINATIONS[outputs]
    kernel.check(rows(network, 3, 4, rng))
    x1, x2 = rows(network, 3, 5, rng), rows(network, 2, 7, rng)
    spec = kernel.open_spec(x1)
    assert spec.shape.as_list() == list(network.input_shape)

    @tf.function(input_signature=[spec, spec], autograph=False)
    def values(a: Any, b: Any) -> Any:
        return kernel.gram(a), kernel.cross(a, b), kernel.diag(b)

    gram, cross, diagonal = values(x1, x2)
    j1, j2 = (jacobians_by_hand(network, x) for x in (x1, x2))
    gram_of_2 = combine(blocks_of(j2, j2))
    close(gram, combine(blocks_of(j1, j1)))
    close(cross, combine(blocks_of(j1, j2)))
    close(diagonal, np.einsum("ii...->i...", gram_of_2))
    close(values(x2, x1)[0], gram_of_2)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "embedding"])
def test_features_of_unknown_length(name, rng):
    network = NETWORKS[name]()
    kernel, v = kk.kernels.NTK(network), rng.normal(size=(3, 2))
    x1, x2 = rows(network, 3, 5, rng), rows(network, 2, 7, rng)
    spec = kernel.open_spec(x1)
    pulled = tf.function(lambda x: kernel.vjp(x, v), input_signature=[spec])(x1)
    pushed = tf.function(lambda x: kernel.jvp(x, pulled), input_signature=[spec])(x2)
    j1, j2 = (jacobians_by_hand(network, x) for x in (x1, x2))
    close(pushed, blocks_of(j2, j1).sum((2, 3)) @ v)


def test_gradients_of_unknown_length(rng):
    """Of a sum of kernel values, against a central difference."""
    network = NETWORKS["conv1d"]()
    kernel, weights = kk.kernels.NTK(network), rng.normal(size=(3, 2))
    x1, x2 = rows(network, 3, 5, rng), rows(network, 2, 7, rng)
    spec = kernel.open_spec(x1)

    @tf.function(input_signature=[spec, spec], autograph=False)
    def value(a: Any, b: Any) -> tf.Tensor:
        return tf.reduce_sum(weights * kernel.cross(a, b))

    variable = network.trainable_variables[0].value
    with tf.GradientTape() as tape:
        total = value(x1, x2)
    slope = np.sum(tape.gradient(total, variable) * np.cos(variable))
    start, way, around = variable.numpy(), np.cos(variable), []
    for step in (1e-5, -1e-5):
        variable.assign(start + step * way)
        around.append(float(value(x1, x2)))
    np.testing.assert_allclose(slope, (around[0] - around[1]) / 2e-5, rtol=1e-7)


@pytest.mark.parametrize("make", [NETWORKS["dense"], tokens, Subclassed])
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_predictions_for_other_lengths(make, form, rng):
    network = make()
    given = network if make is not Subclassed else NETWORKS["dense"]()
    x, xt = rows(given, 5, 4, rng), rows(given, 2, 6, rng)
    network(x)
    head = kk.NTKRidgeHead(ridge=0.1, relative=False, form=form)
    model, y = kk.KAREModel(network, head=head), rng.normal(size=(5, 2))
    model.fit_head(x, y)
    j, jt = (jacobians_by_hand(network, a).sum(1) for a in (x, xt))
    gram, cross = j @ j.T, jt @ j.T
    expected = cross @ np.linalg.solve(gram / 5 + 0.1 * np.eye(5), y) / 5
    np.testing.assert_allclose(model.predict(xt, verbose=0), expected, atol=1e-9)


def test_open_spec(rng):
    """Nested as the rows are, whatever the order of names."""
    a, b = keras.Input((2,), name="left"), keras.Input((None, 3), name="right")
    h = layers.Concatenate()([a, layers.GlobalAveragePooling1D()(b)])
    network = keras.Model([b, a], layers.Dense(1)(h))
    left, right = rng.normal(size=(4, 2)), rng.normal(size=(4, 5, 3)).astype("float32")
    kernel = kk.kernels.NTK(network)
    wanted = tf.TensorSpec((None, 2), "float64"), tf.TensorSpec((None, None, 3), "float32")
    assert kernel.open_spec({"left": left, "right": right}) == {
        "left": wanted[0],
        "right": wanted[1],
    }
    assert kernel.open_spec([right, left]) == [wanted[1], wanted[0]]
    one_column = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    spec = kk.kernels.NTK(one_column).open_spec(np.ones(3))
    assert spec == tf.TensorSpec((None,), "float64")
    subclassed = kk.kernels.NTK(Subclassed()).open_spec(right)
    assert subclassed == tf.TensorSpec((None, 5, 3), "float32")


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_exported_signature_keeps_unknown_axes(form, rng, tmp_path):
    network = NETWORKS["conv1d"]()
    x, xt = rows(network, 5, 4, rng), rows(network, 2, 6, rng)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.fit_head(x, rng.normal(size=(5, 1)))
    model.export(tmp_path / "served", form=form, verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    (spec,) = served.signatures["serving_default"].structured_input_signature[1].values()
    assert spec.shape.as_list() == [None, None, D]
    expected = model.predict(xt, verbose=0)
    np.testing.assert_allclose(served.serve(tf.constant(xt)), expected, atol=1e-10)


@pytest.mark.parametrize("cell", [layers.SimpleRNN, layers.LSTM, layers.GRU])
def test_recurrent_layers_of_any_length(cell, rng, tmp_path):
    network = keras.Sequential([keras.Input((None, 2)), cell(2), layers.Dense(1)])
    kernel, x = kk.kernels.NTK(network), rng.normal(size=(3, 2, 2))
    kernel.check(x)
    gram = tf.function(kernel.gram, input_signature=[kernel.open_spec(x)])
    longer = rng.normal(size=(4, 5, 2))
    for some in (x, longer):
        j = jacobians_by_hand(network, some)[:, 0]
        np.testing.assert_allclose(gram(some), j @ j.T, rtol=1e-9)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.fit_head(x, rng.normal(size=(3, 1)))
    expected = model.predict(longer, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(tf.constant(longer)), expected, atol=1e-10)


class Steps(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return keras.ops.tanh(keras.ops.mean(keras.ops.matmul(x, self.kernel), axis=1))


class StepsRule(kk.kernels.LayerRule):
    """A user's rule that asks for more than its layer does."""

    def call(self, layer, watch, x):
        if x.shape[1] is None:
            raise ValueError("the number of steps must be known")

        def factor(variables, gradients):
            products = tf.einsum("nd,ncq->ncdq", tf.reduce_mean(x, axis=1), gradients)
            return kk.kernels.FullFactor(products)

        h = tf.reduce_mean(tf.matmul(x, tf.convert_to_tensor(layer.kernel)), axis=1)
        return tf.tanh(watch(h, [layer.kernel], factor))


def test_export_where_the_length_must_be_known(rng, tmp_path):
    kk.kernels.register_rule(Steps, StepsRule())
    network = keras.Sequential([keras.Input((None, 2)), Steps()])
    x = rng.normal(size=(4, 2, 2))
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.fit_head(x, rng.normal(size=(4, 2)))
    with pytest.warns(
        UserWarning, match=r"(?s)only rows of the shape .*\(None, 2, 2\).*steps must be"
    ):
        model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(served.serve(tf.constant(x)), expected, atol=1e-10)


def test_export_of_a_network_that_keras_maps_in_another_way(rng, tmp_path):
    """`TimeDistributed` computes something else where the length is not known."""
    network = steps(layers.TimeDistributed(layers.Dense(3, "tanh")))
    x = rng.normal(size=(4, 5, D))
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
    model.fit_head(x, x[:, 0, :1])
    with pytest.warns(UserWarning, match="something else where lengths are not known"):
        model.export(tmp_path / "served", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(loaded.serve(tf.constant(x)), model.predict(x), rtol=1e-6)
