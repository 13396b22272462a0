"""Datasets that never end, or that do not say so: only so many batches are read."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.models import batches

SIZE, STEPS = 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6 * SIZE, networks.D)).astype("float32")
Y = np.sin(X[:, :1]).astype("float32")
FIRST = slice(0, STEPS * SIZE)


def counted(limit=10_000):
    """Batches without end; more of them than any test may read are an error."""
    for i in range(limit):
        rows = slice(i % 6 * SIZE, (i % 6 + 1) * SIZE)
        yield X[rows], Y[rows]
    raise AssertionError("read to the end")


def from_generator():
    specs = tuple(tf.TensorSpec((None, a.shape[1]), a.dtype) for a in (X, Y))
    return tf.data.Dataset.from_generator(counted, output_signature=specs)


def whole():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, i):
        rows = slice(i % 6 * SIZE, (i % 6 + 1) * SIZE)
        return X[rows], Y[rows]


DATASETS = {
    "filtered": lambda: whole().repeat().filter(lambda x, y: True),
    "generator": from_generator,
    "repeated": lambda: whole().repeat(),
    "PyDataset": Endless,
}
UNKNOWN = ("filtered", "generator")


def model(rate=0.0, **head):
    keras.utils.set_random_seed(1)
    made = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(**{"ridge": 0.1, **head}))
    made.compile(keras.optimizers.SGD(rate), "kare")
    return made


def of_arrays(rows, **head):
    """The machine of the same network on these rows of the arrays."""
    made = model(**head)
    made.fit_head(X[rows], Y[rows])
    return made


def first_error(machine):
    """Mean squared error on the first two batches."""
    rows = slice(0, 2 * SIZE)
    return np.mean((np.asarray(machine(X[rows])) - Y[rows]) ** 2)


@pytest.mark.parametrize("name", DATASETS)
def test_the_first_batches_are_the_rows(name):
    trained = model()
    history = trained.fit(
        DATASETS[name](),
        steps_per_epoch=STEPS,
        epochs=4,
        validation_data=DATASETS[name](),
        validation_steps=2,
        verbose=0,
    ).history
    assert int(trained.optimizer.iterations) == 4 * STEPS
    np.testing.assert_array_equal(trained.head.anchors, X[FIRST])
    np.testing.assert_allclose(trained(X), of_arrays(FIRST)(X), atol=1e-6)
    # While training, the machine has the ridge of the loss.
    error = first_error(of_arrays(FIRST, ridge=0.1, relative=False))
    np.testing.assert_allclose(history["val_loss"], [error] * 4, rtol=1e-4)


@pytest.mark.parametrize("name", ["generator", "PyDataset"])
def test_evaluate_and_predict(name):
    made = of_arrays(slice(None))
    found = made.evaluate(DATASETS[name](), steps=2, verbose=0)
    np.testing.assert_allclose(found, first_error(made), rtol=1e-4)
    predictions = made.predict(DATASETS[name](), steps=2)
    np.testing.assert_allclose(predictions, made(X[: 2 * SIZE]), atol=1e-6)


def test_a_stream(rng):
    trained = model(solver="primal")
    trained.fit(from_generator(), steps_per_epoch=STEPS, epochs=2, verbose=0)
    np.testing.assert_allclose(trained.predict(X), of_arrays(FIRST).predict(X), atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(UNKNOWN)))
def test_endless_datasets_need_steps(name):
    made = of_arrays(slice(None))
    for call in (
        lambda: made.fit(DATASETS[name](), verbose=0),
        lambda: made.fit(X, Y, validation_data=DATASETS[name](), verbose=0),
        lambda: made.evaluate(DATASETS[name](), verbose=0),
        lambda: made.predict(DATASETS[name](), verbose=0),
        lambda: made.fit_head(DATASETS[name]()),
    ):
        with pytest.raises(ValueError, match="endless dataset"):
            call()


def test_without_steps_datasets_are_read_to_their_end():
    trained = model()
    trained.fit(whole().filter(lambda x, y: True), verbose=0)
    assert int(trained.optimizer.iterations) == 6
    np.testing.assert_array_equal(trained.head.anchors, X)


def test_all_rows_where_the_end_is_known():
    trained = model()
    trained.fit(whole(), steps_per_epoch=STEPS, epochs=2, verbose=0)
    np.testing.assert_array_equal(trained.head.anchors, X)


def test_a_dataset_that_fills_the_memory(monkeypatch):
    monkeypatch.setattr(batches, "LARGE", 1000)
    monkeypatch.setattr(batches, "available", lambda: 3000)
    with pytest.raises(MemoryError, match=r"never ends, .*`steps_per_epoch`"):
        model().fit(from_generator(), verbose=0)


@pytest.mark.parametrize("name", ["steps_per_epoch", "validation_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.0])
def test_steps_are_positive_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number"):
        model().fit(whole(), validation_data=whole(), **{name: value}, verbose=0)
