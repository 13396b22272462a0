"""The machinery of the experiments: results on disk, processes, trainings, protocols."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest

import keras_kare as kk
from keras_kare import datasets
from keras_kare.datasets import UCIDataset, signed_one_hot
from keras_kare.experiments import (
    command,
    image_jobs,
    protocols,
    runner,
    settings,
    simulation_jobs,
    uci_jobs,
)
from keras_kare.experiments import store as store_module
from keras_kare.experiments.comparison import compare
from keras_kare.experiments.contenders import CONTENDERS
from keras_kare.experiments.families import WITH_OUR_INPUTS, families
from keras_kare.experiments.lab import Lab, batches_of, initial_weights, lab, values
from keras_kare.experiments.protocols import Family
from keras_kare.experiments.scaling import FEW, one_hot, standardize
from keras_kare.experiments.settings import Architecture, Training
from keras_kare.experiments.store import Store
from keras_kare.experiments.task import Task
from keras_kare.recipes.cross_fitting import folds_of
from keras_kare.recipes.mixtures import Kernels

# Results on disk -------------------------------------------------------------------------

JOB = {"experiment": "toy", "dataset": "a/b", "seed": 3}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "new" / "toy")


def lines_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


class TestStore:
    def test_order_of_keys_does_not_matter(self, store):
        paths = {store.path(dict(order)) for order in itertools.permutations(JOB.items())}
        assert len(paths) == 1
        assert paths.pop().parent == store.jobs

    def test_different_jobs_have_different_files(self, store):
        long = {"experiment": "x" * 300}
        jobs = [JOB, {**JOB, "seed": 4}, {**JOB, "seed": "3"}, {**JOB, "more": None}]
        jobs += [long, {**long, "seed": 1}]
        assert len({store.path(job) for job in jobs}) == len(jobs)
        for job in jobs:
            store.write(job, [], 0.0)  # a name that a file may have

    def test_keeps_what_was_written(self, store):
        assert not store.done(JOB)
        store.write(JOB, [{"mse": 0.1}], 12.3456)
        assert store.done(JOB)
        assert Store(store.folder).done(JOB)
        kept = json.loads(store.path(JOB).read_text())
        assert kept["job"] == JOB
        assert kept["rows"] == [{"mse": 0.1}]
        assert kept["seconds"] == pytest.approx(12.3456, abs=1e-3)
        assert kept["versions"] == store_module.versions()
        assert kept["versions"]["keras"] == keras.__version__

    def test_writes_whole_or_not_at_all(self, store, monkeypatch):
        store.write(JOB, [{"mse": 1.0}], 1.0)
        before = store.path(JOB).read_text()

        def full(*arguments):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            store.write(JOB, [{"mse": 2.0}], 1.0)
        other = {**JOB, "seed": 9}
        with pytest.raises(OSError, match="no space"):
            store.write(other, [], 1.0)
        assert store.path(JOB).read_text() == before
        assert not store.done(other)

    def test_collects_a_tidy_table(self, store):
        assert store.collect("toy") == []  # nothing yet
        jobs = [{**JOB, "seed": seed} for seed in (2, 0, 1)]
        store.write(jobs[0], [{"mse": 0.1}, {"mse": None, "note": "a,b"}], 5400.0)
        store.write(jobs[1], [{"mse": 0.5, "seconds": 3.0}], 1800.0)
        rows = store.collect("toy")
        assert [row["seed"] for row in rows] == [
            0,
            2,
            2,
        ]  # in the order of the jobs' values
        assert all("seconds" not in row for row in rows)

        lines = lines_of(store.folder / "toy.csv")
        assert list(lines[0]) == [*JOB, "mse", "note"]
        assert [line["mse"] for line in lines] == ["0.5", "0.1", ""]
        assert lines[2]["note"] == "a,b"
        summary = json.loads((store.folder / "toy.json").read_text())
        assert summary["jobs"] == 2
        assert summary["core_hours"] == 2.0
        assert summary["versions"] == [store_module.versions()]
        assert not list(store.folder.rglob("*.part"))

    def test_tables_do_not_depend_on_time(self, tmp_path):
        tables = []
        for seconds in (1.0, 2.0):
            store = Store(tmp_path / str(seconds))
            store.write(JOB, [{"mse": 0.1, "seconds": seconds}], seconds)
            store.collect("toy")
            tables.append((store.folder / "toy.csv").read_bytes())
        assert tables[0] == tables[1]

    def test_results_of_other_grids_are_not_shown(self, store, data_folder, monkeypatch):
        monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
        (job,) = uci_jobs.jobs("honest", ["iris"], ["laplace"])
        for stale in ({**job, "grid": "0"}, {**job, "family": "phrenology"}):
            assert not uci_jobs.current(stale)
            store.write(stale, [{"accuracy": 1.0}], 0.0)
        store.write(job, [{"accuracy": 2.0}], 0.0)
        assert [row["accuracy"] for row in store.collect("uci", uci_jobs.current)] == [2.0]

    def test_large_data_sets_get_less_of_the_papers_grid(self, data_folder, monkeypatch):
        monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
        found = {
            name: uci_jobs.jobs("paper", [name], ["kare", "mse"])
            for name in ("iris", "abalone")
        }
        for small, large in zip(found["iris"], found["abalone"], strict=True):
            assert small["family"] == large["family"]
            assert small["grid"] != large["grid"]
            assert uci_jobs.current(small)
            assert uci_jobs.current(large)
            assert not uci_jobs.current({**small, "dataset": "abalone"})
        for large, depths in ((False, {1, 2, 3, 4, 5}), (True, {1, 2, 3})):
            for family in ("kare", "mse"):
                grid = families("paper", large)[family].configurations
                assert {configuration["depth"] for configuration in grid} == depths

    def test_other_versions_are_told(self, store, monkeypatch):
        store.write(JOB, [], 1.0)
        monkeypatch.setattr(store_module, "versions", lambda: {"keras": "2"})
        other = {**JOB, "seed": 4}
        store.write(other, [], 1.0)
        store.collect("toy")
        assert len(json.loads((store.folder / "toy.json").read_text())["versions"]) == 2


# Processes -------------------------------------------------------------------------------


def work(job):
    if job["do"] == "fail":
        raise ArithmeticError(f"job {job['n']}")
    if job["do"] == "die":
        os._exit(1)
    if job["do"] == "wrong":
        return [{"n": {job["n"]}}]  # a set is no JSON
    return [{"square": job["n"] ** 2, "process": os.getpid(), "at": time.monotonic()}]


def jobs_of(*whats):
    return [{"do": what, "n": n} for n, what in enumerate(whats)]


class TestRunner:
    def test_two_processes_keep_all_but_what_failed(self, store):
        jobs = jobs_of("work", "fail", "work", "fail", "work", "work")
        with pytest.raises(RuntimeError, match=r"2 jobs failed.*'n': [13]") as raised:
            runner.run(jobs, work, store, workers=2)
        assert isinstance(raised.value.__cause__, ArithmeticError)
        rows = store.collect("toy")
        assert [row["square"] for row in rows] == [0, 4, 16, 25]
        assert os.getpid() not in {row["process"] for row in rows}
        assert len({row["process"] for row in rows}) <= 2

    def test_a_process_that_dies_is_an_error(self, store):
        jobs = jobs_of("work", "die", "work")
        store.write(jobs[0], [{"square": 0}], 0.0)
        with pytest.raises(RuntimeError):
            runner.run(jobs, work, store, workers=1)
        assert store.done(jobs[0])
        assert not store.done(jobs[1])

    def test_jobs_start_in_order_and_once(self, store):
        jobs = jobs_of(*["work"] * 5)
        store.write(jobs[2], [{"square": -1}], 0.0)
        assert runner.run(jobs, work, store, workers=0) == 0
        rows = store.collect("toy")
        assert [row["square"] for row in rows] == [0, 1, -1, 9, 16]
        begun = [row["at"] for row in rows if "at" in row]
        assert begun == sorted(begun)
        assert {row.get("process", os.getpid()) for row in rows} == {os.getpid()}
        assert runner.run(jobs, _never, store, workers=0) == 0

    def test_a_failure_keeps_the_others(self, store):
        jobs = jobs_of("fail", "work", "fail", "work")
        with pytest.raises(RuntimeError, match=r"2 jobs failed.*'n': 0"):
            runner.run(jobs, work, store, workers=0)
        assert [store.done(job) for job in jobs] == [False, True, False, True]
        with pytest.raises(RuntimeError, match="2 jobs failed"):  # and tries again
            runner.run(jobs, work, store, workers=0)

    def test_rows_that_are_no_json_are_a_failure(self, store):
        jobs = jobs_of("wrong", "work")
        with pytest.raises(RuntimeError, match=r"1 jobs failed.*'n': 0"):
            runner.run(jobs, work, store, workers=0)
        assert [store.done(job) for job in jobs] == [False, True]

    def test_results_are_kept_at_once(self, store):
        jobs = jobs_of(*["work"] * 6)

        def look(job):
            assert all(store.done(other) for other in jobs[: job["n"]])
            return []

        assert runner.run(jobs, look, store, workers=0) == 0

    def test_no_time_starts_nothing(self, store):
        jobs = jobs_of(*["work"] * 3)
        assert runner.run(jobs, _never, store, workers=0, budget=0) == 3
        store.write(jobs[1], [], 0.0)
        assert runner.run(jobs, _never, store, workers=0, budget=0.0) == 2
        assert runner.run(jobs, work, store, workers=0, budget=1.0) == 0

    def test_no_jobs(self, store):
        assert runner.run([], _never, store, workers=0) == 0


def _never(job):
    raise AssertionError(f"{job} was started")


# Networks and trainings ------------------------------------------------------------------

SMALL = Architecture(depth=2, width=6)


def data(rng, n=40, features=3, targets=1):
    x = rng.normal(size=(n, features))
    return x, np.sin(x[:, :1] + np.arange(targets))


@pytest.mark.parametrize(("name", "scale"), [("torch", 1.0), ("paper", np.sqrt(6.0))])
def test_initial_weights_are_uniform_within_their_bounds(name, scale):
    network = lab(50, 20, Architecture(depth=2, width=100)).network
    start = initial_weights(network, name, 0)
    assert [a.shape for a in start] == [a.shape for a in network.get_weights()]
    for kernel, bias in zip(start[::2], start[1::2], strict=True):
        bound = 1.0 / np.sqrt(len(kernel))
        for part, limit in ((kernel, scale * bound), (bias, bound)):
            assert 0.8 * limit < np.max(np.abs(part)) <= limit
        assert np.std(kernel) == pytest.approx(scale * bound / np.sqrt(3.0), rel=0.05)


def test_initial_weights_are_those_of_a_seed():
    network = lab(3, 1, SMALL).network
    first, again = (initial_weights(network, "torch", 1) for _ in range(2))
    other = initial_weights(network, "torch", 2)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(a != c)


def test_unknown_initialization():
    network = lab(3, 1, SMALL).network
    with pytest.raises(ValueError, match=r"`initialization`.*Received: .*'he'"):
        initial_weights(network, "he", 0)


def test_networks_have_the_architecture():
    network = lab(3, 2, Architecture(depth=4, width=5, activation="tanh")).network
    assert [layer.units for layer in network.layers] == [5] * 4 + [2]
    assert [layer.activation.__name__ for layer in network.layers] == ["tanh"] * 4 + [
        "linear"
    ]


def test_path_is_a_dense_solve(rng):
    x, y = data(rng, targets=2)
    a = rng.normal(size=(50, 60))
    gram, cross = a[:40] @ a[:40].T, a[40:] @ a[:40].T
    ridges = (1e-3, 1.0, 100.0)
    found = values(Kernels(gram, cross, np.zeros(10)), y, ridges)
    assert tuple(found) == ridges
    for ridge, predicted in found.items():
        absolute = ridge * np.trace(gram) / len(x) ** 2
        expected = cross @ np.linalg.solve(gram + len(x) * absolute * np.eye(len(x)), y)
        np.testing.assert_allclose(predicted, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def station():
    return Lab(3, 1, SMALL)


def test_predictions_are_the_heads(rng, station):
    x, y = data(rng, targets=2)
    x_test, _ = data(rng, n=7)
    station.draw("torch", 0)
    found = station.predictions(x, y, x_test, (0.01, 1.0))
    for ridge, predicted in found.items():
        model = kk.KAREModel(station.kernel, head=kk.NTKRidgeHead(ridge=ridge))
        model.fit_head(x.astype("float32"), y.astype("float32"))
        expected = np.asarray(model(x_test.astype("float32")))
        np.testing.assert_allclose(predicted, expected, atol=1e-4)


def test_no_predictions_of_a_kernel_that_is_not_finite(rng, station):
    x, y = data(rng)
    weights = station.network.get_weights()
    station.network.set_weights([np.full_like(w, np.nan) for w in weights])
    assert station.predictions(x, y, x[:5], (1.0,)) == {}


def test_squared_error_is_trained_as_keras_does(rng, station):
    x, y = (a.astype("float32") for a in data(rng))
    station.draw("torch", 0)
    network = keras.models.clone_model(station.network)
    network.set_weights(station.network.get_weights())
    network.compile(keras.optimizers.SGD(0.1), "mse")
    network.fit(x, y, batch_size=len(x), epochs=20, shuffle=False, verbose=0)
    for size in (None, len(x), 1000):
        station.draw("torch", 0)
        station.train_mse(x, y, Training(0.1, 20, size), seed=0)
        for a, b in zip(station.network.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_array_equal(station.outputs(x), np.asarray(station.network(x)))


def test_batches_of_squared_error_are_those_of_a_seed(rng, station):
    x, y = data(rng)
    losses, ends = [], []
    for seed in (0, 0, 1):
        station.draw("torch", 0)
        losses.append(np.mean((station.outputs(x) - y) ** 2))
        station.train_mse(x, y, Training(0.1, 30, 7), seed)
        losses.append(np.mean((station.outputs(x) - y) ** 2))
        ends.append(np.concatenate([w.ravel() for w in station.network.get_weights()]))
    assert losses[1] < 0.5 * losses[0]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_kare_falls_and_each_training_starts_afresh(rng, station):
    x, y = data(rng)
    ends = []
    for _ in range(2):
        station.draw("torch", 0)
        assert station.train_kare(x, y, Training(1.0, 5, 20))
        ends.append(np.concatenate([w.ravel() for w in station.network.get_weights()]))
    np.testing.assert_array_equal(*ends)
    x, y = (a.astype("float32") for a in (x, y))
    trained = float(kk.risk.kare(y, station.kernel.gram(x), 0.1))
    station.draw("torch", 0)
    assert trained < float(kk.risk.kare(y, station.kernel.gram(x), 0.1))


def test_kare_that_diverges_is_told(rng, station):
    x, y = data(rng)
    station.draw("torch", 0)
    assert not station.train_kare(x, y, Training(1e12, 50))


@pytest.mark.parametrize(
    ("rows", "size", "batches"), [(10, None, 1), (10, 10, 1), (11, 10, 2), (9, 100, 1)]
)
def test_batches_of(rows, size, batches):
    assert batches_of(rows, size) == batches


class TestComparison:
    RIDGES = (0.1, 1.0)

    def rows(self, station, seed=0, epochs=3, rate=1.0):
        split = datasets.simulation(rows=50, features=3, seed=1)
        kare, mse = Training(rate, epochs), Training(0.1 * rate, epochs)
        rows = compare(station, split, "torch", seed, kare, mse, self.RIDGES)
        assert all(row["seconds"] >= 0.0 for row in rows)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    def test_four_methods_from_one_start(self, station):
        rows = self.rows(station)
        kinds = [(row["method"], row["relative_ridge"]) for row in rows]
        machines = itertools.product(("ntk", "ntk_kare", "after_ntk"), self.RIDGES)
        assert sorted(kinds, key=str) == sorted([*machines, ("network", None)], key=str)
        assert all(row["mse"] > 0.0 for row in rows)
        assert self.rows(station) == rows
        assert self.rows(station, seed=1) != rows

        # without training, all kernels are the one at the start
        still = {tuple(r.values()): r["mse"] for r in self.rows(station, epochs=0)}
        errors = {(m, r): e for m, r, e in still}
        for method, ridge in itertools.product(("ntk_kare", "after_ntk"), self.RIDGES):
            assert errors[method, ridge] == errors["ntk", ridge]

    def test_divergence_is_a_result(self, station):
        rows = self.rows(station, epochs=60, rate=1e8)
        for row in rows:
            assert row["mse"] is None or np.isfinite(row["mse"])
        assert {r["mse"] for r in rows if r["method"] in ("network", "after_ntk")} == {None}
        assert None not in {r["mse"] for r in rows if r["method"] == "ntk"}


# Jobs ------------------------------------------------------------------------------------


def test_jobs_are_different_and_of_the_paper(tmp_path):
    store = Store(tmp_path)
    figure1 = simulation_jobs.jobs(settings.SEEDS, settings.INITIALIZATIONS)
    figure2 = image_jobs.jobs(["mnist", *image_jobs.HIGGS], settings.SEEDS, ["torch"])
    assert len(figure1) == 2 * 10 * 3 * 2
    assert len(figure2) == 3 * 10 * 6
    jobs = figure1 + figure2
    assert len({store.path(job) for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    "arguments",
    [
        "mars",
        "uci --protocol generous",
        "uci --methods laplac",
        "simulation --initialization he",
        "simulation --workers two",
        "simulation --seeds 11",
        "uci --datasets atlantis",
        "uci --protocol honest --datasets adult",
        "uci --protocol repeated --half rest",
        "uci --protocol repeated --datasets iris --half confirm",
        "uci --protocol repeated --datasets zoo wine --half screen",
        "uci --protocol repeated --half confirm --methods relu",
        "uci --protocol honest --methods recipe",
        "report --reference /nowhere",
    ],
)
def test_command_line_refuses(arguments, tmp_path, capsys, data_folder, monkeypatch):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    words = [*arguments.split(), "--out", str(tmp_path), "--budget", "0"]
    if "--workers" not in words:
        words += ["--workers", "0"]
    with pytest.raises(SystemExit):
        command.main(words)
    assert arguments.split()[-1] in capsys.readouterr().err


def test_command_line_says_what_is_left(tmp_path, capsys):
    words = "simulation --seeds 1 --budget 0 --workers 0 --out".split()
    command.main([*words, str(tmp_path)])
    said = capsys.readouterr().out
    count = len(simulation_jobs.jobs([0], settings.INITIALIZATIONS))
    assert f"0 of {count} jobs are done" in said
    assert "goes on" in said
    summary = json.loads((tmp_path / "simulation" / "simulation.json").read_text())
    assert summary["jobs"] == 0


# Scaling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [standardize, one_hot])
def test_scaling_uses_training_rows_only(rng, scale):
    x = np.column_stack(
        [rng.normal(5.0, 3.0, 60), rng.integers(0, 4, 60), np.full(60, 7.0)]
    )
    x_test = rng.normal(size=(9, 3)) * 100.0
    before = x.copy(), x_test.copy()
    scaled, test = scale(x, x_test, 69)
    np.testing.assert_array_equal(scale(x, x_test[:2])[0], scaled)
    np.testing.assert_array_equal(scale(x, x_test[:2])[1], test[:2])
    np.testing.assert_array_equal(scale(x, x)[1], scaled)
    np.testing.assert_allclose(scaled[:, :2].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(scaled[:, :2].std(axis=0), 1.0)
    assert np.all(scaled[:, 2] == 0.0)
    assert np.all(test[:, 2] == 0.0)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(x_test, before[1])


def test_one_hot_columns():
    """Of 3 to `FEW` values in training rows; a value that only test rows have is none."""
    n = 3 * (FEW + 1)
    x = np.column_stack([np.arange(n) % k for k in (2, 3, FEW, FEW + 1)]).astype(float)
    x_test = np.array([[1.0, 2.0, 0.0, 0.0], [0.0, 5.0, -1.0, 0.5]])
    scaled, test = one_hot(x, x_test)
    assert scaled.shape == (n, 4 + 3 + FEW)
    np.testing.assert_array_equal(scaled[:, :4], standardize(x, x_test)[0])
    three, few = scaled[:, 4:7], scaled[:, 7:]
    for block in (three, few):
        assert np.all(np.count_nonzero(block, axis=1) == 1)
    assert np.argmax(test[0, 4:7]) == 2
    assert np.all(test[1, 4:] == 0.0)


# Protocols -------------------------------------------------------------------------------

ROWS, CLASSES = 96, 3


def toy(rng, classes=CLASSES):
    labels = rng.permutation(np.arange(ROWS) % classes)
    x = np.eye(classes, 4)[labels] + 0.6 * rng.normal(size=(ROWS, 4))
    order = rng.permutation(ROWS)
    folds = tuple((np.setdiff1d(order, part), part) for part in np.split(order, 4))
    split = (order[::2], order[1::2])
    return UCIDataset("toy", x, labels, classes, split, folds)


def ridge_scores(configuration, task):
    """Two methods: least squares along a ridge, on the inputs or on random features."""
    x, labels, classes, x_test, seed = task
    y = signed_one_hot(labels, classes)
    width = np.random.default_rng(seed).normal(size=(x.shape[1], 12))

    def scores(features, test):
        return {
            f"ridge={ridge:g}": test
            @ np.linalg.solve(
                features.T @ features + ridge * np.eye(len(features.T)), features.T @ y
            )
            for ridge in (1e-6, 1.0, 1e4)
        }

    power = configuration["power"]
    bent = [np.tanh(power * a @ width) for a in (x, x_test)]
    return {"linear": scores(x**power, x_test**power), "bent": scores(*bent)}


TOY = Family(
    ("linear", "bent"),
    ({"power": 3}, {"power": 1}),
    ridge_scores,
    standardize,
    "squared_error",
)


@pytest.fixture(params=["accuracy", "squared_error"])
def family(request):
    return dataclasses.replace(TOY, criterion=request.param)


def by(rows, *keys):
    return {tuple(row[key] for key in keys): row for row in rows}


class TestProtocols:
    @pytest.mark.parametrize("classes", [2, CLASSES])
    def test_honest_has_a_row_a_fold_and_method(self, rng, family, classes):
        rows = protocols.honest(family, toy(rng, classes))
        found = by(rows, "method", "fold")
        assert set(found) == set(itertools.product(("linear", "bent"), range(4)))
        assert len(rows) == len(found)
        assert all(row["protocol"] == "honest" for row in rows)
        assert all(100.0 / classes < row["accuracy"] <= 100.0 for row in rows)
        assert all(re.match("power=[13] ridge=", row["chosen"]) for row in rows)

    def test_honest_choices_do_not_see_test_rows(self, rng, family):
        data = toy(rng)
        before = by(protocols.honest(family, data), "method", "fold")
        for fold, (_, test) in enumerate(data.folds):
            x, labels = data.x.copy(), data.labels.copy()
            x[test] = 1e3 * rng.normal(size=x[test].shape)
            wrong = dataclasses.replace(data, x=x)
            labels[test] = (labels[test] + 1) % CLASSES
            moved = dataclasses.replace(data, labels=labels)
            for other in (wrong, moved):
                after = by(protocols.honest(family, other), "method", "fold")
                for method in ("linear", "bent"):
                    assert after[method, fold]["chosen"] == before[method, fold]["chosen"]
                assert any(
                    after[m, fold]["accuracy"] < before[m, fold]["accuracy"]
                    for m in ("linear", "bent")
                )

    def test_honest_fits_never_get_test_rows(self, rng):
        """Whatever is fitted in a fold is of its training rows."""
        data = toy(rng)
        marks = np.arange(ROWS, dtype=float)
        data = dataclasses.replace(data, x=np.column_stack([marks, data.x]))
        fits = []

        def predict(configuration, task):
            x, labels, classes, x_test, seed = task
            rows, held = x[:, 0].astype(int), x_test[:, 0].astype(int)
            assert not set(rows) & set(held)
            np.testing.assert_array_equal(labels, data.labels[rows])
            fits.append((set(rows), set(held), seed))
            return {"one": {"": np.zeros((len(held), classes))}}

        plain = Family(("one",), ({}, {}), predict, lambda x, t, n: (x, t))
        protocols.honest(plain, data)
        inner = 2 * protocols.INNER_FOLDS
        assert len(fits) == 4 * (inner + 1)
        for fold, (train, test) in enumerate(data.folds):
            part = fits[fold * (inner + 1) : (fold + 1) * (inner + 1)]
            assert part[-1] == (set(train), set(test), 0)
            for rows, held, seed in part[:-1]:
                assert rows | held == set(train)
                assert seed == 0

    def test_paper_is_at_least_any_configuration(self, rng, family):
        data = toy(rng)
        best = by(protocols.published(family, data), "protocol", "method")
        for number in range(len(family.configurations)):
            single = dataclasses.replace(
                family, configurations=family.configurations[number : number + 1]
            )
            for row in protocols.published(single, data):
                if row["protocol"] == "paper":
                    assert best["paper", row["method"]]["accuracy"] >= row["accuracy"]
        train, test = data.split
        x, x_test = standardize(data.x[train], data.x[test])
        for configuration in family.configurations:
            found = ridge_scores(
                configuration, Task(x, data.labels[train], CLASSES, x_test)
            )
            for method, scores in found.items():
                for score in scores.values():
                    accuracy = 100.0 * np.mean(score.argmax(axis=1) == data.labels[test])
                    assert best["paper", method]["accuracy"] >= round(accuracy, 6)

    def test_customary_has_the_choice_of_paper(self, rng, family):
        rows = protocols.published(family, toy(rng))
        chosen = {r["method"]: r["chosen"] for r in rows if r["protocol"] == "paper"}
        customary = [r for r in rows if r["protocol"] == "customary"]
        assert len(rows) == len(chosen) + len(customary) == 2 + 2 * 4
        assert all(row["chosen"] == chosen[row["method"]] for row in customary)
        assert {row["fold"] for row in customary} == set(range(4))

    def test_the_same_again(self, rng, family):
        data = toy(rng)
        for protocol in (protocols.honest, protocols.published):
            assert protocol(family, data) == protocol(family, data)

    @pytest.mark.parametrize("missing", [False, True])
    def test_divergence_on_refit_predicts_the_most_frequent_class(self, rng, missing):
        data = toy(rng)
        sizes = {len(train) for train, _ in data.folds}

        def predict(configuration, task):
            x, _, classes, x_test, _ = task
            if len(x) not in sizes:
                return {"one": {"": signed_one_hot(np.zeros(len(x_test), int), classes)}}
            return {} if missing else {"one": {"": np.full((len(x_test), classes), np.nan)}}

        rows = protocols.honest(Family(("one",), ({}, {}), predict, standardize), data)
        assert len(rows) == 4
        for row, (train, test) in zip(rows, data.folds, strict=True):
            label = np.bincount(data.labels[train]).argmax()
            expected = 100.0 * np.mean(data.labels[test] == label)
            assert row["accuracy"] == pytest.approx(expected)

    def test_a_choice_that_fails_on_one_fold_is_none(self, rng):
        data = toy(rng)
        calls = []

        def predict(configuration, task):
            _, _, classes, x_test, _ = task
            calls.append(configuration["good"])
            scores = signed_one_hot(np.zeros(len(x_test), int), classes)
            if not configuration["good"]:  # perfect, where it is finite
                at = [np.flatnonzero((data.x == row).all(axis=1))[0] for row in x_test]
                scores = signed_one_hot(data.labels[at], classes)
                if calls.count(False) % protocols.INNER_FOLDS == 1:
                    scores[0, 0] = np.inf
            return {"one": {"": scores}}

        grid = ({"good": False}, {"good": True})
        plain = Family(("one",), grid, predict, lambda x, t, n: (x, t), "accuracy")
        choices = protocols.cross_validate(plain, data, data.folds[0][0])
        assert choices["one"].configuration == 1

    def test_nothing_to_choose_skips_cross_validation(self, rng):
        data = toy(rng)
        fits = []

        def predict(configuration, task):
            fits.append(len(task.x))
            return {"one": {"": np.zeros((len(task.x_test), CLASSES))}}

        single = Family(("one",), ({"a": 1},), predict, standardize, chooses=False)
        rows = protocols.honest(single, data)
        assert fits == [len(train) for train, _ in data.folds]
        assert [row["chosen"].strip() for row in rows] == ["a=1"] * 4

    def test_two_classes_are_told_by_sign(self, rng):
        data = toy(rng, classes=2)

        def predict(configuration, task):
            return {"one": {"": np.full((len(task.x_test), 1), configuration["sign"])}}

        for sign, label in ((1.0, 1), (-1.0, 0)):
            family = Family(
                ("one",), ({"sign": sign},), predict, standardize, chooses=False
            )
            for row, (_, test) in zip(
                protocols.honest(family, data), data.folds, strict=True
            ):
                expected = 100.0 * np.mean(data.labels[test] == label)
                assert row["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(50, 30, 20), (7, 1, 3), (2, 1), (40, 0, 2)])
def test_folds_are_balanced(rng, counts):
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    fold_of = folds_of(labels, 4, np.random.default_rng(0))
    sizes = np.bincount(fold_of, minlength=4)
    assert len(sizes) == 4
    assert np.ptp(sizes) <= 1
    for label in range(len(counts)):
        assert np.ptp(np.bincount(fold_of[labels == label], minlength=4)) <= 1
    np.testing.assert_array_equal(folds_of(labels, 4, np.random.default_rng(0)), fold_of)


def test_folds_depend_on_the_seed():
    labels = np.arange(40) % 2
    first, other = (folds_of(labels, 4, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.any(first != other)


# From the command line, killed -----------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_table(tmp_path, data_folder, monkeypatch, capsys):
    """And leaves no process behind; one that is not killed works in one process."""
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    for name in runner.THREADS:
        monkeypatch.setenv(name, "1")

    def words(folder, workers):
        said = "uci --datasets iris --methods laplace gaussian --protocol honest"
        return [*said.split(), "--workers", str(workers), "--out", str(tmp_path / folder)]

    def table(folder):
        return (tmp_path / folder / "uci" / "uci.csv").read_bytes()

    killed = subprocess.Popen(
        [sys.executable, "-m", "keras_kare.experiments", *words("killed", 1)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    jobs = tmp_path / "killed" / "uci" / "jobs"
    while not list(jobs.glob("*.json")):
        assert killed.poll() is None
        time.sleep(0.002)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    first = {file.name: file.stat().st_mtime_ns for file in jobs.glob("*.json")}
    assert len(first) == 1
    assert not (tmp_path / "killed" / "uci" / "uci.csv").exists()
    try:
        _, alive = psutil.wait_procs(children, timeout=10.0)
        assert not alive
    finally:
        for child in children:
            if child.is_running():
                child.kill()

    for folder, workers in (("whole", 0), ("killed", 1)):
        command.main(words(folder, workers))
        assert "2 of 2 jobs are done" in capsys.readouterr().out
    assert table("killed") == table("whole")
    assert len(lines_of(tmp_path / "killed" / "uci" / "uci.csv")) == 2 * 4
    for name, written in first.items():  # not done again
        assert (jobs / name).stat().st_mtime_ns == written


def test_published_results_are_of_the_grids_of_today():
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "uci" / "uci.csv"
    stated = {(r["protocol"], r["family"], r["grid"]) for r in lines_of(results)}
    for protocol in uci_jobs.PROTOCOLS:
        both = families(protocol), families(protocol, large=True)
        for name in both[0]:
            grids = {grid for p, f, grid in stated if (p, f) == (protocol, name)}
            assert grids <= {each[name].digest() for each in both}
    known = {*families("repeated"), *CONTENDERS, *(f"{n}_one_hot" for n in WITH_OUR_INPUTS)}
    assert {family for _, family, _ in stated} <= known
    assert {protocol for protocol, _, _ in stated} <= {*uci_jobs.PROTOCOLS, "customary"}
