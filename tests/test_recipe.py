"""The recipe: kernels averaged as it says, choices that see no row they are judged by."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_kare.datasets import UCIDataset, signed_one_hot
from keras_kare.experiments import protocols
from keras_kare.experiments.families import families, predict_mse, recipe_family
from keras_kare.experiments.recipe import (
    RECIPE,
    TRAJECTORY,
    VARIANTS,
    Key,
    laplace,
    paths,
)
from keras_kare.experiments.settings import Architecture
from keras_kare.experiments.training import lab
from keras_kare.experiments.uci import screened

SMALL = dataclasses.replace(
    RECIPE,
    architecture=Architecture(depth=1, width=8),
    steps=(0, 2, 5),
    ridges=(0.1, 1.0),
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


def trained(recipe, x, y, x_test, seed, steps):
    """Kernels of one network after steps from its start, divided by the mean diagonal."""
    station = lab(x.shape[1], 1, recipe.architecture, recipe.objective)
    station.start(recipe.initialization, seed)
    station.descent.run(x, y, recipe.learning_rate, steps, seed=seed)
    gram, cross = station.grams(x, x_test)
    return [part / np.diag(gram).mean() for part in (gram, cross)]


def test_kernels_of_all_seeds_are_averaged(rows):
    x, y, x_test = rows
    found = paths(SMALL, x, y, x_test, [0, 1])
    rough = laplace(x, x_test, SMALL.bandwidth)
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
    assert alone == {Key(0, 1.0, ridge) for ridge in SMALL.ridges}
    expected = machine(*laplace(x, x_test, 1.0), y, 0.1)
    np.testing.assert_allclose(found[Key(0, 1.0, 0.1)], expected, rtol=1e-8)


def test_laplace_is_one_on_equal_rows_and_scales_by_the_median():
    x = np.array([[0.0], [3.0], [3.0]])
    gram, cross = laplace(x, np.array([[0.0], [6.0]]), 2.0)
    assert np.all(np.diag(gram) == 1.0)
    assert gram[1, 2] == 1.0
    np.testing.assert_allclose(gram[0, 1], np.exp(-0.5))  # median distance 3, times 2
    np.testing.assert_allclose(cross[1], np.exp([-1.0, -0.5, -0.5]))
    assert np.all(laplace(np.zeros((2, 1)), np.zeros((1, 1)), 1.0)[0] == 1.0)


def test_diverged_steps_are_left_out(rows):
    x, y, x_test = rows
    wild = dataclasses.replace(SMALL, objective=VARIANTS["paper_training"].objective)
    wild = dataclasses.replace(wild, learning_rate=1e30)
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
    family = recipe_family(dataclasses.replace(SMALL, machines=2))
    choices = protocols.cross_validate(family, data, data.folds[0][0])
    assert {name: len(choice.names) for name, choice in choices.items()} == {
        "recipe": 2,
        "recipe_kernel": 2,
        "recipe_untrained": 1,
        "recipe_best": 1,
        "recipe_trajectory": 1,
    }
    assert choices["recipe"].names[0] == choices["recipe_best"].names[0]
    assert choices["recipe_untrained"].names[0].startswith("steps=0,share=0 ")
    assert all("share=0 " in name for name in choices["recipe_kernel"].names)
    groups = [name.split()[0] for name in choices["recipe"].names]
    assert len(set(groups)) == 2


def test_every_family_has_all_its_methods(data):
    """Also where rates are too large: the most frequent class is an answer, too."""
    for protocol in ("paper", "honest"):
        for name in ("kare", "mse"):
            family = families(protocol)[name]
            rows = protocols.honest(family, data, folds=(0,))
            assert sorted(row["method"] for row in rows) == sorted(family.methods)


def test_the_residual_machine_adds_to_the_network(rows):
    x, _, x_test = rows
    labels = (x[:, 0] > 0).astype(int)
    found = predict_mse({"depth": 1, "rate": 0.1}, x, labels, 2, x_test, (0,))
    station = lab(3, 1, Architecture(1, 64))
    outputs, fitted = station.outputs(x_test), station.outputs(x)
    np.testing.assert_allclose(found["network"][""], outputs)
    gram, cross = station.grams(x, x_test)
    y = signed_one_hot(labels, 2)
    expected = outputs + machine(gram, cross, y - fitted, 1.0)
    np.testing.assert_allclose(found["residual"]["ridge=1"], expected, atol=1e-6)
    expected = machine(gram, cross, y, 1.0)
    np.testing.assert_allclose(found["after_ntk"]["ridge=1"], expected, atol=1e-6)


def test_screened_sets_are_every_other():
    assert screened(["b", "a", "d", "c", "e"]) == ["a", "c", "e"]
