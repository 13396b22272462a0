"""Whether networks and their kernels predict the same, and how the gap is told."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.diagnostics.self_training import SelfTraining, regression
from keras_kare.experiments import command, equivalence_jobs, report

D = 4


def network(width=32, depth=1, activation="relu", last=1):
    dense, start = keras.layers.Dense, "he_normal"
    hidden = [dense(width, activation, kernel_initializer=start) for _ in range(depth)]
    return keras.Sequential([keras.Input((D,)), *hidden, dense(last)])


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(50, D)).astype("float32")
    y = np.tanh(x[:, :1] + x[:, 1:2])
    return x[:30], y[:30], x[30:], y[30:]


def of(found, learner):
    (row,) = [row for row in found.rows if row["learner"] == learner]
    return row


@pytest.mark.usefixtures("float64")
def test_a_network_linear_in_its_weights_is_its_linearisation(rng):
    """A network without hidden layers: the closed form is its gradient descent."""
    x, x_test = rng.normal(size=(20, D)), rng.normal(size=(9, D))
    y = rng.normal(size=(20, 1))
    linear = keras.Sequential([keras.Input((D,)), keras.layers.Dense(1)])
    for steps in (1, 7, 500):
        descent = SelfTraining(linear, tf.constant(x), y, tf.constant(x_test))
        expected = descent.linearised(steps)
        descent.run(steps)
        np.testing.assert_allclose(descent.predict()[1], expected, atol=1e-6)


def test_regression_is_without_a_ridge(rng):
    root = rng.normal(size=(6, 6))
    gram, cross, y = root @ root.T, rng.normal(size=(3, 6)), rng.normal(size=(6, 1))
    np.testing.assert_allclose(
        regression(gram, cross, y), cross @ np.linalg.solve(gram, y), rtol=1e-5
    )


def test_wide_networks_are_nearer_to_their_kernels(rows):
    keras.utils.set_random_seed(0)
    networks = [network(width) for width in (8, 1024)]
    found = kk.diagnostics.equivalence(networks, *rows, steps=2000)
    narrow, wide = found.rows[:6], found.rows[6:]
    assert [row["learner"] for row in wide] == [row["learner"] for row in narrow]
    gaps = [{row["learner"]: row["gap"] for row in each} for each in (narrow, wide)]
    assert gaps[1]["linearised"] < 0.5 * gaps[0]["linearised"]
    assert gaps[1]["linearised"] < 0.1
    between = abs(wide[2]["gap"] - wide[4]["gap"])  # NTK at the start, of infinite width
    assert between < 0.1 < abs(narrow[2]["gap"] - narrow[4]["gap"]) + 0.1
    assert wide[0]["drift"] < narrow[0]["drift"]
    assert wide[0]["gap"] == 0.0
    assert wide[0]["train_error"] < 0.1


def test_rows_tables_and_plots(rows):
    networks = [network(8, depth=2), network(16, activation="tanh")]
    found = kk.diagnostics.equivalence(networks, *rows, steps=20)
    assert of(kk.diagnostics.Equivalence(found.rows[:6]), "ntk_end")["depth"] == 2
    assert list(found.skipped) == [networks[1].name]
    assert (
        "no kernel of infinite width is known for tanh" in found.skipped[networks[1].name]
    )
    assert {row["learner"] for row in found.rows[6:]} == {
        "network",
        "linearised",
        "ntk_start",
        "ntk_end",
    }
    lines = found.table().splitlines()
    assert len(lines) == 2 + len(found.rows)
    assert f"| {networks[0].name} | 2 | 8 | network |" in lines[2]
    labels = [text.get_text() for text in found.plot().get_legend().get_texts()]
    assert "linearised, depth 2" in labels
    assert "ntk end, depth 1" in labels


def test_a_kernel_that_is_given(rows):
    kernel = kk.kernels.InfiniteWidth(1, "erf")
    found = kk.diagnostics.equivalence(
        network(activation="tanh"), *rows, steps=5, infinite=kernel
    )
    assert not found.skipped
    x, y, x_test, _ = rows
    wide = {"dtype": "float64"}
    gram, cross = kernel.gram(x, **wide).numpy(), kernel.cross(x_test, x, **wide).numpy()
    error = np.mean((regression(gram, cross, y) - rows[3]) ** 2)
    assert of(found, "infinite_ntk")["error"] == pytest.approx(error, rel=1e-4)


def test_bad_input(rows):
    x, y, x_test, y_test = rows
    for arguments, kind, says in (
        ((keras.layers.Dense(1), *rows), TypeError, "must be a `keras.Model`"),
        ((network(last=2), *rows), ValueError, "must have one output"),
        ((network(), x, y[:-1], x_test, y_test), ValueError, "`y` must have one row"),
        ((network(), x, y, x_test, y_test[:-1]), ValueError, "`y_test` must have one row"),
        ((network(), x * np.nan, y, x_test, y_test), ValueError, "`x` holds NaN"),
        ((network(), *rows, 0), ValueError, "`steps` must be"),
    ):
        arguments = ([arguments[0]], *arguments[1:])
        with pytest.raises(kind, match=says):
            kk.diagnostics.equivalence(*arguments)


def test_a_run_and_its_page(tmp_path, monkeypatch):
    work = equivalence_jobs.work
    monkeypatch.setattr(equivalence_jobs, "WIDTHS", (8,))
    monkeypatch.setattr(equivalence_jobs, "DEPTHS", (1, 2))
    jobs = [job for job in equivalence_jobs.jobs([0]) if job["dataset"] == "simulation"]
    experiment = command.Experiment(lambda options: jobs, lambda job: work(job, 5))
    monkeypatch.setitem(command.EXPERIMENTS, "equivalence", experiment)
    command.main(["equivalence", "--out", str(tmp_path), "--workers", "0"])
    page = report.write(tmp_path, None).read_text()
    assert "Do networks predict as their kernels do?" in page
    assert "Mean gap over 1 seeds" in page
    assert "| simulation | 2 | 8 |" in page
    assert (tmp_path / "equivalence.png").exists()


def test_digits_of_an_experiment(data_folder, monkeypatch, mnist_cache):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    x, y = equivalence_jobs.data("mnist", 0)
    assert x.shape == (500, 784)
    assert set(y.ravel()) == {-1.0, 1.0}
