"""Round trips: `.keras`, weights and configurations, in this process and fresh ones."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import keras
import networks
import numpy as np
import pytest
import saved_models
import tensorflow as tf

import keras_kare as kk

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def solved(rng, **head):
    x = rng.normal(size=(16, networks.D)).astype("float32")
    y = rng.normal(size=(16, 1)).astype("float32")
    model = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(**{"ridge": 0.1, **head}))
    model.compile(
        keras.optimizers.Adam(0.01), kk.losses.KARE(0.2), metrics=["mse", "accuracy"]
    )
    model.fit_head(x, y)
    return model, x, y


def same(a, b):
    """Equal but for the order in which threads add."""
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, written by one process and read by another."""
    folder = tmp_path_factory.mktemp("models")
    for verb in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "saved_models.py", verb, folder],
            capture_output=True,
            text=True,
            check=False,
            cwd=HERE,
            env={**os.environ, **ONE_THREAD},
        )
        assert done.returncode == 0, done.stderr
    return folder


def equal_to_the_bit(one: Path, other: Path) -> None:
    a, b = np.load(one), np.load(other)
    assert set(a) == set(b)
    assert "variable 5" in a
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


class TestFreshProcess:
    @pytest.mark.parametrize("name", saved_models.HEADS)
    def test_all_is_equal_to_the_bit(self, folder, name):
        equal_to_the_bit(folder / f"{name} written.npz", folder / f"{name} read.npz")
        assert np.load(folder / f"{name} read.npz")["fresh"]

    def test_resumed_training_is_equal_to_uninterrupted(self, folder):
        equal_to_the_bit(folder / "uninterrupted.npz", folder / "resumed.npz")


class TestInProcess:
    def test_nested_anchors(self, rng, tmp_path):
        network = networks.named_inputs()
        x = keras.tree.map_structure(
            lambda t: t.astype("float32"), networks.rows_for(network, 10, rng)
        )
        y = rng.normal(size=(10, 1)).astype("float32")
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1, form="dual"))
        model.fit_head(x, y)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        same(loaded.predict(x), model.predict(x))
        keras.tree.assert_same_structure(loaded.head.anchors, x)

    @pytest.mark.parametrize(
        "head", [{"form": "primal", "keep_anchors": False}, {"form": "dual"}]
    )
    def test_weights_carry_the_head(self, rng, tmp_path, head):
        model, x, _ = solved(rng, **head)
        model.save_weights(tmp_path / "w.weights.h5")
        other = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(ridge=0.1, **head))
        other.load_weights(tmp_path / "w.weights.h5")
        assert other.head.report == model.head.report
        same(other.predict(x), model.predict(x))

    def test_unsolved_model(self, rng, tmp_path):
        model = kk.KAREModel(networks.mlp())
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        with pytest.raises(ValueError, match="fit_head"):
            loaded.predict(np.zeros((2, networks.D)))

    def test_a_stale_head_stays_stale(self, rng, tmp_path):
        model, x, y = solved(rng)
        model.train_on_batch(x, y)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert not loaded.machine.is_fresh()
        np.testing.assert_allclose(loaded.predict(x), model.predict(x), atol=1e-6)

    def test_config_round_trip(self):
        head = kk.NTKRidgeHead(0.3, False, "primal", True, False, name="h")
        model = kk.KAREModel(
            kk.kernels.NTK(networks.mlp(), "trace", "jacobian"), head, validation_anchors=99
        )
        copy = kk.KAREModel.from_config(model.get_config())
        assert copy.get_config() == model.get_config()
        assert copy.head.get_config() == head.get_config()
        assert copy.kernel.outputs == "trace"
        assert copy.validation_anchors == 99

    def test_a_clone_is_new_and_compiled(self, rng):
        model, x, y = solved(rng, form="primal")
        clone = keras.models.clone_model(model)
        assert clone.head.get_config() == model.head.get_config()
        assert clone.loss.ridge == 0.2
        assert not clone.head.report
        assert clone.optimizer.iterations.numpy() == 0
        assert np.any(clone.get_weights()[0] != model.get_weights()[0])
        clone.set_weights(model.get_weights())
        clone.fit_head(x, y)
        model.fit_head(x, y)
        same(clone.predict(x), model.predict(x))

    def test_a_clone_by_a_function_is_refused(self):
        with pytest.raises(ValueError, match="clone_function"):
            keras.models.clone_model(
                kk.KAREModel(networks.mlp()), clone_function=lambda layer: layer
            )

    @pytest.mark.parametrize(
        "kind",
        [
            kk.KAREModel,
            kk.NTKRidgeHead,
            kk.kernels.NTK,
            kk.losses.KARE,
            kk.metrics.SignedAccuracy,
        ],
    )
    def test_registered_names(self, kind):
        name = keras.saving.get_registered_name(kind)
        assert name == f"keras_kare>{kind.__name__}"
        assert keras.saving.get_registered_object(name) is kind

    def test_code_in_a_file_is_refused_unless_trusted(self, rng, tmp_path):
        network = keras.Sequential(
            [
                keras.Input((networks.D,)),
                keras.layers.Lambda(lambda x: 2.0 * x, output_shape=(networks.D,)),
                keras.layers.Dense(1),
            ]
        )
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
        x = rng.normal(size=(8, networks.D)).astype("float32")
        model.fit_head(x, x[:, :1])
        model.save(tmp_path / "m.keras")
        with pytest.raises((ValueError, TypeError), match=r"safe_mode|lambda"):
            keras.saving.load_model(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=False)
        same(loaded.predict(x), model.predict(x))

    def test_losses_and_metrics_round_trip(self):
        loss = kk.losses.KARE(0.7, relative=True, name="mine")
        again = kk.losses.get(keras.saving.serialize_keras_object(loss))
        assert again.get_config() == loss.get_config()
        assert isinstance(kk.losses.get(kk.losses.KARE), kk.losses.KARE)
        metric = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(kk.metrics.SignedAccuracy("a"))
        )
        assert metric.name == "a"


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*.keras")), ids=lambda f: f.stem)
class TestFilesOfEarlierVersions:
    """`fixtures/make.py` writes one file a release; every later version loads it."""

    def test_predictions(self, file):
        model, expected = keras.saving.load_model(file), np.load(file.with_suffix(".npz"))
        assert model.machine.is_fresh()
        same(model.predict(expected["x"]), expected["predictions"])
        same(model.head.dual, expected["dual"])
        assert model.head.ridge_value == expected["ridge_value"]

    def test_goes_on(self, file, tmp_path):
        model, expected = keras.saving.load_model(file), np.load(file.with_suffix(".npz"))
        assert model.optimizer.iterations.numpy() == expected["iterations"]
        x = model.head.anchors.numpy()
        model.fit(x, model.head.targets, epochs=1, verbose=0)
        assert np.isfinite(model.history.history["loss"]).all()
        model.export(tmp_path / "served", classes=["a", "b"], verbose=False)


def test_this_version_has_a_fixture():
    assert (FIXTURES / f"keras_kare-{kk.__version__}.keras").exists()


class Doubled(tf.Module):
    """A user's own function round a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @tf.function(input_signature=[tf.TensorSpec((None, networks.D))])
    def __call__(self, x):
        return 2.0 * self.model(x)


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_module_round_a_model(rng, tmp_path, form):
    model, x, y = solved(rng, form=form)
    module = Doubled(model)

    def check(module, model):
        tf.saved_model.save(module, tmp_path / "module")
        loaded = tf.saved_model.load(tmp_path / "module")
        same(loaded(x), 2.0 * model(x))
        # What predictions read is in the files, and nothing else: no rows, if primal.
        files = tf.train.load_checkpoint(tmp_path / "module" / "variables" / "variables")
        shapes = files.get_variable_to_shape_map().values()
        assert ([len(model.head.anchors), networks.D] in shapes) == (form == "dual")

    check(module, model)
    model.fit_head(x[:9], 3.0 * y[:9])  # the same variables, other values
    check(module, model)
    model.fit_head(x, np.concatenate([y, -y], axis=1))  # other variables
    check(Doubled(model), model)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    check(Doubled(loaded), loaded)


def test_a_module_round_a_copy(rng, tmp_path):
    model, x, _ = solved(rng)
    copied = copy.deepcopy(model)
    tf.saved_model.save(Doubled(copied), tmp_path / "module")
    loaded = tf.saved_model.load(tmp_path / "module")
    same(loaded(x), 2.0 * model(x))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("anchor_0", {"form": "dual"}),
        ("targets", {"form": "dual"}),
        ("dual", {"form": "dual"}),
        ("row_weights", {"form": "dual"}),
        ("weight_2", {"form": "primal", "keep_anchors": False}),
    ],
)
def test_damaged_arrays_are_named(rng, tmp_path, monkeypatch, name, head):
    model, x, y = solved(rng, **head)
    if name == "row_weights":
        model.fit_head(x, y, sample_weight=np.ones(len(x)))
    save = type(model.head).save_own_variables

    def damaged(self, store):
        arrays = {}
        save(self, arrays)
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = np.nan
        for key, array in arrays.items():
            store[key] = array

    monkeypatch.setattr(type(model.head), "save_own_variables", damaged)
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=f"its array `{name}` holds NaN or Inf"):
        keras.saving.load_model(tmp_path / "m.keras")
