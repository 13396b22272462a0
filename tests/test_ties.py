"""Kernels in which a network or a kernel occurs more than once: copies keep that."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest

import keras_kare as kk

k = kk.kernels


def network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "gelu", name="a"),
            keras.layers.Dense(2, name="head"),
        ]
    )


def of_networks():
    n = network()
    return {
        "layers": k.NTK(n, layers=["a"]) + 0.1 * k.NTK(n, layers=["head"]),
        "conjugate": k.NTK(n) + k.Conjugate(n),
        "deep": k.NTK(n) + k.Deep(n, k.Gaussian()),
        "deep first": k.Deep(n, k.Gaussian()) * k.Conjugate(n),
        "two deep": k.Deep(n, k.Gaussian()) * k.Deep(n, k.Laplace()),
    }


def of_kernels():
    g = k.Gaussian()
    inner = k.Gaussian()
    n = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    return {
        "twice": k.Sum([g, g]),
        "normalized": k.Normalized(g) + g,
        "columns": g * k.Polynomial(1) + 0.5 * k.On(k.Normalized(g), [0, 1, 2, 3]),
        "product first": k.Polynomial(1) * g + g,
        "product last": g + g * k.Polynomial(1),
        "bases": k.Deep(n, inner) + k.Deep(n, k.Conjugate(n) + inner),
    }


NAMES = [*of_networks(), *of_kernels()]


def solved(name, rng):
    kernel = (of_networks() | of_kernels())[name]
    x = rng.normal(size=(20, 4)).astype("float32")
    y = np.sin(x[:, :1])
    model = kk.KAREModel(kernel, kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(0.1))
    model.fit(x, y, epochs=2, verbose=0)
    return model, x


def by_file(model, folder):
    model.save(folder / "m.keras")
    return keras.models.load_model(folder / "m.keras")


COPIES = {
    "file": by_file,
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_the_same_ties_and_values(name, rng, tmp_path):
    model, x = solved(name, rng)
    again = by_file(model, tmp_path)
    assert len(again.kernel.weights) == len(model.kernel.weights)
    assert again.kernel.architecture() == model.kernel.architecture()
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    for one, other in zip(again.kernel.weights, model.kernel.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    again.fit(x, np.sin(x[:, :1]), epochs=1, verbose=0)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["layers", "deep", "columns"])
def test_so_has_every_copy(name, way, rng, tmp_path):
    model, x = solved(name, rng)
    again = COPIES[way](model, tmp_path)
    assert len(again.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("name", NAMES)
def test_clones_have_the_same_ties(name, rng):
    model, x = solved(name, rng)
    clone = keras.models.clone_model(model)
    clone.kernel.gram(x)
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    assert [tuple(v.shape) for v in clone.trainable_variables] == shapes
    kernel = type(model.kernel).from_config(model.kernel.get_config())
    kernel.gram(x)
    assert [tuple(v.shape) for v in kernel.trainable_variables] == shapes


def test_checkpoints_load(rng, tmp_path):
    model, x = solved("layers", rng)
    file = tmp_path / "c.keras"
    model.fit(
        x,
        np.sin(x[:, :1]),
        verbose=0,
        callbacks=[keras.callbacks.ModelCheckpoint(file)],
    )
    again = keras.models.load_model(file)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_parts_of_one_owner_are_written_as_ever():
    assert "tie" not in repr((k.NTK(network()) + k.Gaussian()).get_config())


def test_networks_that_share_layers_are_refused_before_writing(rng, tmp_path):
    n = network()
    n.build((None, 4))
    part = keras.Model(n.inputs, n.layers[0].output)
    x = rng.normal(size=(20, 4)).astype("float32")
    model = kk.KAREModel(k.NTK(n) + k.Deep(part, k.Gaussian()))
    model.fit_head(x, x[:, :1])
    file = tmp_path / "m.keras"
    file.write_bytes(b"older")
    with pytest.raises(ValueError, match="in common"):
        model.save(file)
    assert file.read_bytes() == b"older"
    with pytest.raises(ValueError, match="in common"):
        keras.models.clone_model(model)
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")


@keras.saving.register_keras_serializable(package="tests")
class WithParts(keras.Model):
    """A network with a method that kernels have, too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1)

    def parts(self):
        raise AssertionError("this is no kernel")

    def call(self, x):
        return self.dense(x)


def test_methods_of_networks_are_not_taken_for_those_of_kernels(rng, tmp_path):
    x = rng.normal(size=(20, 3)).astype("float32")
    network = WithParts()
    network(x[:1])
    model = kk.KAREModel(kk.kernels.NTK(network)).fit_head(x, x[:, :1])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
