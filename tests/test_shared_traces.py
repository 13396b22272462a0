"""Networks of one architecture use the same plans and traces, each with its own weights."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from generated_networks import jacobians_by_hand
from test_layer_rules import COMBINATIONS, blocks_of

import keras_kare as kk
from keras_kare.kernels import plans as plans_module
from keras_kare.kernels import traces as traces_module

layers = keras.layers


pytestmark = pytest.mark.usefixtures("nothing_shared")


@pytest.fixture
def made(monkeypatch):
    """Networks for which a plan was made."""
    found = []
    make = plans_module.make_plan

    def counted(network, *arguments):
        found.append(network.name)
        return make(network, *arguments)

    monkeypatch.setattr(plans_module, "make_plan", counted)
    return found


def mlp(seed, activation="tanh", width=5, **kwargs):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(width, activation, bias_initializer="normal", **kwargs)
    return keras.Sequential([keras.Input((3,)), hidden, layers.Dense(2)])


def normalised(seed):
    keras.utils.set_random_seed(seed)
    x = keras.Input((3,))
    h = layers.BatchNormalization()(layers.Dense(4, "gelu")(x))
    network = keras.Model(x, layers.Dense(2)(layers.Concatenate()([h, x])))
    rng = np.random.default_rng(seed)
    network.set_weights([0.5 + rng.uniform(size=w.shape) for w in network.get_weights()])
    return network


def convolutional(seed):
    keras.utils.set_random_seed(seed)
    parts = [layers.Reshape((3, 1)), layers.Conv1D(2, 2, activation="relu")]
    return keras.Sequential([keras.Input((3,)), *parts, layers.Flatten(), layers.Dense(2)])


MAKERS = [mlp, normalised, convolutional]


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def gram_by_hand(network, x, outputs="sum"):
    """One output of one row at a time: no code of the library, no trace."""
    j = jacobians_by_hand(network, x)
    return COMBINATIONS[outputs](blocks_of(j, j))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("outputs", ["sum", "trace", "full"])
def test_each_with_its_own_weights(make, outputs, x, made):
    for seed in range(2):
        network = make(seed)
        kernel, gram = kk.kernels.NTK(network, outputs), gram_by_hand(network, x, outputs)
        close(kernel.gram(x), gram)
        close(kernel.cross(x[:4], x), gram[:4])
        close(kernel.diag(x), np.einsum("ii...->i...", gram))
    assert len(made) == 1


@pytest.mark.parametrize("make", MAKERS)
def test_each_with_its_own_weights_by_the_plain_jacobian(make, x, made):
    """A verb for each way to combine outputs: of each variable these are long traces."""
    for seed in range(2):
        network = make(seed)
        of_sum, of_trace, full = (
            kk.kernels.NTK(network, outputs, "jacobian")
            for outputs in ("sum", "trace", "full")
        )
        close(of_sum.gram(x), gram_by_hand(network, x))
        close(of_trace.cross(x[:4], x), gram_by_hand(network, x, "trace")[:4])
        gram = gram_by_hand(network, x, "full")
        close(full.diag(x), np.einsum("ii...->i...", gram))
    assert len(made) == 3


@pytest.mark.parametrize("make", MAKERS)
def test_products(make, x):
    v = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
    for seed in range(2):
        kernel = kk.kernels.NTK(make(seed))
        found = np.asarray(kernel.jvp(x, kernel.vjp(x, v)))
        np.testing.assert_allclose(found, gram_by_hand(kernel.network, x) @ v, 1e-3, 1e-4)
        one = np.asarray(kernel.jvp(x, kernel.vjp(x, v[:, :1])))
        np.testing.assert_allclose(one, found[:, :1], 1e-3, 1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_gradients(make, x):
    """In a graph and outside of it, by the variables of the network that was asked."""
    upstream = np.random.default_rng(2).normal(size=(6, 6)).astype("float32")

    def gradients(network, gram):
        variables = [v.value for v in network.trainable_variables]
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(gram(tf.constant(x)) * upstream)
        return tape.gradient(value, variables, unconnected_gradients="zero")

    def by_hand(network):
        """A row at a time."""
        variables = [v.value for v in network.trainable_variables]

        def feature(row):
            with tf.GradientTape() as tape:
                f = tf.reduce_sum(network(row[None], training=False))
            return tf.concat([tf.reshape(g, -1) for g in tape.gradient(f, variables)], 0)

        def gram(rows):
            j = tf.stack([feature(row) for row in rows])
            return j @ tf.transpose(j)

        return gradients(network, gram)

    for seed in range(2):
        network = make(seed)
        gram, plain = (
            kk.kernels.NTK(network, method=method).gram
            for method in ("structured", "jacobian")
        )
        in_graph = tf.function(functools.partial(gradients, network, gram), autograph=False)
        expected = by_hand(network)
        for found in (gradients(network, gram), gradients(network, plain), in_graph()):
            for g, e in zip(found, expected, strict=True):
                np.testing.assert_allclose(g, e, rtol=2e-3, atol=2e-3)


def test_models_train_apart(x, made):
    y = np.sign(x[:, :1])
    machines = {}
    for seed in (0, 1, 0):
        model = kk.KAREModel(mlp(seed), head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.SGD(0.1), "kare")
        model.fit(x, y, epochs=3, verbose=0, shuffle=False)
        loss, weights = model.history.history["loss"], model.network.get_weights()
        assert loss[-1] < loss[0]
        again = machines.setdefault(seed, (loss, weights, model.predict(x, verbose=0)))
        np.testing.assert_array_equal(again[0], loss)
        for a, b in zip(again[1], weights, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(again[2], model.predict(x, verbose=0))
    assert len(made) == 1


def other_activation():
    return mlp(1, "gelu")


def other_width():
    return mlp(1, width=6)


def other_type():
    return mlp(1, dtype="float64")


def frozen():
    network = mlp(1)
    network.layers[0].trainable = False
    return network


def twice():
    """As many layers, of the same shapes, but one of them used two times."""
    x = keras.Input((3,))
    dense = layers.Dense(3, "tanh")
    return keras.Model(x, layers.Dense(2)(dense(dense(x))))


def once():
    x = keras.Input((3,))
    dense, other = layers.Dense(3, "tanh"), layers.Dense(3, "tanh")
    return keras.Model(x, layers.Dense(2)(other(dense(x))))


@pytest.mark.parametrize(
    "makers",
    [
        (lambda: mlp(0), other_activation, other_width, other_type, frozen),
        (once, twice),
    ],
)
def test_others_are_planned_anew(makers, x, made):
    for make in makers:
        network = make()
        expected = gram_by_hand(network, x)
        for method in ("structured", "jacobian"):
            close(kk.kernels.NTK(network, method=method).gram(x), expected)
    assert len(made) == 2 * len(makers)


class Scaled(layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * FACTORS[self.factor]


FACTORS = {"one": 1.0}


def with_own_layer():
    return keras.Sequential([keras.Input((3,)), layers.Dense(4), Scaled("one")])


def with_own_function():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, lambda h: h * FACTORS["one"]), layers.Dense(1)]
    )


@pytest.mark.parametrize("make", [with_own_layer, with_own_function])
def test_what_users_wrote_is_traced_each_time(make, x, monkeypatch):
    """What their Python reads may have changed since."""
    first = np.asarray(kk.kernels.NTK(make()).gram(x))
    assert np.all(np.isfinite(first))
    monkeypatch.setitem(FACTORS, "one", 2.0)
    network = make()
    found = np.asarray(kk.kernels.NTK(network).gram(x))
    np.testing.assert_allclose(found, gram_by_hand(network, x), rtol=1e-4, atol=1e-5)


def freeze(network):
    network.layers[0].trainable = False


def activate(network):
    network.layers[0].activation = keras.activations.relu


@pytest.mark.parametrize("change", [freeze, activate])
@pytest.mark.parametrize("dropped", [False, True])
def test_what_becomes_of_the_first_network_is_its_own_affair(change, dropped, x):
    """The second asks for what nobody has traced before."""
    v = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
    first, second = mlp(0), mlp(1)
    kk.kernels.NTK(first).gram(x)
    change(first)
    if dropped:
        del first
        gc.collect()
    kernel = kk.kernels.NTK(second)
    expected = gram_by_hand(second, x)
    np.testing.assert_allclose(kernel.gram(x, dtype="float64"), expected, 1e-4, 1e-5)
    weights = kernel.vjp(x, v)
    assert [w.shape[2:] for w in weights] == [v.shape for v in second.trainable_variables]
    np.testing.assert_allclose(kernel.jvp(x, weights), expected @ v, 1e-3, 1e-4)


def test_a_fallback_is_announced_for_each(x):
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        network = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Reshape((1, 3)),
                layers.SpectralNormalization(layers.Dense(4)),
                layers.Flatten(),
                layers.Dense(1),
            ]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kernel = kk.kernels.NTK(network)
            kernel.check(x)
        paths = {
            v for layer in kernel.plan(x).layers if layer.fallback for v in layer.variables
        }
        said = " ".join(str(w.message) for w in caught)
        assert all(path in said for path in paths)


def test_activity_regularisers_count_in_every_model(x):
    y = np.sign(x[:, :1])
    losses = []
    for strength in (0.0, 1.0, 1.0):
        network = mlp(0, activity_regularizer=keras.regularizers.L2(strength))
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.SGD(0.0), "kare")
        losses.append(model.fit(x, y, verbose=0).history["loss"][0])
    assert losses[1] > losses[0] + 0.01
    assert losses[2] == pytest.approx(losses[1])


def test_few_architectures_are_kept(x, monkeypatch):
    monkeypatch.setattr(traces_module, "_MOST", 3)
    networks = []
    for width in range(2, 2 + 3 * traces_module._MOST):
        network = mlp(0, width=width)
        kk.kernels.NTK(network).check(x)
        networks.append(weakref.ref(network))
        del network
    assert len(traces_module._POOLS) == traces_module._MOST
    gc.collect()
    assert sum(ref() is not None for ref in networks) <= traces_module._MOST + 1
