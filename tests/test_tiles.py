"""Tiles: the same values and gradients within any limit, wherever they go."""

from __future__ import annotations

import json

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk
from keras_kare import _progress
from keras_kare.kernels import disk, memory, sizes

pytestmark = pytest.mark.usefixtures("float64")
ROWS = 11


@pytest.fixture
def small_tiles(monkeypatch):
    """Three rows a tile, from four rows on: eleven leave a short last tile."""
    monkeypatch.setattr(sizes, "AT_ONCE", 4)
    monkeypatch.setattr(sizes, "LARGEST_TILE", 3)


def text():
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(20, 3),
            layers.Dense(3, "tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )


def image():
    return keras.Sequential(
        [
            keras.Input((5, 4, 2)),
            layers.Conv2D(17, 3, padding="same", activation="tanh"),
            layers.Conv2D(16, 2, strides=2, activation="tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


NETWORKS = {
    "mlp": lambda: networks.mlp(c=2),
    "image": image,
    "text": text,
    "two inputs": networks.two_inputs,
    "tied": networks.Tied,
}


def rows_of(name, network, n, rng):
    return (
        rng.integers(0, 9, (n, 6)) if name == "text" else networks.rows_for(network, n, rng)
    )


def cut(x, n):
    return keras.tree.map_structure(lambda t: t[:n], x)


def value_and_gradient(function, network, upstream):
    variables = [v.value for v in network.trainable_variables]
    with tf.GradientTape() as tape:
        values = function()
        total = tf.reduce_sum(values * upstream)
    return values, tape.gradient(total, variables, unconnected_gradients="zero")


def assert_same(a, b):
    a, b = np.asarray(tf.convert_to_tensor(a)), np.asarray(tf.convert_to_tensor(b))
    np.testing.assert_allclose(a, b, atol=1e-11 * max(1.0, np.max(np.abs(b))))


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("mlp", "sum"),
        ("mlp", "full"),
        ("image", "full"),
        ("text", "trace"),
        ("two inputs", "trace"),
        ("tied", "sum"),
    ],
)
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
def test_tiles_change_nothing(name, outputs, rng, monkeypatch):
    network = NETWORKS[name]()
    x = rows_of(name, network, ROWS, rng)
    few = cut(x, 7)
    kernel = kk.kernels.NTK(network, outputs)
    shape = kernel.gram(cut(x, 2)).shape[2:]
    upstream = rng.normal(size=(ROWS, ROWS, *shape))
    whole = value_and_gradient(lambda: kernel.gram(x), network, upstream)
    across = value_and_gradient(lambda: kernel.cross(few, x), network, upstream[:7])
    monkeypatch.setattr(sizes, "AT_ONCE", 4)
    monkeypatch.setattr(sizes, "LARGEST_TILE", 3)
    assert kernel.plan(x).tile == 3
    for expected, function, g in (
        (whole, lambda: kernel.gram(x), upstream),
        (across, lambda: kernel.cross(few, x), upstream[:7]),
    ):
        values, gradients = value_and_gradient(function, network, g)
        assert_same(values, expected[0])
        for a, b in zip(gradients, expected[1], strict=True):
            assert_same(a, b)
    values = kernel.gram(x).numpy()
    order = (1, 0, 3, 2) if outputs == "full" else (1, 0)
    np.testing.assert_array_equal(values, values.transpose(order))


@pytest.mark.usefixtures("small_tiles")
class TestWhereValuesGo:
    def problem(self, rng, **kwargs):
        network = networks.mlp(c=2)
        return kk.kernels.NTK(network, **kwargs), rng.normal(size=(ROWS, networks.D))

    def test_an_array(self, rng):
        kernel, x = self.problem(rng)
        out = np.full((ROWS, ROWS), np.nan)
        assert kernel.gram(x, out=out) is out
        np.testing.assert_array_equal(out, kernel.gram(x))
        across = np.full((ROWS, 4), np.nan)
        kernel.cross(x, x[:4], out=across)
        np.testing.assert_allclose(across, out[:, :4], atol=1e-12)

    def test_a_mapped_array_of_another_type(self, rng, tmp_path):
        kernel, x = self.problem(rng)
        file = np.lib.format.open_memmap(
            tmp_path / "k.npy", mode="w+", dtype="float32", shape=(ROWS, ROWS)
        )
        kernel.gram(x, out=file)
        np.testing.assert_array_equal(file, kernel.gram(x).numpy().astype("float32"))

    def test_a_file(self, rng, tmp_path):
        kernel, x = self.problem(rng, outputs="full")
        values = kernel.gram(x, out=tmp_path / "k.npy")
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(np.load(tmp_path / "k.npy"), kernel.gram(x))

    def test_interrupted_and_resumed(self, rng, tmp_path, monkeypatch):
        kernel, x = self.problem(rng)
        path = tmp_path / "k.npy"
        stop_after(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt) as stopped:
            kernel.gram(x, out=path)
        assert "goes on from there" in stopped.value.__notes__[0]
        done = json.loads((tmp_path / "k.npy.tiles.json").read_text())["done"]
        assert len(done) == 4
        # Another kernel object of the same network and weights; another tile size.
        monkeypatch.setattr(sizes, "LARGEST_TILE", 2)
        written = stop_after(monkeypatch, None)
        again = kk.kernels.NTK(kernel.network)
        values = again.gram(x, out=path)
        assert len(written) == 10 - 4  # four by four tiles, each pair once
        np.testing.assert_allclose(values, kernel.gram(x), atol=1e-12)
        again.gram(x, out=path)
        assert len(written) == 10 - 4  # all there: nothing is computed

    @pytest.mark.parametrize("change", ["weights", "rows", "type"])
    def test_a_file_of_something_else(self, change, rng, tmp_path):
        kernel, x = self.problem(rng)
        path = tmp_path / "k.npy"
        kernel.gram(x, out=path)
        if change == "weights":
            kernel.network.set_weights([w + 1 for w in kernel.network.get_weights()])
        with pytest.raises(ValueError, match="`out` names a file"):
            kernel.gram(
                x + 1 if change == "rows" else x,
                dtype="float32" if change == "type" else None,
                out=path,
            )

    def test_a_file_without_its_note(self, rng, tmp_path):
        kernel, x = self.problem(rng)
        np.save(tmp_path / "k.npy", np.zeros((ROWS, ROWS)))
        with pytest.raises(ValueError, match="something else"):
            kernel.gram(x, out=tmp_path / "k.npy")
        assert np.all(np.load(tmp_path / "k.npy") == 0)

    @pytest.mark.parametrize(
        "out",
        [np.zeros((3, 3)), np.zeros((ROWS, ROWS), int), 7, "k.txt", "no/folder/k.npy"],
    )
    def test_a_bad_place(self, out, rng):
        kernel, x = self.problem(rng)
        with pytest.raises(ValueError, match="`out` must"):
            kernel.gram(x, out=out)

    def test_a_read_only_array(self, rng):
        kernel, x = self.problem(rng)
        out = np.zeros((ROWS, ROWS))
        out.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            kernel.gram(x, out=out)

    def test_a_full_disk(self, rng, tmp_path, monkeypatch):
        kernel, x = self.problem(rng)
        usage = type("Usage", (), {"free": 100})
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="100 bytes free"):
            kernel.gram(x, out=tmp_path / "k.npy")
        assert not (tmp_path / "k.npy").exists()

    def test_no_place_while_tracing(self, rng):
        kernel, x = self.problem(rng)
        with pytest.raises(ValueError, match=r"outside of a `tf.function`"):
            tf.function(lambda: kernel.gram(tf.constant(x), out=np.zeros((ROWS, ROWS))))()

    def test_progress(self, rng, monkeypatch, capsys):
        kernel, x = self.problem(rng)
        monkeypatch.setattr(_progress, "SHOW_AFTER", -1.0)
        kernel.gram(x)
        assert "tile" not in capsys.readouterr().out  # the tests disable it
        keras.utils.enable_interactive_logging()
        kernel.gram(x)
        keras.utils.disable_interactive_logging()
        assert "10/10" in capsys.readouterr().out


DISK_WRITE = disk.DiskTarget.write


def stop_after(monkeypatch, count):
    """Count tiles that are written; Ctrl-C after `count` of them."""
    written = []
    write = DISK_WRITE

    def stopping(self, i, j, *values):
        write(self, i, j, *values)
        written.append((i, j))
        if count is not None and len(written) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(disk.DiskTarget, "write", stopping)
    return written


class TestLimits:
    def test_too_low(self, rng):
        kernel = kk.kernels.NTK(networks.mlp(), memory_limit=100)
        with pytest.raises(MemoryError, match="`memory_limit` is 100 bytes"):
            kernel.gram(rng.normal(size=(8, networks.D)))

    @pytest.mark.parametrize("limit", [0, -1, 1.5, "2GB", True])
    def test_bad(self, limit):
        with pytest.raises(ValueError, match="`memory_limit` must be"):
            kk.kernels.NTK(networks.mlp(), memory_limit=limit)

    def test_result_too_large(self, rng, monkeypatch):
        kernel = kk.kernels.NTK(networks.mlp(), memory_limit=10**6)
        monkeypatch.setattr(memory, "available", lambda: 10**6)
        with pytest.raises(MemoryError, match=r'out="FILE.npy"'):
            kernel.gram(rng.normal(size=(3000, networks.D)))

    def test_is_kept_in_the_configuration(self):
        kernel = kk.kernels.NTK(networks.mlp(), memory_limit=10**9)
        assert kk.kernels.NTK.from_config(kernel.get_config()).memory_limit == 10**9

    def test_default_is_half_of_what_is_free(self):
        free = memory.available()
        assert 0 < memory.default_limit() <= free
        assert kk.kernels.NTK(networks.mlp()).memory_limit is None

    def test_lower_limit_smaller_tiles(self, rng):
        network = image()
        x = networks.rows_for(network, 64, rng)
        plans = [
            kk.kernels.NTK(network, memory_limit=limit).plan(x)
            for limit in (10**6, 4 * 10**6, 10**9)
        ]
        assert plans[0].tile < plans[1].tile <= plans[2].tile == 64
        for p in plans:
            assert p.memory <= p.memory_limit

    @pytest.mark.parametrize("what", ["gram", "diag", "vjp", "jvp", "cross"])
    def test_every_verb_within_a_limit(self, what, rng):
        network = image()
        x = networks.rows_for(network, 32, rng)
        v = rng.normal(size=(32, 3))
        free, tight = kk.kernels.NTK(network), kk.kernels.NTK(network, memory_limit=10**6)

        def verb(kernel):
            if what == "vjp":
                return kernel.vjp(x, v)
            if what == "jvp":
                return kernel.jvp(x, free.vjp(x, v))
            return kernel.cross(x, x[:5]) if what == "cross" else getattr(kernel, what)(x)

        for a, b in zip(
            keras.tree.flatten(verb(tight)), keras.tree.flatten(verb(free)), strict=True
        ):
            assert_same(a, b)


class TestTraining:
    """A batch that does not fit goes in tiles, inside the traced training step."""

    def losses(self, limit, network, x, y, **kwargs):
        start = network.get_weights()
        kernel = kk.kernels.NTK(network, memory_limit=limit)
        model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=1.0))
        model.compile(keras.optimizers.SGD(0.1), kk.losses.KARE(0.1))
        history = model.fit(x, y, epochs=3, shuffle=False, verbose=0, **kwargs)
        trained, predictions = network.get_weights(), model.predict(x)
        network.set_weights(start)
        return history.history["loss"], trained, predictions

    @pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 9])
    def test_same_training(self, batch_size, rng):
        network = image()
        x, y = networks.rows_for(network, 20, rng), rng.normal(size=(20, 1))
        free = self.losses(None, network, x, y, batch_size=batch_size)
        tight = self.losses(10**6, network, x, y, batch_size=batch_size)
        for a, b in zip(keras.tree.flatten(free), keras.tree.flatten(tight), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)

    def test_activity_regularisers_are_added(self, rng):
        network = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.Conv2D(4, 3, activity_regularizer="l2"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(1),
            ]
        )
        x, y = rng.normal(size=(20, 8, 8, 2)), rng.normal(size=(20, 1))
        free = self.losses(None, network, x, y)
        tight = self.losses(2 * 10**5, network, x, y)
        np.testing.assert_allclose(tight[0], free[0], rtol=1e-9)
