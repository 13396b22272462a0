"""Why KARE is fooled: machines, degrees of freedom, disturbed steps, jobs and page."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from pages import page_of

import keras_kare as kk
from keras_kare.experiments import fooled_jobs, fooled_report
from keras_kare.experiments.fooled_figure import fooled_figure
from keras_kare.experiments.fooled_jobs import Machine
from keras_kare.experiments.fooled_kernels import RATES, Kind, Trained
from keras_kare.recipes.descent import Descent

N, M, D = 24, 6, 3


def job(**parts):
    given = {**fooled_jobs.BASE, "dataset": "simulation", "rows": N, "width": 4}
    return {**given, "remedy": "none", "seed": 0, **parts}


def problem(rng):
    a = rng.normal(size=(N + M, N + M))
    return a @ a.T, rng.normal(size=(N, 1)), rng.normal(size=(M, 1))


def test_a_machine_is_the_librarys(rng):
    gram, y, y_test = problem(rng)
    machine, inner = Machine(gram, N, y, 0.3), gram[:N, :N]
    z = 0.3 * np.trace(inner) / N**2
    errors = machine.errors(y_test)
    assert errors["kare"] == pytest.approx(float(kk.risk.kare(y, inner, z)))
    inverse = np.linalg.inv(inner / N + z * np.eye(N))
    np.testing.assert_allclose(machine.predict(), gram[N:, :N] @ inverse @ y / N)
    np.testing.assert_allclose(machine.fitted, inner @ inverse @ y / N)
    assert machine.freedom == pytest.approx(np.trace(inner @ inverse) / N)
    assert errors["test"] == pytest.approx(np.mean((machine.predict() - y_test) ** 2))
    assert errors["best_test"] <= errors["test"]


def test_directions_are_the_trace_that_training_adds(rng, monkeypatch):
    """Of a kernel that is `A + y yᵀ`, whose predictions TensorFlow differentiates."""
    gram, y, _ = problem(rng)
    base = gram[:N, :N] / N

    class Training:
        seed = 0

        def grams(self, x, y, x_test):
            return [base, base + y @ y.T]

    def fitted(y):
        k = tf.constant(base) + y @ tf.transpose(y)
        unit = 0.5 * tf.linalg.trace(k) / N**2
        return k / N @ tf.linalg.solve(k / N + unit * tf.eye(N, dtype="float64"), y)

    monkeypatch.setattr(fooled_jobs, "PROBES", 3000)
    monkeypatch.setattr(fooled_jobs, "SHIFT", 1e-4)
    machines = [Machine(k, N, y, 0.5) for k in Training().grams(None, y, None)]
    data = kk.datasets.Split(np.zeros((N, D)), y, None, None)
    none, added = fooled_jobs._directions(Training(), data, 0.5, machines)
    variable = tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = fitted(variable)
    trace = float(np.trace(tape.jacobian(value, variable).numpy().reshape(N, N)))
    assert none == pytest.approx(0.0, abs=1e-6)
    assert added == pytest.approx(trace - machines[1].freedom, rel=0.05)


@pytest.mark.parametrize("name", RATES)
def test_kernels_train_and_start_again(rng, name):
    station = Trained(Kind(name, D, 4, 1.0))
    x, y = rng.normal(size=(N, D)), rng.normal(size=(N, 1))
    found = []
    for _ in range(2):
        station.start(0)
        before = station.gram(x)
        assert station.train(x, y, 5, 1, 0)
        found.append(station.gram(x))
    assert not np.allclose(before, found[0], rtol=1e-3)
    np.testing.assert_array_equal(*found)
    y = y.astype("float32")
    loss = kk.losses.KARE(1.0, relative=True)
    assert loss(y, found[0]) < loss(y, before)


def test_only_weights_of_the_mixture_train():
    kernel = Trained(Kind("mixture", D, 4, 1.0)).kernel
    assert [tuple(v.shape) for v in kernel.trainable_variables] == [()] * 12


@pytest.mark.parametrize(
    "kind",
    [
        Kind("diagonal", D, 4, 1.0, inputs=0.5),
        Kind("diagonal", D, 4, 1.0, targets=0.5),
        Kind("diagonal", D, 4, 1.0, "holdout", shuffled=True),
    ],
)
def test_each_step_sees_something_else(rng, kind):
    descent = Trained(kind)._descent
    x, y = (tf.constant(rng.normal(size=(4000, k)), "float32") for k in (D, 1))
    first, again, second = (descent.seen([x, y], tf.constant([0, i])) for i in (3, 3, 4))
    for one, same, other, plain in zip(first, again, second, (x, y), strict=True):
        np.testing.assert_array_equal(one, same)
        if kind.shuffled:
            np.testing.assert_allclose(np.sort(one, axis=0), np.sort(plain, axis=0))
        noise = kind.inputs if plain is x else kind.targets
        if noise:
            error, deviation = one - plain, noise * np.std(plain)
            assert np.std(error) == pytest.approx(deviation, rel=0.05)
            assert np.mean(error) == pytest.approx(0.0, abs=0.05)
        if noise or kind.shuffled:
            assert np.mean(one == other) < 0.1
        else:
            np.testing.assert_array_equal(one, plain)
    if kind.shuffled:  # rows stay whole
        at = [int(np.argmin(np.abs(y - value))) for value in first[1][:20]]
        np.testing.assert_array_equal(first[0][:20], tf.gather(x, at))


def test_noise_on_inputs_is_not_that_on_targets():
    descent = Trained(Kind("diagonal", 1, 4, 1.0, inputs=1.0, targets=1.0))._descent
    values = tf.constant(np.linspace(-1.0, 1.0, 100)[:, None], "float32")
    x, y = descent.seen([values, values], tf.constant([0, 0]))
    assert np.abs(np.corrcoef(np.ravel(x - values), np.ravel(y - values))[0, 1]) < 0.5


def test_a_long_training_fools_kare():
    rows = fooled_jobs.work(job(rows=60, width=32), (0, 100))
    assert rows[0]["directions"] == pytest.approx(0.0, abs=1e-9)
    assert rows[1]["directions"] > 10.0
    assert rows[1]["test"] > 5.0 * rows[1]["kare"]
    assert rows[1]["cross_fitted"] > 5.0 * rows[1]["kare"]
    assert rows[1]["corrected"] > rows[1]["kare"]


def test_the_mean_of_starts_is_of_their_kernels():
    one, two = (fooled_jobs.work(job(remedy="starts", seed=s), (0,)) for s in (0, 0))
    assert one == two
    plain = fooled_jobs.work(job(), (0,))
    assert plain[0]["kare"] != one[0]["kare"]
    assert "directions" not in one[0]


@pytest.mark.parametrize("name", ["simulation", "credit", "mnist"])
def test_rows_of_jobs(data_folder, monkeypatch, mnist_cache, name):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    given = job(dataset=name, rows=50)
    clean = fooled_jobs.load(given)
    noisy = fooled_jobs.load({**given, "noise": 0.3})
    scaled = fooled_jobs.load({**given, "kind": "full"})
    assert clean.x.shape[0] == 50
    assert len(clean.x_test) >= 900
    np.testing.assert_array_equal(clean.x, noisy.x)
    if name == "simulation":
        assert np.std(clean.y_test) == pytest.approx(1.0)
        assert np.std(noisy.y_test - clean.y_test) == pytest.approx(0.3, rel=0.1)
    else:
        assert set(np.unique(clean.y)) == {-1.0, 1.0}
        assert np.mean(noisy.y_test != clean.y_test) == pytest.approx(0.3, abs=0.05)
    distances = np.linalg.norm(scaled.x[:, None] - scaled.x, axis=2)
    assert np.median(distances[np.triu_indices(50, 1)]) == pytest.approx(1.0)


def test_a_run_and_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(fooled_jobs, "DATASETS", ("simulation",))
    small = {**fooled_jobs.BASE, "rows": N, "width": 4}
    factors = {"width": (8,)}
    remedies = {name: fooled_jobs.REMEDIES[name] for name in ("none", "starts")}
    for module in (fooled_jobs, fooled_report):
        monkeypatch.setattr(module, "BASE", small)
        monkeypatch.setattr(module, "KINDS", ("ntk",))
        monkeypatch.setattr(module, "FACTORS", factors)
        monkeypatch.setattr(module, "REMEDIES", remedies)
    work = fooled_jobs.work
    few = fooled_jobs.jobs((0, 1))
    page = page_of("fooled", few, lambda job: work(job, (0, 30)), tmp_path, monkeypatch)
    assert "Why KARE is fooled, and what helps" in page
    assert "| width | 4 |" in page
    assert "| width | 8 |" in page
    assert "| ntk | none, all degrees of freedom | 5.00 |" in page
    assert "| ntk | starts | 4.00 |" in page
    assert "nan" not in page.replace("| nan |", "")
    assert (tmp_path / "fooled.png").exists()
    rows = pd.read_csv(tmp_path / "fooled" / "fooled.csv")
    assert len(rows) == 2 * 2 * 3
    table = fooled_report.remedies(rows)
    here = rows[(rows.kind == "ntk") & (rows.width == 4) & (rows.remedy == "none")]
    start, end = (here[here.steps == s].set_index("seed").best_test for s in (0, 30))
    assert table["simulation, end"][0] == pytest.approx(
        float(np.exp(np.log(end / start).mean()))
    )


def test_the_figure_has_a_panel_a_data_set():
    rows = pd.DataFrame(
        {"dataset": name, "seed": seed, "steps": steps, "test": 1.0 + seed, "kare": 0.5}
        | {"corrected": 0.7, "cross_fitted": 1.1}
        for name in ("a", "b")
        for seed in range(3)
        for steps in (0, 10)
    )
    axes = fooled_figure(rows).axes
    assert [axis.get_title() for axis in axes] == ["a", "b"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [2.0, 2.0])
    with pytest.raises(ValueError, match="kare"):
        fooled_figure(rows.drop(columns="kare"))


def test_a_descent_of_a_kernel_without_a_network_equals_fit(rng, float64):
    x, y = rng.normal(size=(N, D)), rng.normal(size=(N, 1))
    kernels = [kk.kernels.Laplace(1.0, metric="diagonal") for _ in range(2)]
    for kernel in kernels:
        kernel.build((None, D))
    loss = kk.losses.KARE(0.1)
    row = tf.TensorSpec((D,), "float64")
    descent = Descent(kernels[0], loss, keras.optimizers.Adam(), row)
    losses = descent.run(x, y, learning_rate=0.05, steps=4)
    model = kk.KAREModel(kernels[1], head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.Adam(0.05), loss)
    history = model.fit(x, y, batch_size=N, epochs=4, shuffle=False, verbose=0)
    np.testing.assert_allclose(losses, history.history["loss"], rtol=1e-9)
