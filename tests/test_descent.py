"""`Descent`: what `KAREModel.fit` does, as references computed it, in one trace."""

from __future__ import annotations

import itertools

import keras
import networks
import numpy as np
import pytest
from test_reference import CASES, Case

import keras_kare as kk
from keras_kare.recipes.descent import Descent


def data(rng, n=24, targets=1):
    x = rng.normal(size=(n, networks.D))
    return x, np.sin(x[:, :1] + np.arange(targets))


def descent(optimizer=None, network=None, loss=None):
    kernel = kk.kernels.NTK(network or networks.mlp(depth=1))
    return Descent(kernel, loss or kk.losses.KARE(0.1), optimizer or keras.optimizers.SGD())


def weights(found):
    return found.kernel.network.get_weights()


def check_equal(found, expected, tolerance=0.0):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_of_the_references(reference_folder, float64, name):
    case = Case(reference_folder / f"{name}.npz", "float64")
    found = descent(network=case.network())
    losses = found.run(case["x"], case["y"], learning_rate=1.0, steps=10)
    case.check(losses, "sgd10_losses", 1e-8)
    for weight, name in zip(weights(found), case.names("sgd10_"), strict=True):
        case.check(weight, name, 1e-8)


@pytest.mark.parametrize(
    ("make", "relative"), [(keras.optimizers.SGD, False), (keras.optimizers.Adam, True)]
)
def test_equals_fit(rng, float64, make, relative):
    x, y = data(rng, targets=2)
    loss = kk.losses.KARE(0.1, relative=relative)
    found = descent(make(), networks.mlp(depth=1, c=2), loss)
    network = keras.models.clone_model(found.kernel.network)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
    network.set_weights(weights(found))
    model.compile(make(0.05), loss)
    history = model.fit(x, y, batch_size=len(x), epochs=7, shuffle=False, verbose=0)
    losses = found.run(x, y, learning_rate=0.05, steps=7)
    np.testing.assert_allclose(losses, history.history["loss"], rtol=1e-9)
    check_equal(weights(found), network.get_weights(), 1e-9)


@pytest.mark.parametrize("make", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_two_runs_go_on_as_one(rng, float64, make):
    x, y = data(rng)
    found = descent(make())
    start = weights(found)
    for batches in (1, 3):
        found.restart()
        found.kernel.network.set_weights(start)
        whole = found.run(x, y, 0.1, 20, batches, seed=5)
        expected = weights(found)

        found.restart()
        found.kernel.network.set_weights(start)
        parts = [found.run(x, y, 0.1, 10, batches, seed=5) for _ in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        check_equal(weights(found), expected)


def test_restart_forgets(rng, float64):
    x, y = data(rng)
    found = descent(keras.optimizers.Adam())
    start = weights(found)

    def again():
        found.kernel.network.set_weights(start)
        found.run(x, y, 0.1, 5, batches=2)
        return weights(found)

    first = again()
    assert np.max(np.abs(again()[0] - first[0])) > 1e-3  # its moments, and its count
    found.restart()
    check_equal(again(), first)


def test_batches_are_even_and_cover_all_rows(rng, float64):
    """At rate 0 a loss tells its batch: each row's target is a power of two of its own."""
    n, batches = 10, 4
    x = np.tile(rng.normal(size=(1, networks.D)), (n, 1))
    found = descent(loss=Sum())
    same = float(found.kernel.gram(x[:1])[0, 0])
    runs = []
    for seed in (0, 0, 1):
        found.restart()
        losses = found.run(x, 2.0 ** np.arange(n)[:, None], 0.0, 3 * batches, batches, seed)
        codes = [round(loss - same) for loss in losses]
        rows = [[i for i in range(n) if code >> i & 1] for code in codes]
        for at in range(0, len(rows), batches):
            assert sorted(itertools.chain(*rows[at : at + batches])) == list(range(n))
        assert {len(batch) for batch in rows} == {n // batches, n // batches + 1}
        assert rows[:batches] != rows[batches : 2 * batches]  # cut anew
        runs.append(rows)
    assert runs[0] == runs[1] != runs[2]


class Sum(kk.losses.KARE):
    """Of the targets, and the mean of the kernel; takes what is not finite."""

    def evaluate(self, y_true, gram, sample_weight=None):
        return keras.ops.sum(y_true) + keras.ops.mean(gram), y_true


@pytest.mark.parametrize(
    "make",
    [
        keras.optimizers.SGD,
        keras.optimizers.Adam,
        lambda: keras.optimizers.SGD(momentum=0.9),
        lambda: keras.optimizers.SGD(weight_decay=0.5),
    ],
    ids=["sgd", "adam", "momentum", "decay"],
)
def test_a_loss_that_is_not_finite_moves_nothing(rng, make):
    """Here targets turn to NaN between two runs, so that there are moments to move by."""
    x, y = data(rng)
    found = descent(make(), loss=Sum())
    assert len(found.run(x, y, 1e-3, 3)) == 3
    before = weights(found)
    losses = found.run(x, np.full_like(y, np.nan), 1e-3, 10)
    assert len(losses) == 1
    assert np.isnan(losses[0])
    check_equal(weights(found), before)


@pytest.mark.filterwarnings("ignore:A Cholesky factorisation")
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_divergence_ends_with_finite_weights(rng, activation):
    x, y = data(rng)
    found = descent(network=networks.mlp(depth=2, activation=activation))
    start = weights(found)
    for rate in (1e4, 1e6, 1e12, 1e20):
        found.kernel.network.set_weights(start)
        losses = found.run(x, y, rate, 50)
        assert np.all(np.isfinite(losses[:-1]))
        assert len(losses) == 50 or not np.isfinite(losses[-1])
        assert all(np.all(np.isfinite(weight)) for weight in weights(found))
    if activation != "tanh":  # which saturates instead
        assert 1 < len(losses) < 50


def test_one_trace_for_all_rows_targets_and_counts(rng):
    found = descent()
    for n, targets, batches in ((24, 1, 1), (10, 3, np.int32(1)), (31, 2, 4)):
        x, y = data(rng, n, targets)
        losses = found.run(x, y, np.float64(0.1) / n, np.int64(n), batches, seed=n)
        assert losses.shape == (n,)
    before = weights(found)
    assert found.run(x, y, 0.1, steps=0).shape == (0,)
    check_equal(weights(found), before)
    assert found._run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", value) for value in (-1, 2.0, "10", True, None)],
        *[("batches", value) for value in (0, -2, 1.5, None)],
        ("batches", 25),  # of 24 rows
    ],
)
def test_bad_counts_are_named(rng, name, value):
    found = descent(loss=Sum())
    arguments = {"steps": 2, "batches": 2, name: value}
    with pytest.raises(ValueError, match=f"`{name}`.*Received: .*{name}={value!r}"):
        found.run(*data(rng, n=24), 0.1, **arguments)
