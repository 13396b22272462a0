"""Who takes part in the UCI comparison: the recipe as an estimator, and the halves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_kare.datasets import UCIDataset, load_uci, signed_one_hot, uci_names
from keras_kare.experiments import families as families_module
from keras_kare.experiments import protocols, report, settings, uci_jobs
from keras_kare.experiments.families import families, predict_mse, recipe_family
from keras_kare.experiments.lab import lab
from keras_kare.experiments.names import METHODS, in_text
from keras_kare.experiments.settings import Architecture
from keras_kare.experiments.task import Task
from keras_kare.experiments.variants import ABLATIONS, RECIPES, VARIANTS
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.sklearn import KAREClassifier


@pytest.fixture
def data(rng):
    x = rng.normal(size=(40, 3))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    order = rng.permutation(40)
    parts = [np.sort(part) for part in np.array_split(order, 4)]
    folds = tuple((np.setdiff1d(order, part), part) for part in parts)
    return UCIDataset("toy", x, labels, 3, folds[0], folds)


# The recipe ------------------------------------------------------------------------------


def test_the_recipe_is_the_estimator(data, monkeypatch):
    """On inputs as they are, with the number of the repeat as its seed."""
    monkeypatch.setattr(protocols, "REPEATS", 2)
    monkeypatch.setitem(RECIPES, "recipe", {"epochs": 2, "networks": 1})
    rows = protocols.repeated(recipe_family("recipe"), data)
    assert [row["fold"] for row in rows] == list(range(8))
    for repeat in (0, 1):
        train, test = protocols.divided(data, repeat)[3]
        model = KAREClassifier(epochs=2, networks=1, random_state=repeat)
        model.fit(data.x[train], data.labels[train])
        right = 100.0 * model.score(data.x[test], data.labels[test])
        assert rows[4 * repeat + 3]["accuracy"] == pytest.approx(right, abs=1e-5)
        assert rows[4 * repeat + 3]["method"] == "recipe"


def test_parameters_are_the_estimators_and_not_its_defaults():
    defaults = KAREClassifier().get_params()
    for name, parameters in RECIPES.items():
        assert all(defaults[key] != value for key, value in parameters.items())
        assert bool(parameters) == (name != "recipe")
    assert set(RECIPES) == {"recipe", *ABLATIONS, *VARIANTS}


def test_ablations_leave_out_what_they_say(data):
    def machines(name):
        model = KAREClassifier(random_state=0, **RECIPES[name])
        return model.fit(data.x, data.labels).machines_

    for key in machines("recipe_untrained"):
        assert key.steps == key.rough.rounds == 0
    assert all(key.share == 0.0 for key in machines("recipe_kernel"))
    assert len(machines("recipe_best")) == 1


def test_other_defaults_are_another_digest(monkeypatch):
    before = recipe_family("relu").digest()
    other = dataclasses.replace(DEFAULTS, folds=7)
    monkeypatch.setattr(families_module, "DEFAULTS", other)
    assert recipe_family("relu").digest() != before
    assert len({recipe_family(name).digest() for name in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(("present", "classes"), [((0, 2, 3), 4), ((1, 3), 4), ((1,), 2)])
def test_missing_classes_are_never_guessed(rng, present, classes):
    labels = np.repeat(present, 8)
    x = 4.0 * labels[:, None] + rng.normal(size=(len(labels), 2))
    predict = recipe_family("recipe_untrained").predict
    (path,) = predict(ABLATIONS["recipe_untrained"], Task(x, labels, classes, x)).values()
    scores = path[""]
    assert scores.shape == (len(x), 1 if classes == 2 else classes)
    guess = (scores[:, 0] > 0.0).astype(int) if classes == 2 else scores.argmax(axis=1)
    assert np.mean(guess == labels) > 0.9
    assert set(guess) <= set(present)


def test_every_method_has_a_name():
    known = {method for each in families("repeated").values() for method in each.methods}
    assert known <= set(METHODS)
    assert in_text("recipe") == "**KAREClassifier()**"
    assert in_text("z_10") == "KAREClassifier(kare_ridge=10.0)"
    assert in_text("unknown") == "unknown"


# The paper's methods ---------------------------------------------------------------------


def test_every_family_has_all_its_methods(data, monkeypatch):
    """Also where rates are too large: the most frequent class is an answer, too.

    Epochs are few, but enough for the largest rates to diverge in the deepest network.
    """
    monkeypatch.setattr(families_module, "DEPTHS", (1, 5))
    monkeypatch.setattr(families_module, "WIDTH", 8)
    monkeypatch.setattr(settings, "UCI_KARE_EPOCHS", 30)
    monkeypatch.setattr(settings, "UCI_MSE_EPOCHS", 30)
    monkeypatch.setattr(protocols, "INNER_FOLDS", 2)
    for protocol in ("paper", "honest"):
        for name in ("kare", "mse"):
            family = families(protocol)[name]
            rows = protocols.honest(family, data, folds=(0,))
            assert sorted(row["method"] for row in rows) == sorted(family.methods)


def test_the_residual_machine_adds_to_the_network(rng):
    x, x_test = rng.normal(size=(24, 3)), rng.normal(size=(5, 3))
    labels = (x[:, 0] > 0).astype(int)
    found = predict_mse({"depth": 1, "rate": 0.1}, Task(x, labels, 2, x_test))
    station = lab(3, 1, Architecture(1, 64))
    outputs, fitted = station.outputs(x_test), station.outputs(x)
    np.testing.assert_allclose(found["network"][""], outputs)
    gram, cross = station.gram(x), station.cross(x_test, x)
    y = signed_one_hot(labels, 2)
    expected = outputs + machine(gram, cross, y - fitted, 1.0)
    np.testing.assert_allclose(found["residual"]["ridge=1"], expected, atol=1e-6)
    expected = machine(gram, cross, y, 1.0)
    np.testing.assert_allclose(found["after_ntk"]["ridge=1"], expected, atol=1e-6)


def machine(gram, cross, y, ridge):
    n = len(gram)
    absolute = ridge * np.trace(gram) / n**2
    return cross @ np.linalg.solve(gram / n + absolute * np.eye(n), y) / n


# Folds and halves ------------------------------------------------------------------------


def test_repeat_0_is_as_published(data):
    assert protocols.divided(data, 0) is data.folds


@pytest.mark.parametrize("name", ["iris", "audiology-std", "trains"])
def test_repeats_are_even_folds_of_the_published_sizes(name, data_folder):
    """Of 171 rows four folds of 43 test one row twice; of 150 and 37, two never."""
    data = load_uci(name, data_folder / "uci")
    counts = np.bincount(data.labels, minlength=data.classes)
    seen = []
    for repeat in (1, 2):
        folds = protocols.divided(data, repeat)
        for (train, test), (rows, others) in zip(folds, data.folds, strict=True):
            assert (len(train), len(test)) == (len(rows), len(others))
            assert np.array_equal(np.sort([*train, *test]), np.arange(len(data.x)))
            found = np.bincount(data.labels[test], minlength=data.classes)
            assert np.all(np.abs(found - counts / 4) < 2)
        tested = np.concatenate([test for _, test in folds])
        assert len(np.unique(tested)) == min(len(tested), len(data.x))
        again = protocols.divided(data, repeat)
        np.testing.assert_array_equal(tested, np.concatenate([t for _, t in again]))
        seen.append(tested)
    assert not np.array_equal(*seen)


@pytest.mark.parametrize(("rows", "repeats"), [(299, 5), (300, 1)])
def test_few_rows_are_divided_again(rng, rows, repeats):
    parts = np.array_split(rng.permutation(rows), 4)
    folds = tuple((np.setdiff1d(np.arange(rows), part), part) for part in parts)
    data = UCIDataset("toy", np.zeros((rows, 1)), np.arange(rows) % 2, 2, folds[0], folds)
    seeds = []

    def predict(configuration, task):
        seeds.append(task.seed)
        return {"one": {"": np.zeros((len(task.x_test), 1))}}

    scaled = protocols.Family(
        ("one",), ({},), predict, lambda x, t, n: (x, t), chooses=False
    )
    found = protocols.repeated(scaled, data)
    assert [row["fold"] for row in found] == list(range(4 * repeats))
    assert seeds == np.repeat(np.arange(repeats), 4).tolist()


def test_repeated_choices_see_training_rows_only(data):
    seen = []

    def predict(configuration, task):
        seen.append((len(task.x), len(task.x_test), task.seed))
        return {"one": {"": np.zeros((len(task.x_test), 3))}}

    family = protocols.Family(("one",), ({}, {}), predict, lambda x, t, n: (x, t))
    protocols.repeated(family, data)
    sizes = {(n, m) for n, m, _ in seen}
    assert all(n + m in (30, 40) for n, m in sizes)
    assert {n for n, m in sizes if n + m == 40} == {30}
    assert {seed for _, _, seed in seen} == set(range(5))


def test_halves_are_every_other():
    names = ["b", "a", "d", "c", "e"]
    assert uci_jobs.screened(names) == uci_jobs.half_of(names, "screen") == ["a", "c", "e"]
    assert uci_jobs.half_of(names, "confirm") == ["b", "d"]


def test_jobs_of_halves(data_folder, monkeypatch):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    both = [uci_jobs.jobs("repeated", half=half) for half in uci_jobs.HALVES]
    names = [{job["dataset"] for job in jobs} for jobs in both]
    assert not names[0] & names[1]
    rows = {name: uci_jobs.rows_of(name) for name in uci_names()}
    assert names[0] | names[1] == {name for name, n in rows.items() if n <= 2000}
    kinds = [{job["family"] for job in jobs} for jobs in both]
    assert kinds[0] == set(families("repeated"))
    assert kinds[0] - kinds[1] == set(VARIANTS)
    assert uci_jobs.jobs("repeated") == both[0]  # the other must be asked for
    assert all(uci_jobs.current(job) for job in both[1])
    assert not uci_jobs.current({**both[0][0], "protocol": "screen"})
    assert not {"recipe", *VARIANTS} & {job["family"] for job in uci_jobs.jobs("honest")}


# The page --------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, data_folder, monkeypatch):
    """Results on five data sets of each half; `svc` has run on one of them."""
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    folder = tmp_path / "uci"
    folder.mkdir()
    scores = {"recipe": 80.0, "laplace": 79.5, "recipe_best": 80.5}
    once, chosen = {"svc": 60.0}, {"relu": 70.0}
    lines = []
    for half in uci_jobs.HALVES:
        for place, name in enumerate(uci_jobs.half_of(uci_names(), half)[:5]):
            more = {**(chosen if half == "screen" else {}), **({} if place else once)}
            for method, score in {**scores, **more}.items():
                for fold in range(20 if place else 4):
                    wobble = (place - 2) * (method == "laplace")
                    each = {"protocol": "repeated", "dataset": name, "method": method}
                    lines.append(each | {"fold": fold, "accuracy": score + wobble})
    pd.DataFrame(lines).to_csv(folder / "uci.csv", index=False)
    (folder / "uci.json").write_text(json.dumps({"jobs": 1, "core_hours": 0.0}))
    return tmp_path


def test_the_page_compares_with_the_recipe(results):
    page = report.write(results, None).read_text()
    screen, confirm = page.split("### Protocol *repeated*")[1:]
    assert screen.startswith(", the half to choose on, 5 data sets")
    assert confirm.startswith(", the half that confirms, 5 data sets")
    assert uci_jobs.LOOKS in screen
    assert uci_jobs.LOOKS in confirm
    assert "| KAREClassifier(machines=1) | -0.50 | 0.00 | 5 | worse |" in screen
    assert "| KAREClassifier(activation='relu') | +10.00 | 0.00 | 5 | better |" in screen
    assert "relu" not in confirm
    assert screen.count("Gaussian SVM |") == 1  # it is in no ranking
    (line,) = (each for each in screen.splitlines() if each.endswith("| 5 | tie |"))
    assert line.startswith("| Laplace kernel ridge |")
    assert "uci_screen.png" in screen
    assert "uci_confirm.png" in confirm
    assert (results / "uci_confirm.png").exists()


def test_looks_are_counted(data_folder):
    """Where results of the recipe on the half that confirms are kept, they were seen."""
    kept = Path(__file__).parents[1] / "benchmarks" / "results" / "uci" / "uci.csv"
    rows = pd.read_csv(kept)
    rows = rows[(rows.protocol == "repeated") & (rows.family == "recipe")]
    second = uci_jobs.half_of(uci_names(data_folder / "uci"), "confirm")
    assert not rows.dataset.isin(second).any() or "not yet" not in uci_jobs.LOOKS
