"""The conjugate kernel takes the hidden units of the last layer, wherever that is."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_kare as kk

Conjugate = kk.kernels.Conjugate
layers = keras.layers


def dense(units, activation=None, **given):
    return layers.Dense(units, activation, **given)


def nested():
    """A sequential model in another, twice."""
    hidden, last = dense(7, "relu"), dense(5, "tanh")
    inner = keras.Sequential([keras.Input((7,)), last, dense(1)])
    middle = keras.Sequential([keras.Input((3,)), hidden, inner])
    network = keras.Sequential([keras.Input((3,)), middle, layers.Activation("sigmoid")])
    return network, lambda x: last(hidden(x))


def nested_with_two_inputs():
    hidden, last, x = dense(7), dense(5, "relu"), keras.Input((3,))
    a, b = keras.Input((7,), name="a"), keras.Input((3,), name="b")
    joined = last(layers.Concatenate()([a, b]))
    inner = keras.Model({"a": a, "b": b}, dense(1)(joined))
    network = keras.Model(x, inner({"a": hidden(x), "b": x}))
    return network, lambda x: last(keras.ops.concatenate([hidden(x), x], 1))


def used_twice():
    layer, x = dense(3, "tanh"), keras.Input((3,))
    return keras.Model(x, layer(layer(x))), layer


def not_last_in_its_list():
    """The layer that Keras lists last is in a branch that comes before the end."""
    x, hidden, branch = keras.Input((3,)), dense(4, "gelu"), dense(3)
    joined = layers.Add()([hidden(x), dense(4)(branch(x))])
    network = keras.Model(x, dense(1)(joined))
    units = keras.Model(x, joined)
    return network, units


def ends_without_weights():
    hidden, x = dense(4, "gelu"), keras.Input((3,))
    found = layers.Dropout(0.1)(dense(2)(hidden(x)))
    return keras.Model(x, keras.ops.tanh(found)), hidden


def ends_in_units_of_targets():
    hidden = dense(4, "relu")
    back = layers.Normalization(mean=1.0, variance=4.0, invert=True)
    return keras.Sequential([keras.Input((3,)), hidden, dense(1), back]), hidden


@pytest.mark.parametrize(
    "make",
    [
        nested,
        nested_with_two_inputs,
        used_twice,
        not_last_in_its_list,
        ends_without_weights,
        ends_in_units_of_targets,
    ],
)
def test_values_are_those_of_the_hidden_units(make, rng, tmp_path):
    network, units = make()
    x = rng.normal(size=(12, 3)).astype("float32")
    phi = np.array(units(x))
    kernel = Conjugate(network)
    expected = phi @ phi.T / phi.shape[1]
    np.testing.assert_allclose(kernel.gram(x), expected, rtol=1e-4, atol=1e-5)
    assert kernel.is_constant(x) is False
    model = kk.KAREModel(kernel)
    model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE())
    model.fit(x, x[:, :1], verbose=0)
    assert np.max(np.abs(kernel.gram(x) - expected)) > 1e-4
    phi = np.array(units(x))
    np.testing.assert_allclose(kernel.gram(x), phi @ phi.T / phi.shape[1], rtol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


class OfItsOwn(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = dense(1)

    def call(self, x):
        return self.last(x)


def test_ends_that_are_not_one_layer_are_refused():
    x = keras.Input((3,))
    for end, says in (
        (layers.BatchNormalization()(dense(1)(x)), "an end in the BatchNormalization"),
        (layers.PReLU()(dense(1)(x)), "an end in the PReLU"),
        (layers.Concatenate()([dense(1)(x), dense(1)(x)]), "an end in the Concatenate"),
        (dense(1)(x) + dense(1)(x), "an end in the Add"),
        ([dense(1)(x), dense(1)(x)], "with 2 outputs"),
        (OfItsOwn()(x), "an end in the OfItsOwn"),
        (layers.Activation("relu")(x), "without weights"),
    ):
        network = keras.Model(x, end)
        with pytest.raises(ValueError, match=f"one last layer of weights.*{says}"):
            Conjugate(network).gram(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"sequential or functional.*OfItsOwn"):
        Conjugate(OfItsOwn()).gram(np.ones((2, 3)))


@pytest.mark.parametrize("hidden", [[], [dense(4, trainable=False)]])
def test_kernels_that_nothing_trains_are_told_of(hidden, rng):
    x = rng.normal(size=(12, 3)).astype("float32")
    network = keras.Sequential([keras.Input((3,)), *hidden, dense(1)])
    model = kk.KAREModel(Conjugate(network))
    model.compile(loss=kk.losses.KARE())
    assert model.kernel.is_constant(x)
    with pytest.warns(UserWarning, match="does not depend on any weight that trains"):
        model.fit(x, x[:, :1], verbose=0)
