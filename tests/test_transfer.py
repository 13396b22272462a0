"""Transfer: what trains is what is differentiated, solved and saved; else one is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tutorial_scripts import run

import keras_kare as kk
from keras_kare.models.transfer import idle

D = 4


def frozen(layer: Any) -> Any:
    layer.trainable = False
    return layer


def network_of(*parts: Any) -> Any:
    return keras.Sequential([keras.Input((D,)), *parts])


def dense_layers(network: Any) -> list[Any]:
    return [p for p in network._flatten_layers() if isinstance(p, layers.Dense)]


class OwnNoise(layers.Layer):
    """Noise without a generator of its own."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


class Shift(layers.Layer):
    """Does the same in training."""

    def call(self, x: Any) -> Any:
        return x + 1.0


def mlp() -> Any:
    hidden = (layers.Dense(6, "tanh") for _ in range(2))
    return network_of(*hidden, layers.Dense(1))


@keras.saving.register_keras_serializable(package="transfer")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.parts = [layers.Dense(6, "tanh"), layers.Dense(6, "tanh"), layers.Dense(1)]

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def subclassed() -> Any:
    network = Subclassed()
    network(np.zeros((1, D)))
    return network


def data(rng: np.random.Generator, rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(rows, D))
    return x, np.sin(x[:, :1] + x[:, 1:2])


def model_of(network: Any, **head: Any) -> kk.KAREModel:
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1, **head))
    model.compile(keras.optimizers.SGD(0.3), loss="kare")
    return model


def kare_by_hand(network: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """KARE of the plain Jacobian's Gram matrix, and its gradient, by TensorFlow alone."""
    variables = [v.value for v in network.trainable_variables]
    n, z = len(x), 0.1
    with tf.GradientTape() as outer:
        with tf.GradientTape(persistent=True) as tape:
            f = network(x, training=False)
        parts = [
            tf.reshape(
                tape.jacobian(
                    f, v, experimental_use_pfor=False, unconnected_gradients="zero"
                ),
                (n, -1),
            )
            for v in variables
        ]
        j = tf.concat(parts, axis=1)
        inverse = tf.linalg.inv(j @ tf.transpose(j) / n + z * tf.eye(n, dtype=j.dtype))
        kare = tf.reduce_mean((inverse @ y) ** 2) / (tf.linalg.trace(inverse) / n) ** 2
    return kare, outer.gradient(kare, variables, unconnected_gradients="zero")


@pytest.mark.usefixtures("float64")
class TestWhatTrains:
    @pytest.mark.parametrize(
        ("make", "eagerly", "number"), [(mlp, False, 0), (subclassed, True, 1)]
    )
    def test_unfreezing_and_compiling_again(self, make, eagerly, number, rng):
        x, y = data(rng)
        network = make()
        layer = [p for p in network._flatten_layers() if isinstance(p, layers.Dense)][
            number
        ]
        layer.trainable = False
        model = model_of(network)
        model.run_eagerly = eagerly
        model.fit(x, y, epochs=1)
        layer.trainable = True
        with pytest.raises(ValueError, match="Call `compile` again"):
            model.fit(x, y, epochs=1)
        with pytest.raises(ValueError, match="Call `compile` again"):
            model.train_on_batch(x, y)
        model.compile(keras.optimizers.SGD(0.3), loss="kare")
        model.run_eagerly = eagerly
        self.assert_step(model, network, x, y)

    @pytest.mark.parametrize(("make", "eagerly"), [(mlp, False), (subclassed, True)])
    def test_freezing_without_compiling(self, make, eagerly, rng):
        x, y = data(rng)
        network = make()
        model = model_of(network)
        model.run_eagerly = eagerly
        model.fit(x, y, epochs=1)
        frozen(dense_layers(network)[0])
        self.assert_step(model, network, x, y)

    def assert_step(self, model: Any, network: Any, x: Any, y: Any) -> None:
        """One step moves what trains by KARE's gradient, and nothing else."""
        expected, gradients = kare_by_hand(network, x, y)
        moved = {
            v.path: -0.3 * np.asarray(g)
            for v, g in zip(network.trainable_variables, gradients, strict=True)
        }
        before = {v.path: np.array(v) for v in network.variables}
        loss = model.fit(x, y, epochs=1, shuffle=False).history["loss"][0]
        assert loss == pytest.approx(float(expected), rel=1e-9)
        for v in network.variables:
            by = np.array(v) - before[v.path]
            np.testing.assert_allclose(by, moved.get(v.path, 0.0), atol=1e-10)

    def test_a_layer_that_a_callback_freezes(self, rng):
        """Also where steps are not shared: the function is made again in the midst."""
        x, y = data(rng)
        network = subclassed()
        model = model_of(network)
        model.run_eagerly = True
        kept = []

        class Freezes(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 1:
                    network.parts[0].trainable = False
                    kept.append(np.array(network.parts[0].kernel))

        start = np.array(network.parts[0].kernel)
        model.fit(x, y, epochs=3, callbacks=[Freezes()])
        assert np.abs(start - kept[0]).max() > 1e-6
        np.testing.assert_array_equal(network.parts[0].kernel, kept[0])


CONSTANT = {
    "a linear layer": lambda: network_of(frozen(layers.Dense(5, "tanh")), layers.Dense(1)),
    "with kinks": lambda: network_of(
        frozen(layers.Dense(5, "tanh")), layers.Dense(2), layers.LeakyReLU()
    ),
    "before kinks": lambda: network_of(layers.Dense(5, "relu"), frozen(layers.Dense(1))),
    "after a normalisation": lambda: network_of(
        frozen(layers.LayerNormalization()), layers.Dense(1)
    ),
}
NOT_CONSTANT = {
    "all": mlp,
    "two linear layers": lambda: network_of(layers.Dense(3), layers.Dense(1)),
    "a curved output": lambda: network_of(layers.Dense(1, "tanh")),
    "before a curve": lambda: network_of(layers.Dense(5, "gelu"), frozen(layers.Dense(1))),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [*CONSTANT, *NOT_CONSTANT])
def test_constant_kernels_are_those_without_a_gradient(name, rng):
    network = (CONSTANT | NOT_CONSTANT)[name]()
    x, y = data(rng)
    kernel = kk.kernels.NTK(network)
    kernel.check(x)
    _, gradients = kare_by_hand(network, x, y)
    moves = max(float(tf.reduce_max(tf.abs(g))) for g in gradients) > 1e-12
    assert kernel.is_constant(x) is not moves
    assert kernel.is_constant(x) is (name in CONSTANT)


def test_each_sentence_comes_once(rng, recwarn):
    x, y = data(rng)
    network = network_of(
        frozen(layers.Dense(5, "tanh")), layers.Dropout(0.5, name="drops"), layers.Dense(1)
    )
    model = kk.KAREModel(network)  # rehearses, too
    model.compile(keras.optimizers.SGD(0.1), loss="kare")
    for _ in range(2):
        model.fit(x, y, epochs=1)
        model.train_on_batch(x, y)
    told = [str(w.message) for w in recwarn]
    assert sum("does not depend on any weight" in line for line in told) == 1
    assert sum("augmentation are off (drops)" in line for line in told) == 1
    assert all(
        w.filename == __file__ for w in recwarn if "does not depend" in str(w.message)
    )


@pytest.mark.parametrize(
    ("layer", "noisy"),
    [
        (layers.Dropout(0.1), True),
        (layers.Dropout(0.0), False),
        (layers.SpatialDropout1D(0.1), True),
        (layers.AlphaDropout(0.1), True),
        (layers.GaussianNoise(0.1), True),
        (layers.GaussianDropout(0.1), True),
        (layers.RandomFlip(), True),
        (layers.LSTM(2, dropout=0.1), True),
        (layers.GRU(2, recurrent_dropout=0.1), True),
        (layers.LSTM(2), False),
        (layers.BatchNormalization(), True),
        (layers.BatchNormalization(trainable=False), False),
        (layers.LayerNormalization(), False),
        (layers.Attention(dropout=0.1), True),
        (layers.Attention(), False),
        (OwnNoise(), True),
        (Shift(), False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_off_in_kernels(layer, noisy):
    assert bool(idle(keras.Sequential([layer]))) is noisy


LOADS = """
import sys

import keras
import numpy as np
import test_transfer

folder = sys.argv[1]
model = keras.saving.load_model(folder + "/m.keras")
assert [v.trainable for v in model.network.variables][:2] == [False, True]
assert model.machine.is_fresh()
out = model.predict(np.load(folder + "/x.npy"), verbose=0)
np.testing.assert_allclose(out, np.load(folder + "/out.npy"), atol=1e-6)
model.fit(np.load(folder + "/x.npy"), np.load(folder + "/y.npy"), verbose=0)
"""


@pytest.mark.parametrize("make", [mlp, subclassed])
def test_variables_frozen_one_by_one_are_loaded_so(make, rng, tmp_path):
    x, y = data(rng)
    network = make()
    network.variables[0].trainable = False
    model = model_of(network)
    model.compile(keras.optimizers.Adam(1e-3), loss="kare")
    model.fit(x, y, epochs=2)
    out = model.predict(x)
    model.save(tmp_path / "m.keras")
    for name, array in {"x": x, "y": y, "out": out}.items():
        np.save(tmp_path / f"{name}.npy", array)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", LOADS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


class TestHeadsOfOthers:
    def test_weights_in_a_network_of_other_flags(self, rng, tmp_path):
        x, y = data(rng)
        first, second = mlp(), mlp()
        first.variables[0].trainable = False
        model_of(first).fit_head(x, y).save_weights(tmp_path / "m.weights.h5")
        model = kk.KAREModel(second, head=kk.NTKRidgeHead(ridge=0.1))
        model.load_weights(tmp_path / "m.weights.h5")
        with pytest.warns(UserWarning, match=r"kernel now train .* solved again"):
            found = model.predict(x)
        expected = model_of(second).fit_head(x, y).predict(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_without_rows(self, rng):
        x, y = data(rng)
        network = mlp()
        model = model_of(network, keep_anchors=False).fit_head(x, y)
        network.layers[0].trainable = False
        with pytest.raises(ValueError, match=r"bias no longer train .* kept no rows"):
            model.predict(x)

    def test_training_alone_is_not_told(self, rng, recwarn):
        x, y = data(rng)
        model = model_of(mlp()).fit_head(x, y)
        model.train_on_batch(x, y)
        model.predict(x)
        assert not [w for w in recwarn if "another kernel" in str(w.message)]


def test_the_tutorial(data_folder, mnist_cache, tmp_path):
    out, err = run(
        "transfer.py",
        tmp_path,
        XDG_CACHE_HOME=mnist_cache,
        KERAS_KARE_TUTORIAL_ROWS=30,
        KERAS_KARE_TUTORIAL_EPOCHS=2,
        KERAS_KARE_TUTORIAL_PIXELS=32,
        KERAS_KARE_TUTORIAL_WEIGHTS="none",
    )
    lines = out.splitlines()
    assert "30 training, 30 validation and 60 test rows" in lines
    told = [line for line in lines if line.startswith("told: ")]
    assert len(told) == 1
    assert "does not depend on any weight that trains" in told[0]
    assert "880321 parameters train" in lines
    compared = [line for line in lines if "test MSE" in line]
    assert [line.split("  ")[0] for line in compared] == [
        "frozen features + ridge",
        "network, fine-tuned",
        "KARE, last block",
    ]
    assert "keras_kare" not in err, err  # no other warning of ours
