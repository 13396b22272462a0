"""The divergence guard of Table 1: trainings that start again, jobs, and the page."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_kare.datasets import UCIDataset
from keras_kare.experiments import command, guarded_jobs, protocols, report
from keras_kare.experiments.families import families, predict_kare
from keras_kare.experiments.guarded_jobs import METHOD, RESTARTS, diverged, guarded
from keras_kare.experiments.names import in_text
from keras_kare.experiments.protocols import Chosen
from keras_kare.experiments.store import Store
from keras_kare.experiments.task import Task

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CHOSEN = "depth=1 rate=1.0 epochs=(300,) epochs=300 ridge=0.1"


def configuration(rate):
    return {"depth": 1, "rate": rate, "epochs": (30,)}


@pytest.fixture
def task(rng):
    x = rng.normal(size=(40, 3))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    return Task(x[:30], labels[:30], 3, x[30:])


def same(path, other):
    assert list(path) == list(other)
    for name, values in path.items():
        np.testing.assert_array_equal(values, other[name])


# Trainings -------------------------------------------------------------------------------


def test_without_divergence_nothing_changes(task):
    found = guarded(configuration(1.0), task)
    same(found.path, predict_kare(configuration(1.0), task)["ntk_kare"])
    assert found.path
    assert (found.rate, found.restarts) == (1.0, 0)


def test_divergence_starts_again_at_a_lower_rate(task):
    found = guarded(configuration(1e4), task)
    assert 1 <= found.restarts <= RESTARTS
    assert found.rate == 1e4 / 10.0**found.restarts
    # from the same weights: as if the rate had been chosen
    same(found.path, predict_kare(configuration(found.rate), task)["ntk_kare"])
    assert all(np.all(np.isfinite(values)) for values in found.path.values())


def test_a_training_may_be_given_up(task):
    assert guarded(configuration(1e30), task) == ({}, None, RESTARTS)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 5.0, 1.0], False),
        ([2.0, 2.0], False),
        ([2.0, 1.0, 2.5], True),
        ([2.0, 1.0, np.nan], True),
        ([np.inf, 1.0], True),
    ],
)
def test_what_divergence_is(losses, expected):
    assert diverged(np.array(losses)) is expected


# Jobs ------------------------------------------------------------------------------------


def test_every_choice_is_read_as_it_was_written():
    family = families("paper")["kare"]
    for number in range(len(family.configurations)):
        choice = Chosen(number, "epochs=300 ridge=0.1")
        assert Chosen.described(choice.describe(family), family) == choice
    with pytest.raises(ValueError, match=r"`text` must be of.*Received: text='depth=9"):
        Chosen.described("depth=9 rate=1.0", family)


@pytest.fixture
def data(rng):
    x = rng.normal(size=(40, 3))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    parts = np.array_split(rng.permutation(40), 4)
    folds = tuple((np.setdiff1d(np.arange(40), part), np.sort(part)) for part in parts)
    return UCIDataset("toy", x, labels, 3, folds[0], folds)


@pytest.fixture
def results(tmp_path, data, monkeypatch):
    """A folder with the customary results of a toy, of a grid of two rates."""
    few = ({"depth": 1, "rate": 1.0, "epochs": (5,)}, {**configuration(1e4), "depth": 2})
    family = dataclasses.replace(families("paper")["kare"], configurations=few)
    monkeypatch.setattr(guarded_jobs, "_family", lambda: family)
    monkeypatch.setattr(guarded_jobs, "load_uci", lambda name: data)
    job = {"experiment": "uci", "protocol": "paper", "dataset": "toy", "family": "kare"}
    store = Store(tmp_path / "uci")
    rows = protocols.published(family, data)
    store.write({**job, "grid": family.digest()}, rows, 1.0)
    store.collect("uci")
    return tmp_path


def accuracies(results, name, method):
    rows = pd.read_csv(results / name / f"{name}.csv")
    rows = rows[(rows.protocol == "customary") & (rows.method == method)]
    return list(rows.sort_values("fold").accuracy)


def run(results):
    command.main(["guarded", "--workers", "0", "--out", str(results)])


def test_accuracies_are_those_without_the_guard(results):
    run(results)
    plain = accuracies(results, "uci", "ntk_kare")
    assert accuracies(results, "guarded", METHOD) == plain
    rows = pd.read_csv(results / "guarded" / "guarded.csv")
    assert len(rows) == len(plain) == 4
    assert set(rows.rate) == {1.0}
    assert set(rows.restarts) == {0}


def test_given_up_is_the_most_frequent_class(results, data, monkeypatch):
    monkeypatch.setattr(guarded_jobs, "diverged", lambda losses: True)
    run(results)
    expected = []
    for train, test in data.folds:
        label = np.bincount(data.labels[train]).argmax()
        expected.append(100.0 * np.mean(data.labels[test] == label))
    assert accuracies(results, "guarded", METHOD) == pytest.approx(expected)
    assert pd.read_csv(results / "guarded" / "guarded.csv").rate.isna().all()
    page = report.write(results, None).read_text()
    assert "on 4 of 4 folds, and was given up on 4" in page


def test_a_job_is_of_its_choice(results):
    (job,) = guarded_jobs.jobs(results)
    assert job["dataset"] == "toy"
    assert guarded_jobs.current(job)
    assert not guarded_jobs.current({**job, "grid": "0"})
    store, other = Store(results / "guarded"), {**job, "chosen": CHOSEN}
    store.write(other, [], 0.0)
    assert not store.done(job)


@pytest.mark.parametrize("words", ["", " --datasets iris"])
def test_missing_choices_say_what_makes_them(words, tmp_path, results, capsys):
    out = results if words else tmp_path / "nothing"
    with pytest.raises(SystemExit):
        command.main(f"guarded --workers 0 --out {out}{words}".split())
    said = capsys.readouterr().err
    assert f"{out / 'uci' / 'uci.csv'}" in said
    assert f"uci --protocol paper --methods kare --out {out}" in said
    assert ("for iris" in said) == bool(words)
    assert not (out / "guarded").exists()


def test_choices_of_another_grid_are_missing(results, monkeypatch):
    of_today = guarded_jobs._family()
    other = dataclasses.replace(of_today, settings="two outputs")
    monkeypatch.setattr(guarded_jobs, "_family", lambda: other)
    with pytest.raises(guarded_jobs.MissingChoicesError, match="no choices of NTK-KARE"):
        guarded_jobs.jobs(results)


# The page --------------------------------------------------------------------------------


def test_the_page_has_a_row_of_the_guard(results):
    before = report.write(results, None).read_text()
    assert in_text(METHOD) not in before
    assert "divergence guard" not in before
    run(results)
    page = report.write(results, None).read_text()
    (row,) = (line for line in page.splitlines() if in_text(METHOD) in line)
    assert row.startswith("| NTK-KARE with a divergence guard (ours) |")
    assert "It did so on 0 of 4 folds, and was given up on 0." in page
    paper = page[page.index("Protocol *paper*") :]
    assert in_text(METHOD) not in paper


def test_results_of_other_choices_are_not_shown(results):
    run(results)
    table = results / "uci" / "uci.csv"
    rows = pd.read_csv(table)
    rows["chosen"] = rows.chosen.str.replace("ridge=", "ridge=1")
    rows.to_csv(table, index=False)
    assert in_text(METHOD) not in report.write(results, None).read_text()


def test_published_results_are_of_todays_choices():
    with (RESULTS / "guarded" / "guarded.csv").open(newline="") as file:
        stated = {row["dataset"]: row["chosen"] for row in csv.DictReader(file)}
    assert stated == guarded_jobs.choices(RESULTS / "uci" / "uci.csv")
