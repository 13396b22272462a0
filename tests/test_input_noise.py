"""`compile(input_noise=…)`: noise on the rows of each training step, and nowhere else."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.models.shared_step import SharedStep
from keras_kare.models.training_step import noisy

N, D = 20, 3


def made(noise=0.0, seed=0, ridge=1.0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((D,)), keras.layers.Dense(8, "gelu"), keras.layers.Dense(1)]
    model = kk.KAREModel(keras.Sequential(layers), head=kk.NTKRidgeHead(ridge=ridge))
    model.compile(keras.optimizers.SGD(0.5), "kare", input_noise=noise)
    return model


def rows(rng):
    x = rng.normal(size=(N, D)).astype("float32") * [1.0, 3.0, 0.3]
    return x.astype("float32"), np.sin(x[:, :1]).astype("float32")


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_steps_are_those_of_other_rows(rng):
    x, y = rows(rng)
    model, by_hand = made(0.5), made()
    model.fit(x, y, epochs=3, shuffle=False, verbose=0)
    for step in range(3):
        noise = tf.random.stateless_normal((N, D), [0, step]).numpy()
        moved = x + 0.5 * x.std(axis=0) * noise
        by_hand.fit(moved, y, epochs=1, shuffle=False, verbose=0)
    same_weights(model.kernel.network, by_hand.kernel.network)


def test_the_head_is_solved_on_the_rows_as_they_are(rng):
    x, y = rows(rng)
    model = made(0.5)
    model.fit(x, y, epochs=2, verbose=0)
    solved = kk.KAREModel(model.kernel.network, head=kk.NTKRidgeHead(ridge=1.0))
    solved.fit_head(x, y)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), solved.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_none_shares_steps_and_some_does_not(rng):
    x, y = rows(rng)
    for noise, shares in ((0.0, True), (0.5, False)):
        model = made(noise)
        model.fit(x, y, verbose=0)
        assert isinstance(model.train_function, SharedStep) == shares
    plain, zero = made(), made(0)
    plain.fit(x, y, epochs=2, verbose=0, shuffle=False)
    zero.fit(x, y, epochs=2, verbose=0, shuffle=False)
    same_weights(plain.kernel.network, zero.kernel.network)


def test_files_and_copies_keep_it(rng, tmp_path):
    x, y = rows(rng)
    model = made(0.5)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.input_noise == 0.5
    assert keras.models.clone_model(model).input_noise == 0.5
    for each in (model, loaded):
        each.fit(x, y, epochs=2, shuffle=False, verbose=0)
    same_weights(model.kernel.network, loaded.kernel.network)
    assert made().input_noise == 0.0


def test_training_without_graphs_and_by_full_kare(rng):
    x, y = rows(rng)
    models = [made(0.5), made(0.5)]
    models[1].compile(keras.optimizers.SGD(0.5), "kare", input_noise=0.5, run_eagerly=True)
    for model in models:
        model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    same_weights(*(model.kernel.network for model in models))
    loss = kk.losses.FullKARE()
    models[1].compile(keras.optimizers.SGD(0.5), loss, input_noise=0.5)
    losses = models[1].fit(x, y, epochs=3, verbose=0).history["loss"]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "0.1", None])
def test_bad_values(noise):
    with pytest.raises(ValueError, match=r"`input_noise` must be .* at least 0"):
        made(noise)


def test_only_numbers_get_noise(rng):
    x = {"a": rng.normal(size=(N, D)), "b": np.arange(N), "c": np.full((N, 2), 7.0)}
    x = {name: tf.constant(part) for name, part in x.items()}
    moved, other = (noisy(x, 0.5, step) for step in (0, 1))
    np.testing.assert_array_equal(moved["b"], x["b"])
    np.testing.assert_array_equal(moved["c"], x["c"])  # without a spread
    assert moved["a"].dtype == x["a"].dtype
    assert not np.any(moved["a"] == x["a"])
    assert not np.any(moved["a"] == other["a"])
    with pytest.raises(ValueError, match="needs rows of floating numbers"):
        noisy(x["b"], 0.5, 0)


def test_its_size(rng):
    x = tf.constant(rng.normal(size=(20_000, 2)) * [1.0, 100.0])
    spread = np.std(noisy(x, 0.3, 5) - x, axis=0) / np.std(x, axis=0)
    np.testing.assert_allclose(spread, 0.3, rtol=0.03)
