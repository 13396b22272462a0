"""The guard against overfitting KARE: `HoldoutKARE`, and a warning."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk


def halves(y, gram, z):
    """Each half predicted by a machine that is solved on the other."""
    m = len(y) // 2
    parts = [np.arange(m), np.arange(m, len(y))]
    predictions = np.empty_like(y)
    for solved, other in (parts, parts[::-1]):
        n = len(solved)
        system = gram[np.ix_(solved, solved)] / n + z * np.eye(n)
        dual = np.linalg.solve(system, y[solved])
        predictions[other] = gram[np.ix_(other, solved)] @ dual / n
    return predictions


@pytest.fixture(params=[8, 9])
def system(request, rng):
    b = rng.normal(size=(request.param, 4))
    return rng.normal(size=(request.param, 2)), b @ b.T


@pytest.mark.parametrize("relative", [False, True])
def test_each_half_predicts_the_other(system, relative):
    y, gram = system
    loss = kk.losses.HoldoutKARE(ridge=0.2, relative=relative)
    z = 0.2 * (np.trace(gram) / len(gram) ** 2 if relative else 1.0)
    value, predictions = loss.evaluate(tf.constant(y), tf.constant(gram))
    np.testing.assert_allclose(predictions, halves(y, gram, z), 1e-10)
    np.testing.assert_allclose(value, np.mean((y - halves(y, gram, z)) ** 2), 1e-10)


def model(loss, rate):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)]
    )
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


@pytest.mark.parametrize("shuffle", [True, False])
def test_shuffled_epochs_have_other_halves(rng, shuffle):
    x = rng.normal(size=(20, 3)).astype("float32")
    still = model("holdout_kare", 0.0)
    losses = still.fit(x, np.sin(2.0 * x[:, :1]), epochs=4, shuffle=shuffle, verbose=0)
    assert len(set(losses.history["loss"])) == (4 if shuffle else 1)


def test_a_warning_where_kare_is_fooled(rng):
    """Targets that are noise: KARE falls, the error on other rows cannot."""
    x = rng.normal(size=(24, 3)).astype("float32")
    y = rng.normal(size=(24, 1)).astype("float32")
    arguments = {"validation_data": (x[12:], y[12:]), "verbose": 0}
    with pytest.warns(UserWarning, match="overfitted KARE"):
        model(kk.losses.KARE(1e-3), 0.2).fit(
            x[:12], y[:12], epochs=25, validation_freq=25, **arguments
        )
    lasting = keras.callbacks.EarlyStopping("loss", patience=25, restore_best_weights=True)
    with pytest.warns(UserWarning, match="overfitted KARE"):
        model(kk.losses.KARE(1e-3), 0.2).fit(
            x[:12],
            y[:12],
            epochs=25,
            callbacks=lasting,
            validation_freq=25,
            **arguments,
        )
    keeping = keras.callbacks.EarlyStopping(patience=25, restore_best_weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(kk.losses.KARE(1e-3), 0.2).fit(
            x[:12], y[:12], epochs=25, callbacks=[keeping], **arguments
        )
        model(kk.losses.KARE(1.0), 1e-5).fit(x[:12], y[:12], epochs=2, **arguments)
