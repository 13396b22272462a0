"""Laplace kernels of the recipe: their values, slopes, and metrics that are learnt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

import keras_kare as kk
from keras_kare.recipes import rough
from keras_kare.recipes.cross_fitting import is_worse
from keras_kare.recipes.recipe import ROUGHS, Rough
from keras_kare.recipes.rough import RoughKernel, rough_kernel, rough_kernels
from keras_kare.sklearn import KAREClassifier

RIDGES = (1e-3, 1e-2, 0.1, 1.0)
METRIC = {"l1": "cityblock", "l2": "euclidean"}


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(40, 3))
    return x, np.stack([np.sin(2 * x[:, 0]), x[:, 0] * x[:, 1]], axis=1)


def kernels(x, y, kinds=ROUGHS, weights=None):
    return dict(rough_kernels(x, y, kinds, RIDGES, weights))


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 4.0])
def test_values_are_exponentials_of_distances(rows, distance, bandwidth):
    x, y = rows
    kind = Rough(distance, bandwidth)
    found = kernels(x, y, [kind])[kind]
    s = bandwidth * np.median(pdist(x, METRIC[distance]))
    np.testing.assert_allclose(found.kernel.scale, s)
    np.testing.assert_allclose(found.gram, np.exp(-cdist(x, x, METRIC[distance]) / s))
    np.testing.assert_allclose(found.kernel.gram(x), found.gram)
    np.testing.assert_allclose(found.kernel.cross(x[:3], x), found.gram[:3])
    np.testing.assert_allclose(np.diag(found.gram), 1.0)


def test_scales_are_medians_of_different_rows():
    x = np.array([[0.0], [3.0], [3.0]])
    assert rough_kernel(x, Rough("l2", 2.0)).scale == pytest.approx(6.0)
    assert rough_kernel(np.zeros((2, 1))).scale == pytest.approx(1.0)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("mapped", [False, True])
def test_slopes_are_derivatives(rng, distance, mapped):
    x, other, v = rng.normal(size=(5, 3)), rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    factor = rng.normal(size=(3, 3)) if mapped else None
    kernel = RoughKernel(distance, 1.3, factor)
    found, step = kernel.slopes(x, other, v), 1e-6
    for i, move in enumerate(step * np.eye(3)):
        difference = kernel.cross(x + move, other) - kernel.cross(x - move, other)
        expected = difference @ v / (2 * step)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_equal_rows_count_as_flat(rng, distance):
    x, v = rng.normal(size=(6, 2)), rng.normal(size=(6, 1))
    x[3] = x[0]
    kernel = RoughKernel(distance, 1.0)
    found = kernel.slopes(x[:1], x, v)
    others = [1, 2, 4, 5]
    np.testing.assert_allclose(found, kernel.slopes(x[:1], x[others], v[others]))


@pytest.mark.usefixtures("float64")
def test_metrics_are_average_gradient_outer_products(rows):
    """Against a model that is solved and asked for its own, in the library's way."""
    x, y = rows
    found = kernels(x, y)
    kernel = kk.kernels.Laplace(metric="full")
    for rounds in (1, 2, 3):
        errors = {}
        kernel.adapt(x)
        gram = np.asarray(kernel.gram(x))
        n = len(x)
        for ridge in RIDGES:
            left_out = kk.risk.leave_one_out(y, gram, ridge * np.trace(gram) / n**2)
            errors[ridge] = np.mean((y - left_out) ** 2)
        best = min(errors, key=errors.get)
        head = kk.NTKRidgeHead(ridge=best, relative=True, intercept=False)
        kernel.set_metric(kk.KAREModel(kernel, head).fit_head(x, y).agop(x))
        kernel.adapt(x)
        learnt = found[Rough(rounds=rounds)]
        np.testing.assert_allclose(learnt.gram, kernel.gram(x), atol=1e-5)


def test_metrics_of_repeated_rows_are_those_of_counts(rng, rows, monkeypatch):
    """Of one ridge: leaving one of two equal rows out is not leaving a double one out."""
    monkeypatch.setattr(rough, "rough_kernel", lambda x, kind: RoughKernel("l2", 1.5))
    x, y = rows
    counts = rng.integers(1, 4, len(x)).astype(float)
    order = np.repeat(np.arange(len(x)), counts.astype(int))
    kind = Rough(rounds=1)
    ((_, weighted),) = rough_kernels(x, y, [kind], (0.1,), counts)
    ((_, repeated),) = rough_kernels(x[order], y[order], [kind], (0.1,))
    np.testing.assert_allclose(weighted.kernel.factor, repeated.kernel.factor)


def test_constant_targets_leave_the_metric(rng):
    x = rng.normal(size=(20, 2))
    found = kernels(x, np.zeros((20, 1)))
    for rounds in (1, 2, 3):
        np.testing.assert_array_equal(found[Rough(rounds=rounds)].gram, found[Rough()].gram)


def test_wide_tables_learn_no_metric(rng, monkeypatch):
    monkeypatch.setattr(rough, "MOST_COLUMNS", 2)
    found = kernels(rng.normal(size=(20, 3)), rng.normal(size=(20, 1)))
    assert {*found} == {kind for kind in ROUGHS if not kind.rounds}


def test_targets_in_parts_sum_to_the_same_metric(rows, monkeypatch):
    x, y = rows
    kind = Rough(rounds=2)
    expected = kernels(x, y, [kind])[kind].gram
    monkeypatch.setattr(rough, "SLOPES", 1)
    np.testing.assert_allclose(kernels(x, y, [kind])[kind].gram, expected)


def test_worse_is_by_more_than_chance(rng):
    least = rng.random(200)
    counts = np.ones(200)
    assert not is_worse(least, least, counts)
    assert is_worse(least + 0.01, least, counts)  # each row, by the same
    noisy = least + rng.normal(0.0, 1.0, 200)
    noisy += 0.1 - np.mean(noisy - least)  # 0.1 worse, standard error 0.07
    assert not is_worse(noisy, least, counts)
    assert is_worse(np.tile(noisy, 9), np.tile(least, 9), np.ones(1800))
    assert is_worse(noisy, least, 9 * counts)  # rows that count nine times


def test_exactly_two_of_six_is_solved(data_folder):
    """The label of monks-2; a kernel in a learnt metric is chosen, and says so."""
    data = kk.datasets.load_uci("monks-2", data_folder / "uci")
    train, test = data.folds[0]
    fitted = KAREClassifier(random_state=0).fit(data.x[train], data.labels[train])
    assert fitted.score(data.x[test], data.labels[test]) >= 0.95
    assert fitted.machines_[0].rough.rounds > 0
