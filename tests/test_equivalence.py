"""Whether networks and their kernels predict the same, and how the gap is told."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from pages import page_of

import keras_kare as kk
from keras_kare.diagnostics.self_training import SelfTraining, regression
from keras_kare.experiments import command, convergence_jobs, equivalence_jobs, report
from keras_kare.experiments.convergence_figure import convergence_figure, slopes

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
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_network_linear_in_its_weights_is_its_linearisation(outputs, rng):
    """A network without hidden layers: the closed form is its gradient descent."""
    x, x_test = rng.normal(size=(20, D)), rng.normal(size=(9, D))
    y = rng.normal(size=(20, outputs))
    linear = keras.Sequential([keras.Input((D,)), keras.layers.Dense(outputs)])
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


def test_a_given_kernel_counts_as_it_has_been_trained(rows):
    kernel = kk.kernels.InfiniteWidth(1, bias_std=0.5)
    kernel.build((None, D))
    kernel.log_weight_std.assign(0.7)
    kernel.bias_std.assign(0.1)
    like = kk.kernels.InfiniteWidth(1, weight_std=np.exp(0.7), bias_std=0.1)
    each = network()
    start = each.get_weights()
    errors = []
    for infinite in (kernel, like):
        each.set_weights(start)
        found = kk.diagnostics.equivalence(each, *rows, steps=5, infinite=infinite)
        names = ("infinite_ntk", "infinite_nngp")
        errors.append([of(found, name)["error"] for name in names])
    np.testing.assert_allclose(*errors, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_several_outputs(rng):
    """Of a very wide network with two: means over what the outputs do one by one."""
    x, x_test = rng.normal(size=(25, D)), rng.normal(size=(15, D))
    y, y_test = (np.tanh(part[:, :2] + part[:, 1:3]) for part in (x, x_test))
    keras.utils.set_random_seed(0)
    wide = network(2048, last=2)
    kernel = kk.kernels.NTK(wide, "full")
    blocks, across = kernel.gram(x).numpy(), kernel.cross(x_test, x).numpy()
    found = kk.diagnostics.equivalence(wide, x, y, x_test, y_test, steps=500)
    gram, cross = (
        kk.kernels.InfiniteWidth(1, weight_std=2.0**0.5).cross(each, x).numpy()
        for each in (x, x_test)
    )
    expected = regression(gram, cross, y)
    error = of(found, "infinite_ntk")["error"]
    assert error == pytest.approx(np.mean((expected - y_test) ** 2), rel=1e-6)
    assert of(found, "linearised")["gap"] < 0.1
    by_blocks = np.linalg.tensorsolve(np.transpose(blocks, (0, 2, 1, 3)), y)
    error = np.mean((np.einsum("ijkl,jl->ik", across, by_blocks) - y_test) ** 2)
    assert of(found, "ntk_start")["error"] == pytest.approx(error, rel=1e-3)


def test_bad_input(rows):
    x, y, x_test, y_test = rows
    for arguments, kind, says in (
        ((keras.layers.Dense(1), *rows), TypeError, "must be a `keras.Model`"),
        ((network(last=2), *rows), ValueError, "an output for each column of `y`"),
        ((network(), *rows[:3], y_test.repeat(2, 1)), ValueError, "y_test of shape"),
        ((network(), x, y[:-1], x_test, y_test), ValueError, "`y` must have one row"),
        ((network(), x, y, x_test, y_test[:-1]), ValueError, "`y_test` must have one row"),
        ((network(), x * np.nan, y, x_test, y_test), ValueError, "`x` holds NaN"),
        ((network(), *rows, 0), ValueError, "`steps` must be"),
    ):
        arguments = ([arguments[0]], *arguments[1:])
        with pytest.raises(kind, match=says):
            kk.diagnostics.equivalence(*arguments)
    with pytest.raises(ValueError, match="a list of at least one"):
        kk.diagnostics.equivalence([], *rows)
    with pytest.raises(TypeError, match=r"`network` must be a `keras.Model`, or a list"):
        kk.diagnostics.equivalence(kk.kernels.Gaussian(), *rows)
    with pytest.raises(TypeError, match=r"`infinite` must be a `.*InfiniteWidth`, or None"):
        kk.diagnostics.equivalence(network(), *rows, infinite=kk.kernels.Gaussian())


def test_a_run_and_its_page(tmp_path, monkeypatch):
    work = equivalence_jobs.work
    monkeypatch.setattr(equivalence_jobs, "WIDTHS", (8,))
    monkeypatch.setattr(equivalence_jobs, "DEPTHS", (1, 2))
    jobs = [job for job in equivalence_jobs.jobs([0]) if job["dataset"] == "simulation"]
    page = page_of("equivalence", jobs, lambda job: work(job, 5), tmp_path, monkeypatch)
    assert "Do networks predict as their kernels do?" in page
    assert "Mean gap over 1 seeds" in page
    assert "| simulation | 2 | 8 |" in page
    assert (tmp_path / "equivalence.png").exists()


def test_random_networks_and_their_page(tmp_path, monkeypatch, rng):
    x = rng.normal(size=(60, D)).astype("float32")
    monkeypatch.setattr(equivalence_jobs, "data", lambda name, seed: (x, None))
    monkeypatch.setattr(convergence_jobs, "WIDTHS", (16, 256))
    monkeypatch.setattr(convergence_jobs, "ACTIVATIONS", ("relu",))
    arguments = ["--out", str(tmp_path), "--workers", "0", "--seeds", "2"]
    command.main(["convergence", *arguments])
    page = report.write(tmp_path, None).read_text()
    assert "| activation | depth | width 16 | width 256 | fitted slope |" in page
    assert (tmp_path / "convergence.png").exists()
    rows = pd.read_csv(tmp_path / "convergence" / "convergence.csv")
    assert len(rows) == 2 * 2 * 2
    assert np.all(rows[rows.width == 256].error < 0.8)


def test_layers_of_random_networks_are_independent():
    network = convergence_jobs.drawn(D, 3, 16, "relu")
    weights = [w.ravel() for w in network.get_weights()]
    assert [len(w) for w in weights] == [4 * 16, 256, 256, 16]
    assert abs(np.corrcoef(weights[1], weights[2])[0, 1]) < 0.3
    assert np.std(weights[1]) == pytest.approx(1.0, abs=0.2)
    assert network.layers[-1].activation is keras.activations.linear


def test_slopes_are_of_logarithms():
    rows = pd.DataFrame(
        {"activation": "relu", "depth": depth, "width": width, "seed": seed}
        | {"error": (1.0 + seed) * width**power}
        for depth, power in ((1, -0.5), (3, -0.25))
        for width in (32, 128, 512)
        for seed in range(3)
    )
    np.testing.assert_allclose(slopes(rows)["slope"], [-0.5, -0.25])
    (axis,) = convergence_figure(rows).axes
    labels = axis.get_legend_handles_labels()[1]
    assert labels[0] == "relu, 1 hidden layer: slope -0.50"
    assert labels[1] == "relu, 3 hidden layers: slope -0.25"
    with pytest.raises(ValueError, match="error"):
        convergence_figure(rows.drop(columns="error"))


def test_digits_of_an_experiment(data_folder, monkeypatch, mnist_cache):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    x, y = equivalence_jobs.data("mnist", 0)
    assert x.shape == (500, 784)
    assert set(y.ravel()) == {-1.0, 1.0}
