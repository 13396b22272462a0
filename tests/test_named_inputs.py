"""Rows in a dictionary, for networks that were made with a list of inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk

N, D = 9, 4


def made_with_a_list(width=3):
    """The names are not in the order of the inputs."""
    a, b = keras.Input((D,), name="right"), keras.Input((width,), name="left")
    h = layers.Concatenate()([layers.Dense(5, "tanh")(a), layers.Dense(3)(b)])
    return keras.Model([a, b], layers.Dense(1)(h))


def made_with_one():
    x = keras.Input((D,), name="right")
    return keras.Model([x], layers.Dense(1)(layers.Dense(3, "tanh")(x)))


def rows(rng, width=3):
    return {
        "left": rng.normal(size=(N, width)).astype("float32"),
        "right": rng.normal(size=(N, D)).astype("float32"),
    }


def jacobian(network, x):
    """One output of one row at a time."""
    found = []
    for i in range(N):
        with tf.GradientTape() as tape:
            f = network(keras.tree.map_structure(lambda t, i=i: t[i : i + 1], x))
        by_weights = tape.gradient(
            f,
            [v.value for v in network.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        found.append(np.concatenate([np.ravel(g) for g in by_weights]))
    return np.array(found, "float64")


@pytest.mark.parametrize("width", [3, D], ids=["other shapes", "the same shapes"])
def test_kernels_pair_by_name(rng, width):
    network, x = made_with_a_list(width), rows(rng, width)
    j = jacobian(network, [x["right"], x["left"]])
    kernel = kk.kernels.NTK(network)
    np.testing.assert_allclose(kernel.gram(x), j @ j.T, rtol=1e-4, atol=1e-5)
    as_list = [x["right"], x["left"]]
    np.testing.assert_allclose(kernel.cross(x, as_list), j @ j.T, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")  # of Keras
def test_one_input(rng):
    network, x = made_with_one(), rows(rng)["right"]
    j = jacobian(network, x)
    gram = kk.kernels.NTK(network).gram({"right": x})
    np.testing.assert_allclose(gram, j @ j.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_models(rng, tmp_path, form):
    network, x = made_with_a_list(), rows(rng)
    y = np.sin(x["right"][:, :1])
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(0.1, relative=False, form=form))
    model.compile(keras.optimizers.SGD(0.01), "kare")
    model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0)
    j = jacobian(network, [x["right"], x["left"]])
    gram = j @ j.T / N
    wanted = gram @ np.linalg.solve(gram + 0.1 * np.eye(N), y)

    def close(found):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    close(model.predict(x))
    close(model([x["right"], x["left"]]))
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    close(model.predict(batches))
    error = model.evaluate(batches, verbose=0)
    np.testing.assert_allclose(error, np.mean((wanted - y) ** 2), rtol=1e-3)
    model.fit_head(batches)
    close(model.predict(x))
    model.export(tmp_path / "served", form=form, verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    close(served.signatures["serving_default"](**x)["output_0"])


@pytest.mark.parametrize(
    ("network", "names", "told"),
    [
        (made_with_a_list, ["right"], "missing 'left'; unknown none"),
        (made_with_a_list, ["right", "left", "up"], "missing none; unknown 'up'"),
        (made_with_a_list, ["right", "up"], "missing 'left'; unknown 'up'"),
        (made_with_one, ["left"], "missing 'right'; unknown 'left'"),
    ],
)
def test_names_are_checked(rng, network, names, told):
    x = dict.fromkeys(names, rows(rng)["right"])
    with pytest.raises(ValueError, match=f"`x` must be a dictionary.*{told}"):
        kk.kernels.NTK(network()).gram(x)
    with pytest.raises(ValueError, match=f"`x` must be a dictionary.*{told}"):
        kk.KAREModel(network()).fit_head(x, np.ones((N, 1)))


def test_names_of_a_network_made_with_a_dictionary(rng):
    a, b = keras.Input((D,)), keras.Input((3,))
    h = layers.Concatenate()([layers.Dense(5, "tanh")(a), b])
    network = keras.Model({"right": a, "left": b}, layers.Dense(1)(h))
    x = rows(rng)
    j = jacobian(network, x)
    np.testing.assert_allclose(
        kk.kernels.NTK(network).gram(x), j @ j.T, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="missing 'left'; unknown 'up'"):
        kk.kernels.NTK(network).gram({"right": x["right"], "up": x["left"]})


def test_the_cost_of_predictions_needs_a_plan(rng):
    kernel = kk.kernels.NTK(made_with_a_list())
    with pytest.raises(ValueError, match=r"call `kernel.plan\(x\)`"):
        kernel.prediction_cost(10, 1)
    kernel.plan(rows(rng))
    assert set(kernel.prediction_cost(10, 1)) == {"dual", "primal"}
