"""Contenders: one interface, the same cases, and kernel ridge as its definition says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.naive_bayes import GaussianNB
from threadpoolctl import threadpool_info

from keras_kare.datasets import load_uci, preprocess, signed_one_hot
from keras_kare.experiments import contenders, learners
from keras_kare.experiments.contenders import (
    CONTENDERS,
    Contender,
    available,
    not_run,
)
from keras_kare.experiments.learners import RIDGES
from keras_kare.experiments.task import Task

KERNELS = ("laplace", "gaussian")
FEW_TREES = {
    "random_forest": {"n_estimators": 20},
    "extra_trees": {"n_estimators": 20},
    "hist_gradient_boosting": {"max_iter": 20},
    "lightgbm": {"n_estimators": 20},
    "catboost": {"iterations": 20},
}


@pytest.fixture(params=CONTENDERS)
def contender(request: pytest.FixtureRequest) -> Contender:
    if request.param not in available():
        pytest.skip(not_run()[request.param])
    return CONTENDERS[request.param]


def default(contender: Contender) -> dict[str, Any]:
    """A configuration from the middle of the grid."""
    return contender.configurations[len(contender.configurations) // 2]


def two_folds(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Training rows, labels, classes and test rows of a real data set's first fold."""
    found = load_uci(name, folder / "uci")
    train, test = found.folds[0]
    x, x_test = preprocess(found.x[train], found.x[test])
    return x, found.labels[train], found.classes, x_test


def blobs(
    rng: np.random.Generator, classes: int, rows: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and test rows (one a class, in order) around points far apart."""
    centres = 6.0 * np.eye(classes, 3) + 3.0 * np.arange(classes)[:, None]
    labels = np.repeat(np.arange(classes), rows)
    x = centres[labels] + 0.3 * rng.normal(size=(len(labels), 3))
    return x, labels, centres


def predicted(scores: np.ndarray) -> np.ndarray:
    return (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)


def definition(
    name: str,
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    x_test: np.ndarray,
    factor: float,
) -> dict[str, np.ndarray]:
    """Kernel ridge by dense solves of K / n + λ I, λ = λ~ tr(K) / n²."""
    s = factor * np.median(pdist(x))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distances = cdist(a, b)
        if name == "laplace":
            return np.exp(-distances / s)
        return np.exp(-(distances**2) / (2.0 * s**2))

    K, n = kernel(x, x), len(x)
    return {
        f"ridge={ridge:g}": kernel(x_test, x)
        @ np.linalg.solve(
            K / n + ridge * np.trace(K) / n**2 * np.eye(n),
            signed_one_hot(labels, classes) / n,
        )
        for ridge in RIDGES
    }


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("uci", ["iris", "fertility"])
def test_kernel_ridge_agrees_with_dense_solves(
    name: str, uci: str, data_folder: Path
) -> None:
    x, labels, classes, x_test = two_folds(uci, data_folder)
    for configuration in CONTENDERS[name].configurations:
        path = CONTENDERS[name].predict(configuration, Task(x, labels, classes, x_test))
        expected = definition(name, x, labels, classes, x_test, configuration["bandwidth"])
        assert list(path) == list(expected)
        for ridge, scores in path.items():
            # the smallest ridge leaves eight digits, whatever order threads add in
            np.testing.assert_allclose(scores, expected[ridge], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_ridge_agrees_with_scikit_learn(name: str, data_folder: Path) -> None:
    x, labels, classes, x_test = two_folds("iris", data_folder)
    s = np.median(pdist(x))
    kernels = {
        # scikit-learn's own kernel "laplacian" is of the sum of absolute differences.
        "laplace": {"kernel": lambda a, b: np.exp(-np.linalg.norm(a - b) / s)},
        "gaussian": {"kernel": "rbf", "gamma": 0.5 / s**2},
    }
    path = CONTENDERS[name].predict({"bandwidth": 1.0}, Task(x, labels, classes, x_test))
    # K + α I is n (K / n + λ I) for α = λ n = λ~ tr(K) / n, and tr(K) = n.
    for ridge in (1e-4, 0.1, 10.0):
        model = KernelRidge(alpha=ridge, **kernels[name])
        model.fit(x, signed_one_hot(labels, classes))
        np.testing.assert_allclose(
            path[f"ridge={ridge:g}"], model.predict(x_test), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("uci", ["iris", "fertility"])
def test_the_l1_kernel_is_chosen_by_rows_left_out(uci: str, data_folder: Path) -> None:
    """Every machine is solved again without each row. `K/n + λI = (K + λ~ I)/n`."""
    x, labels, classes, x_test = two_folds(uci, data_folder)
    x, labels = x[::3], labels[::3]
    n, y = len(x), signed_one_hot(labels, classes)
    (configuration,) = CONTENDERS["laplace_l1"].configurations
    losses, scores = [], []
    for factor in configuration["bandwidths"]:
        s = factor * np.median(pdist(x, "cityblock"))
        K = np.exp(-cdist(x, x, "cityblock") / s)
        cross = np.exp(-cdist(x_test, x, "cityblock") / s)
        for ridge in configuration["ridges"]:
            left = np.empty_like(y)
            for i in range(n):
                rest = np.arange(n) != i
                solved = np.linalg.solve(
                    K[np.ix_(rest, rest)] + ridge * np.eye(n - 1), y[rest]
                )
                left[i] = K[i, rest] @ solved
            wrong = np.sum(predicted(left) != labels)
            losses.append((wrong, np.sum((left - y) ** 2)))
            scores.append(cross @ np.linalg.solve(K + ridge * np.eye(n), y))
    expected = scores[min(range(len(losses)), key=losses.__getitem__)]
    path = CONTENDERS["laplace_l1"].predict(configuration, Task(x, labels, classes, x_test))
    np.testing.assert_allclose(path[""], expected, rtol=1e-6, atol=1e-7)


def test_scores_have_their_shape_and_tell_real_classes_apart(
    contender: Contender, data_folder: Path
) -> None:
    found = load_uci("iris", data_folder / "uci")
    test = found.folds[0][1]
    x, labels, classes, x_test = two_folds("iris", data_folder)
    path = contender.predict(default(contender), Task(x, labels, classes, x_test))
    for scores in path.values():
        assert scores.shape == (len(x_test), 3)
        assert np.isfinite(scores).all()
    right = [np.mean(predicted(s) == found.labels[test]) for s in path.values()]
    assert max(right) > 0.9


def test_two_classes_have_one_column_positive_for_class_1(
    contender: Contender, rng: np.random.Generator
) -> None:
    x, labels, x_test = blobs(rng, 2, rows=25)
    path = contender.predict(small(contender), Task(x, labels, 2, x_test))
    for scores in path.values():
        assert scores.shape == (2, 1)
        assert scores[0, 0] < 0.0 < scores[1, 0]


def small(contender: Contender) -> dict[str, Any]:
    return {**default(contender), **FEW_TREES.get(contender.name, {})}


@pytest.mark.parametrize("present", [(0, 2, 3), (1, 4), (0, 1)])
def test_missing_classes_score_lowest(
    contender: Contender, present: tuple[int, ...], rng: np.random.Generator
) -> None:
    x, dense, x_test = blobs(rng, len(present), rows=25)
    labels = np.array(present)[dense]
    path = contender.predict(small(contender), Task(x, labels, 5, x_test))
    missing = sorted(set(range(5)) - set(present))
    for scores in path.values():
        assert scores.shape == (len(present), 5)
        assert np.isfinite(scores).all()
        assert scores[:, missing].max() < scores[:, present].min()
        assert predicted(scores).tolist() == list(present)


@pytest.mark.parametrize(("only", "classes"), [(0, 2), (1, 2), (0, 4), (2, 4)])
def test_training_rows_of_one_class_predict_it(
    contender: Contender, only: int, classes: int, rng: np.random.Generator
) -> None:
    x, x_test = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    labels = np.full(4, only)
    path = contender.predict(default(contender), Task(x, labels, classes, x_test))
    several = contender.predict(
        small(contender),
        Task(np.vstack([x, x]), np.array([0, 1] * 4), 2, x_test),
    )
    assert list(path) == list(several)
    for scores in path.values():
        assert scores.shape == (5, 1 if classes == 2 else classes)
        assert (predicted(scores) == only).all()


def test_tiny_sets_run(contender: Contender, rng: np.random.Generator) -> None:
    """One row of a class, two equal rows, a column of zeros, no variation at all."""
    x = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    for rows, labels in ((x, [0, 0, 1]), (x, [0, 1, 2]), (0.0 * x, [0, 1, 1])):
        classes = max(2, max(labels) + 1)
        path = contender.predict(small(contender), Task(rows, np.array(labels), classes, x))
        for scores in path.values():
            assert scores.shape == (3, 1 if classes == 2 else classes)
            assert np.isfinite(scores).all()


def test_a_seed_determines_the_scores(contender: Contender, data_folder: Path) -> None:
    x, labels, classes, x_test = two_folds("iris", data_folder)
    first = contender.predict(small(contender), Task(x, labels, classes, x_test, 7))
    np.random.default_rng(1).normal(size=5)
    np.random.seed(11)
    second = contender.predict(small(contender), Task(x, labels, classes, x_test, 7))
    for name, scores in first.items():
        np.testing.assert_array_equal(scores, second[name])


def test_threads_are_as_before(contender: Contender, rng: np.random.Generator) -> None:
    x, labels, x_test = blobs(rng, 2)
    contender.predict(small(contender), Task(x, labels, 2, x_test))  # loads its library
    before = [each["num_threads"] for each in threadpool_info()]
    contender.predict(small(contender), Task(x, labels, 2, x_test))
    assert [each["num_threads"] for each in threadpool_info()] == before


def test_arguments_are_left_as_they_are(
    contender: Contender, rng: np.random.Generator
) -> None:
    x, labels, x_test = blobs(rng, 3)
    arrays = [a.copy() for a in (x, labels, x_test)]
    configuration = small(contender)
    contender.predict(configuration, Task(x, labels, 3, x_test))
    assert configuration == small(contender)
    for before, after in zip(arrays, (x, labels, x_test), strict=True):
        np.testing.assert_array_equal(before, after)


def test_held_out_rows_leave_each_class_one() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [1, 2, 10, 50])
    held_out = learners._held_out(labels, rng)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [0, 1, 2, 10]
    assert learners._held_out(np.arange(4), rng).all()


def test_every_contender_runs_or_has_a_reason() -> None:
    reasons = not_run()
    assert set(available()) | set(reasons) == set(CONTENDERS)
    assert not set(available()) & set(reasons)
    assert all(CONTENDERS[name].name == name for name in CONTENDERS)
    assert {"laplace", "gaussian", "svc"} <= set(available())


def test_an_uninstalled_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "_installed", lambda library: library == "sklearn")
    assert "xrfm" not in available()
    assert not_run()["xrfm"] == "xrfm is not installed: `pip install xrfm`"
    assert "weights are no part of the package" in not_run()["tabpfn"]


@pytest.mark.parametrize(("name", "of"), [("tabpfn", "TabPFN"), ("tabicl", "TabICL")])
def test_those_that_download_their_weights(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, name: str, of: str
) -> None:
    """With scikit-learn's naive Bayes in their place, made as they are."""

    class Stand(GaussianNB):
        def __init__(self, random_state: int, device: str):
            assert (random_state, device) == (3, "cpu")
            super().__init__()
            self.random_state, self.device = random_state, device

    fake = types.ModuleType(name)
    setattr(fake, f"{of}Classifier", Stand)
    monkeypatch.setitem(sys.modules, name, fake)
    x, labels, x_test = blobs(rng, 3)
    path = CONTENDERS[name].predict({}, Task(x, labels, 3, x_test, 3))
    assert path[""].argmax(axis=1).tolist() == [0, 1, 2]


X, LABELS = np.zeros((4, 2)), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "`classes` must be"),
        ({"x": np.zeros(4)}, "`x` must be a matrix"),
        ({"x": np.zeros((0, 2))}, "`x` must be a matrix"),
        ({"x_test": np.zeros((3, 5))}, "`x` and `x_test` must have the same columns"),
        ({"labels": np.zeros(4)}, "`labels` must be whole numbers"),
        ({"labels": np.zeros(3, int)}, "`labels` must be one a row"),
        ({"labels": np.array([0, 1, 2, 1])}, "`labels` must be from 0 to 1"),
        ({"labels": np.array([0, 1, -1, 1])}, "`labels` must be from 0 to 1"),
        ({"x": np.full((4, 2), np.nan)}, "`x` holds NaN or Inf"),
        ({"x_test": np.full((4, 2), np.inf)}, "`x_test` holds NaN or Inf"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "labels": LABELS, "classes": 2, "x_test": X, **change}
    with pytest.raises(ValueError, match=rf"(?s){re.escape(message)}.*Received: "):
        CONTENDERS["svc"].predict(
            {"bandwidth": 1.0, "C": 1.0},
            Task(**arguments),
        )
