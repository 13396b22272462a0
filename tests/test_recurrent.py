"""What recurrent layers may be given, and where their own loop must be left to them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_identity import by_rows

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")


def check(network: Any, x: Any, traced: bool = True) -> kk.kernels.NTK:
    kernel, expected = kk.kernels.NTK(network), by_rows(network, x)
    of_rows = kernel.gram if traced else kernel._feature_map(x, None).gram
    gram = of_rows(keras.tree.map_structure(tf.constant, x))
    np.testing.assert_allclose(gram, expected, rtol=0.0, atol=1e-9 * expected.max())
    return kernel


def network_of(layer: Any, shape: tuple[int | None, ...] = (3, 3)) -> Any:
    return keras.Sequential([keras.Input(shape), layer, layers.Dense(1)])


class Residual(layers.StackedRNNCells):
    def call(self, inputs: Any, states: Any, training: Any = False, **kwargs: Any) -> Any:
        outputs, states = super().call(inputs, states, training=training)
        return outputs + inputs, states


class Pair(layers.Layer):
    """A cell that has two, and adds what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = [layers.SimpleRNNCell(3), layers.SimpleRNNCell(3)]
        self.state_size = [3, 3]
        self.output_size = 3

    def build(self, shape: Any) -> None:
        for cell in self.cells:
            cell.build(shape)

    def call(self, inputs: Any, states: Any) -> Any:
        pairs = zip(self.cells, states, strict=True)
        found = [cell(inputs, [state])[0] for cell, state in pairs]
        return found[0] * found[1], found


def replaced_loop() -> Any:
    layer = layers.LSTM(3, use_bias=False)
    loop = layer.inner_loop

    def twice(sequences: Any, *args: Any, **kwargs: Any) -> Any:
        return loop(2.0 * sequences, *args, **kwargs)

    layer.inner_loop = twice
    return layer


def replaced_call() -> Any:
    cell = layers.SimpleRNNCell(3, use_bias=False)
    own = cell.call
    cell.call = lambda inputs, states, training=False: own(2.0 * inputs, states)
    return layers.RNN(cell)


OTHERS = {
    "residual stack": lambda: layers.RNN(
        Residual([layers.SimpleRNNCell(3), layers.SimpleRNNCell(3)])
    ),
    "cell of cells": lambda: layers.RNN(Pair()),
    "loop on the instance": replaced_loop,
    "call on the cell": replaced_call,
}
TRACED = ["loop on the instance", "call on the cell"]
"""One cell each. TensorFlow makes half a minute's graph of the Jacobian of more."""


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_kerass_own_loop_falls_back(name, rng):
    layer = OTHERS[name]()
    with pytest.warns(UserWarning, match="plain Jacobian"):
        check(network_of(layer), rng.normal(size=(4, 3, 3)), name in TRACED)
    assert ("inner_loop" in vars(layer)) is (name == "loop on the instance")


@pytest.mark.filterwarnings("error:The NTK takes the plain Jacobian")
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_masks_of_either_rank(unroll, rank, rng):
    x, mask = keras.Input((3, 3)), keras.Input((3, 1)[: rank - 1], dtype="bool")
    h = layers.LSTM(2, unroll=unroll)(x, mask=mask)
    network = keras.Model([x, mask], layers.Dense(1)(h))
    steps = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 0]], bool)
    check(network, [rng.normal(size=(4, 3, 3)), steps.reshape((4, 3, 1)[:rank])])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_steps(steps, rng):
    network = network_of(layers.GRU(2), (None, 3))
    kernel = check(network, rng.normal(size=(4, steps, 3)))
    x = rng.normal(size=(3, 3 - steps % 2, 3))
    expected = by_rows(network, x)
    np.testing.assert_allclose(kernel.gram(x), expected, rtol=0.0, atol=1e-9)


def test_a_loop_and_no_loop_are_the_same(rng):
    looped = network_of(layers.Bidirectional(layers.GRU(2, reset_after=False)))
    unrolled = network_of(
        layers.Bidirectional(layers.GRU(2, reset_after=False, unroll=True))
    )
    unrolled.set_weights(looped.get_weights())
    x, y = rng.normal(size=(5, 3, 3)), rng.normal(size=(5, 1))
    models = []
    for network in (looped, unrolled):
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.SGD(0.1), kk.losses.KARE(0.1))
        model.fit(x, y, epochs=3, verbose=0)
        models.append(model)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steps", [3, None])
def test_an_activation_may_read_the_recurrent_kernel(steps, rng):
    """Where no row of the plan shows it."""
    cell = layers.SimpleRNNCell(3)

    def gated(z: Any) -> Any:
        opened = keras.ops.relu(z - 50.0)
        return keras.ops.tanh(z) + opened * keras.ops.sum(cell.recurrent_kernel)

    cell.activation = gated
    network = network_of(layers.RNN(cell), (steps, 3))
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    kernel = kk.kernels.NTK(network)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        kernel.check(rng.normal(size=(4, 3, 3)))
    x = 100.0 * rng.normal(size=(4, 3, 3))
    expected = by_rows(network, x)
    np.testing.assert_allclose(kernel.gram(x), expected, atol=1e-9 * expected.max())


@pytest.mark.filterwarnings("error:The NTK takes the plain Jacobian")
def test_an_activation_of_the_users(rng):
    layer = layers.LSTM(2, activation=lambda z: keras.ops.tanh(2.0 * z))
    check(network_of(layer), rng.normal(size=(4, 3, 3)))
