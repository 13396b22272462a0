"""The recipe: kernels averaged as it says, choices that see no row they are judged by."""

from __future__ import annotations

import ast
import dataclasses
import re
import time

import numpy as np
import pytest

from keras_kare.experiments.lab import initial_weights, lab
from keras_kare.experiments.scaling import FEW
from keras_kare.experiments.settings import Architecture
from keras_kare.recipes.cross_fitting import best, checkpoints, folds_of
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.few_values import FewValues
from keras_kare.recipes.mixtures import (
    Kernels,
    kernels,
    path,
)
from keras_kare.recipes.recipe import Key, Recipe, Start
from keras_kare.sklearn import KAREClassifier, KARERegressor


@pytest.fixture
def rows(rng):
    x, x_test = rng.normal(size=(24, 3)), rng.normal(size=(5, 3))
    y = np.where(x[:, [0]] * x[:, [1]] > 0.0, 1.0, -1.0)
    return x, y, x_test


def bench_of(x):
    return lab(x.shape[1], 1, Architecture(depth=1, width=8))


def test_variances_are_those_of_a_gaussian_process(rng):
    gram, cross, prior = joint(rng, 12, 5)
    y = rng.normal(size=(12, 2))
    for ridge, predicted in path(Kernels(gram, cross, prior), y, (0.01, 2.0)).items():
        noise = ridge * np.trace(gram) / 12
        known = np.linalg.solve(gram + noise * np.eye(12), cross.T)
        np.testing.assert_allclose(predicted.values, known.T @ y)
        expected = prior - np.sum(cross * known.T, axis=1) + noise
        np.testing.assert_allclose(predicted.variances, expected)


def joint(rng, n, m):
    """`K(X, X)`, `K(x, X)` and `K(x, x)` of one positive kernel."""
    features = rng.normal(size=(n + m, n + m))
    every = features @ features.T
    return every[:n, :n], every[n:, :n], np.diag(every)[n:]


def test_the_best_are_one_of_each_kind():
    errors = {
        Key(10, 0.0, 0.1): 0.30,
        Key(10, 0.0, 1.0): 0.20,
        Key(30, 0.0, 1.0): 0.25,
        Key(10, 0.5, 1.0): 0.22,
    }
    assert best(errors, 1) == [Key(10, 0.0, 1.0)]
    assert best(errors, 5) == [Key(10, 0.0, 1.0), Key(10, 0.5, 1.0), Key(30, 0.0, 1.0)]


def test_checkpoints_look_at_the_clock(rows):
    x, y, _ = rows
    bench = bench_of(x)
    start = Start(initial_weights(bench.network, "torch", 0), 0)
    recipe = Recipe(steps=(0, 3, 10**9))
    begun = time.perf_counter()
    assert list(checkpoints(bench, recipe, x, y, start, begun + 0.5)) in ([0], [0, 3])
    assert time.perf_counter() - begun < 60.0, "it did not stop"


def test_checkpoints_do_not_change_training(rows):
    """Looks at the clock cut a training into parts, which sum to the whole."""
    x, y, x_test = rows
    bench = bench_of(x)
    start = Start(initial_weights(bench.network, "torch", 0), 0)
    recipe = Recipe(steps=(0, 25, 50), batch_size=10)
    found = []
    for deadline in (None, time.perf_counter() + 1e6):
        for steps in checkpoints(bench, recipe, x, y, start, deadline):
            found.append(steps)
        found.append(kernels(bench, x, x_test).gram)
    assert found[:3] == found[4:7] == [0, 25, 50]
    np.testing.assert_array_equal(found[3], found[7])


@pytest.mark.parametrize("counts", [(50, 30, 20), (7, 1, 3), (2, 1)])
def test_folds_are_balanced(rng, counts):
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    fold_of = folds_of(labels, 4, np.random.RandomState(0))
    assert np.ptp(np.bincount(fold_of, minlength=4)) <= 1
    for label in range(len(counts)):
        assert np.ptp(np.bincount(fold_of[labels == label], minlength=4)) <= 1


def test_estimators_and_experiments_share_their_defaults():
    defaults = dataclasses.asdict(DEFAULTS)
    assert KARERegressor().get_params() == defaults
    assert KAREClassifier().get_params() == {**defaults, "class_weight": None}
    assert KARERegressor()._recipe(1000) == Recipe()
    assert FEW == FewValues().most == DEFAULTS.few_values


def test_the_documentation_names_the_defaults():
    parameters = re.split(r"\n {8}(?=\w+: )", KARERegressor.__doc__)
    told = {}
    for text in parameters:
        if found := re.search(r"Defaults\s+to\s+`([^`]+)`", text):
            told[text.split(":")[0]] = ast.literal_eval(found[1])
    defaults = dataclasses.asdict(DEFAULTS)
    assert told == {name: defaults[name] for name in told}
    assert {*defaults} - {*told} == {"time_budget", "random_state"}
