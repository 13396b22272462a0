"""Round trips: `.keras`, weights, and SavedModel, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk


def trained(rng, targets=1, network=None, fit=True, outputs="sum", **head):
    x = rng.normal(size=(16, networks.D)).astype("float32")
    y = rng.normal(size=(16, targets)).astype("float32")
    kernel = kk.kernels.NTK(network or networks.mlp(), outputs)
    model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(**{"ridge": 0.1, **head}))
    model.compile(
        keras.optimizers.Adam(0.01), kk.losses.KARE(0.2), metrics=["mse", "accuracy"]
    )
    if fit:
        model.fit(x, y, epochs=2, verbose=0)
    else:
        model.fit_head(x, y)
    return model, x, y


def run(code: str, *arguments: object) -> str:
    """Run Python in a fresh process, and give back what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def same(a, b):
    """Equal but for the order in which threads add."""
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


LOAD = """
    import sys
    import numpy as np
    import keras
    import keras_kare
    if len(sys.argv) > 3:
        import networks
    folder = sys.argv[1]
    model = keras.saving.load_model(folder + "/m.keras")
    assert model.compiled and model.loss.ridge == 0.2, "not compiled"
    x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
    assert model.head.is_fresh(model.kernel)
    np.save(folder + "/loaded.npy", model.predict(x, verbose=0))
    np.save(folder + "/evaluated.npy", model.evaluate(x, y, verbose=0))
    assert model.head.report["ridge_value"] == float(sys.argv[2])
    model.fit(x, y, verbose=0)
    np.save(folder + "/loss.npy", model.history.history["loss"])
"""


@pytest.mark.parametrize(
    "head",
    [
        {"form": "primal"},
        {"form": "dual"},
        {"form": "primal", "keep_anchors": False},
        {"form": "primal", "residual": True},
        {"ridge": "auto", "relative": False},
    ],
    ids=["primal", "dual", "without anchors", "residual", "auto"],
)
def test_keras_file_in_a_fresh_process(rng, tmp_path, head):
    model, x, y = trained(rng, **head)
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    run(LOAD, tmp_path, model.head.ridge_value)
    same(np.load(tmp_path / "loaded.npy"), model.predict(x, verbose=0))
    np.testing.assert_allclose(
        np.load(tmp_path / "evaluated.npy"), model.evaluate(x, y, verbose=0), rtol=1e-6
    )
    model.fit(x, y, verbose=0)
    np.testing.assert_allclose(
        np.load(tmp_path / "loss.npy"), model.history.history["loss"], rtol=1e-5
    )


def test_subclassed_network_in_a_fresh_process(rng, tmp_path):
    model, x, y = trained(rng, network=networks.Subclassed(), outputs="trace", targets=3)
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    run(LOAD, tmp_path, model.head.ridge_value, "networks")
    same(np.load(tmp_path / "loaded.npy"), model.predict(x, verbose=0))


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

    def test_weights_carry_the_head(self, rng, tmp_path):
        model, x, _ = trained(rng)
        model.save_weights(tmp_path / "w.weights.h5")
        other = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(ridge=0.1))
        other.load_weights(tmp_path / "w.weights.h5")
        same(other.predict(x), model.predict(x))

    def test_unsolved_model(self, rng, tmp_path):
        model = kk.KAREModel(networks.mlp())
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        with pytest.raises(ValueError, match="fit_head"):
            loaded.predict(np.zeros((2, networks.D)))

    def test_a_stale_head_stays_stale(self, rng, tmp_path):
        model, x, y = trained(rng)
        model.train_on_batch(x, y)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert not loaded.head.is_fresh(loaded.kernel)
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

    def test_losses_and_metrics_round_trip(self):
        loss = kk.losses.KARE(0.7, relative=True, name="mine")
        again = kk.losses.get(keras.saving.serialize_keras_object(loss))
        assert again.get_config() == loss.get_config()
        assert isinstance(kk.losses.get(kk.losses.KARE), kk.losses.KARE)
        metric = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(kk.metrics.SignedAccuracy("a"))
        )
        assert metric.name == "a"


SERVE = """
    import sys

    for name in ("keras", "keras_kare"):
        sys.modules[name] = None  # what Python raises ImportError for
    import numpy as np
    import tensorflow as tf
    folder = sys.argv[1]
    loaded = tf.saved_model.load(folder + "/served")
    x = np.load(folder + "/x.npy")
    serve = loaded.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    outputs = serve(**{name: tf.constant(x)})
    (value,) = outputs.values()
    np.testing.assert_allclose(value, loaded.serve(x), rtol=1e-5, atol=1e-6)
    assert loaded.serve(x[:1]).shape[0] == 1
    np.save(folder + "/served.npy", value)
    assert not any(m.startswith(("keras.", "keras_kare.")) for m in sys.modules)
"""


def files_hold(folder: Path, array: np.ndarray) -> bool:
    """Whether the bytes of any row of the array are in any file of the folder."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return any(np.ascontiguousarray(row).tobytes() in content for row in array)


class TestExport:
    @pytest.mark.parametrize("form", ["primal", "dual"])
    @pytest.mark.parametrize("trained_form", ["primal", "dual"])
    def test_runs_without_keras(self, rng, tmp_path, form, trained_form):
        model, x, _ = trained(rng, form=trained_form, fit=False, targets=2)
        model.export(tmp_path / "served", form=form, verbose=False)
        np.save(tmp_path / "x.npy", x)
        run(SERVE, tmp_path)
        served = np.load(tmp_path / "served.npy")
        np.testing.assert_allclose(served, model.predict(x), atol=1e-4)
        assert files_hold(tmp_path / "served", x) == (form == "dual")

    @pytest.mark.parametrize("head", [{"residual": True}, {"keep_anchors": False}])
    def test_other_heads(self, rng, tmp_path, head):
        model, x, _ = trained(rng, fit=False, **head)
        model.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(served.serve(x), model.predict(x), atol=1e-5)

    def test_several_inputs(self, rng, tmp_path):
        network = networks.two_inputs()
        x = keras.tree.map_structure(
            lambda t: t.astype("float32"), networks.rows_for(network, 10, rng)
        )
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
        model.fit_head(x, rng.normal(size=(10, 1)))
        model.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(served.serve(x), model.predict(x), atol=1e-5)

    def test_of_a_loaded_model(self, rng, tmp_path):
        model, x, _ = trained(rng)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        loaded.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(served.serve(x), model.predict(x), atol=1e-6)

    def test_dual_needs_anchors(self, rng, tmp_path):
        model, _, _ = trained(rng, keep_anchors=False, fit=False)
        with pytest.raises(ValueError, match="kept no anchors"):
            model.export(tmp_path / "served", form="dual")
