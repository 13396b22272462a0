"""The recipe: kernels averaged as it says, choices that see no row they are judged by."""

from __future__ import annotations

import ast
import dataclasses
import re
import time

import numpy as np
import pytest

from keras_kare.datasets import UCIDataset, signed_one_hot
from keras_kare.experiments import families as families_module
from keras_kare.experiments import protocols, settings
from keras_kare.experiments.families import families, predict_mse, recipe_family
from keras_kare.experiments.lab import initial_weights, lab
from keras_kare.experiments.scaling import FEW
from keras_kare.experiments.settings import Architecture
from keras_kare.experiments.task import Task
from keras_kare.experiments.uci_jobs import screened
from keras_kare.experiments.variants import RECIPE, TRAJECTORY, VARIANTS, paths
from keras_kare.recipes.cross_fitting import best, checkpoints, folds_of
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.few_values import FewValues
from keras_kare.recipes.mixtures import (
    Kernels,
    kernels,
    laplace_cross,
    laplace_scale,
    path,
    rough_kernels,
)
from keras_kare.recipes.recipe import Key, Recipe, Start
from keras_kare.sklearn import KAREClassifier, KARERegressor

SMALL = dataclasses.replace(
    RECIPE,
    recipe=Recipe(steps=(0, 2, 5), ridges=(0.1, 1.0)),
    architecture=Architecture(depth=1, width=8),
    seeds=2,
)


@pytest.fixture
def rows(rng):
    x, x_test = rng.normal(size=(24, 3)), rng.normal(size=(5, 3))
    y = np.where(x[:, [0]] * x[:, [1]] > 0.0, 1.0, -1.0)
    return x, y, x_test


def machine(gram, cross, y, ridge):
    n = len(gram)
    absolute = ridge * np.trace(gram) / n**2
    return cross @ np.linalg.solve(gram / n + absolute * np.eye(n), y) / n


def bench_of(variant, x):
    return lab(x.shape[1], 1, variant.architecture, variant.objective)


def trained(variant, x, y, x_test, seed, steps):
    """Kernels of one network after steps from its start, divided by the mean diagonal."""
    station = bench_of(variant, x)
    station.draw(variant.initialization, seed)
    station.descent.run(x, y, variant.recipe.learning_rate, steps, seed=seed)
    gram, cross = station.gram(x), station.cross(x_test, x)
    return [part / np.diag(gram).mean() for part in (gram, cross)]


def test_kernels_of_all_seeds_are_averaged(rows):
    x, y, x_test = rows
    found = paths(SMALL, x, y, x_test, [0, 1])
    rough = rough_kernels(x, x_test, SMALL.recipe.bandwidth)[:2]
    for steps in (0, 5):
        parts = [trained(SMALL, x, y, x_test, seed, steps) for seed in (0, 1)]
        mean = [sum(pair) / 2 for pair in zip(*parts, strict=True)]
        for share in (0.0, 0.5):
            gram, cross = (
                (1 - share) * a + share * b for a, b in zip(mean, rough, strict=True)
            )
            expected = machine(gram, cross, y, 0.1)
            # float32 networks: two runs of 2 and 3 steps round as one of 5 does, nearly
            np.testing.assert_allclose(found[Key(steps, share, 0.1)], expected, atol=1e-4)


def test_the_trajectory_is_the_mean_of_trained_kernels(rows):
    x, y, x_test = rows
    found = paths(SMALL, x, y, x_test, [3])
    parts = [trained(SMALL, x, y, x_test, 3, steps) for steps in (2, 5)]
    gram, cross = (sum(pair) / 2 for pair in zip(*parts, strict=True))
    expected = machine(gram, cross, y, 1.0)
    np.testing.assert_allclose(found[Key(TRAJECTORY, 0.0, 1.0)], expected, atol=1e-4)


def test_the_laplace_kernel_stands_alone_once(rows):
    x, y, x_test = rows
    found = paths(SMALL, x, y, x_test, [0])
    alone = {key for key in found if key.share == 1.0}
    assert alone == {Key(0, 1.0, ridge) for ridge in SMALL.recipe.ridges}
    expected = machine(*rough_kernels(x, x_test, 1.0)[:2], y, 0.1)
    np.testing.assert_allclose(found[Key(0, 1.0, 0.1)], expected, rtol=1e-8)


def test_laplace_is_one_on_equal_rows_and_scales_by_the_median():
    x = np.array([[0.0], [3.0], [3.0]])
    scale = laplace_scale(x, 2.0)
    assert scale == pytest.approx(6.0)  # median distance of different rows, times 2
    gram, cross = (
        laplace_cross(x, x, scale),
        laplace_cross(np.array([[0.0], [6.0]]), x, scale),
    )
    assert np.all(np.diag(gram) == 1.0)
    assert gram[1, 2] == 1.0
    np.testing.assert_allclose(gram[0, 1], np.exp(-0.5))
    np.testing.assert_allclose(cross[1], np.exp([-1.0, -0.5, -0.5]))
    assert laplace_scale(np.zeros((2, 1)), 1.0) == pytest.approx(1.0)


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
    bench = bench_of(SMALL, x)
    start = Start(initial_weights(bench.network, "torch", 0), 0)
    recipe = Recipe(steps=(0, 3, 10**9))
    begun = time.perf_counter()
    assert list(checkpoints(bench, recipe, x, y, start, begun + 0.5)) in ([0], [0, 3])
    assert time.perf_counter() - begun < 60.0, "it did not stop"


def test_checkpoints_do_not_change_training(rows):
    """Looks at the clock cut a training into parts, which sum to the whole."""
    x, y, x_test = rows
    bench = bench_of(SMALL, x)
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


def test_diverged_steps_are_left_out(rows):
    x, y, x_test = rows
    wild = dataclasses.replace(SMALL, objective=VARIANTS["paper_training"].objective)
    recipe = dataclasses.replace(SMALL.recipe, learning_rate=1e30)
    wild = dataclasses.replace(wild, recipe=recipe)
    found = paths(wild, x, y, x_test, [0])
    assert {key.steps for key in found} == {0}
    assert all(np.all(np.isfinite(values)) for values in found.values())


def test_runs_repeat_exactly(rows):
    first, second = (paths(SMALL, *rows, [0, 1]) for _ in range(2))
    assert first.keys() == second.keys()
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key])


@pytest.fixture
def data(rng):
    x = rng.normal(size=(40, 3))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    order = rng.permutation(40)
    parts = [np.sort(part) for part in np.array_split(order, 4)]
    folds = tuple((np.setdiff1d(order, part), part) for part in parts)
    return UCIDataset("toy", x, labels, 3, folds[0], folds)


def test_the_family_blends_the_best_machines(data):
    recipe = dataclasses.replace(SMALL.recipe, machines=2)
    family = recipe_family(dataclasses.replace(SMALL, recipe=recipe))
    choices = protocols.cross_validate(family, data, data.folds[0][0])
    assert {name: len(choice.names) for name, choice in choices.items()} == {
        "recipe": 2,
        "recipe_kernel": 2,
        "recipe_start": 2,
        "recipe_untrained": 1,
        "recipe_best": 1,
        "recipe_trajectory": 1,
    }
    assert choices["recipe"].names[0] == choices["recipe_best"].names[0]
    assert choices["recipe_untrained"].names[0].startswith("steps=0,share=0 ")
    assert all("share=0 " in name for name in choices["recipe_kernel"].names)
    groups = [name.split()[0] for name in choices["recipe"].names]
    assert len(set(groups)) == 2


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


def test_the_residual_machine_adds_to_the_network(rows):
    x, _, x_test = rows
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


def test_screened_sets_are_every_other():
    assert screened(["b", "a", "d", "c", "e"]) == ["a", "c", "e"]


def test_estimators_and_experiments_share_their_defaults():
    defaults = dataclasses.asdict(DEFAULTS)
    assert KARERegressor().get_params() == defaults
    assert KAREClassifier().get_params() == {**defaults, "class_weight": None}
    assert KARERegressor()._recipe(1000) == RECIPE.recipe == Recipe()
    sizes = (RECIPE.architecture.width,) * RECIPE.architecture.depth
    assert sizes == DEFAULTS.hidden_sizes
    assert RECIPE.architecture.activation == DEFAULTS.activation
    assert RECIPE.objective.ridge == DEFAULTS.kare_ridge
    assert RECIPE.seeds == DEFAULTS.networks
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
