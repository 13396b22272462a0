"""Other learners as functions from a configuration and a task to scores.

They take tasks with rows of all classes; `edge_cases.complete` gives them the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.metrics.pairwise import euclidean_distances, manhattan_distances
from sklearn.svm import SVC

from keras_kare.datasets import signed_one_hot
from keras_kare.experiments.edge_cases import from_probabilities
from keras_kare.experiments.task import Configuration, Learner, Path, Task, guesses
from keras_kare.kernels import DenseOperator, Kernel, Laplace
from keras_kare.recipes.mixtures import Kernels, path
from keras_kare.sklearn import KAREClassifier
from keras_kare.solvers import Spectral, System

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Relative to the kernel's mean diagonal: `λ = λ~ tr(K) / n²`, in `K / n + λ I`."""

LIGHTGBM = {"n_jobs": 1, "deterministic": True, "force_col_wise": True, "verbosity": -1}
"""With which a seed determines LightGBM."""

CATBOOST = {"thread_count": 1, "verbose": False, "allow_writing_files": False}
"""With which CatBoost takes one thread, and writes no files."""

CATBOOST_TREES = 10_000
"""Trees of all classes: its 1,000 iterations up to 10 classes. Their cost grows with the
classes: 1,000 of the default depth take ten minutes with 100 classes and 1,200 rows, so
that these have 100."""

HELD_OUT = 0.2
"""Share of the training rows that chooses how often xRFM learns its metric."""


def kernel_ridge(make: Callable[..., Kernel]) -> Learner:
    """Return the learner of a kernel: scores along the ridge, for targets in {-1, 1}.

    Args:
        make: From a scale to the kernel, as `kk.kernels.Laplace`.
    """

    def scores(configuration: Configuration, task: Task) -> Path:
        s = configuration["bandwidth"] * median_distance(euclidean_distances(task.x))
        kernel = make(s, dtype="float64")
        gram, cross = (
            np.asarray(part)
            for part in (kernel.gram(task.x), kernel.cross(task.x_test, task.x))
        )
        kernels = Kernels(gram, cross, np.zeros(len(task.x_test)))
        found = path(kernels, signed_one_hot(task.labels, task.classes), RIDGES)
        return {ridge_name(ridge): each.values for ridge, each in found.items()}

    return scores


def median_distance(distances: np.ndarray) -> float:
    """Return the median distance of different rows; of unequal rows, where it is zero."""
    pairs = distances[np.triu_indices(len(distances), 1)]
    median = float(np.median(pairs))
    if median > 0.0:
        return median
    return float(np.median(pairs[pairs > 0.0])) if pairs.any() else 1.0


def ridge_name(ridge: float) -> str:
    """Return what a path calls a ridge."""
    return f"ridge={ridge:g}"


def laplace_l1(configuration: Configuration, task: Task) -> Path:
    """Return scores of kernel ridge, `K = exp(-‖x - x'‖₁/s)`, for targets in {-1, 1}.

    Of all bandwidths and ridges, those with the most training rows right, each predicted
    by the others; of equals those with the least squared error. Of `A = K/n + λI` and
    `A α = y` the error of row `i` is then `α_i / (A⁻¹)_ii`.

    Args:
        configuration: `"bandwidths"`, in median distances, and relative `"ridges"`.
        task: Rows.
    """
    y, n = signed_one_hot(task.labels, task.classes), len(task.x)
    median = median_distance(manhattan_distances(task.x))
    least, found = (np.inf, np.inf), np.zeros((len(task.x_test), y.shape[1]))
    for bandwidth in configuration["bandwidths"]:
        kernel = Laplace(bandwidth * median, distance="l1", dtype="float64")
        system = System(DenseOperator(np.asarray(kernel.gram(task.x))), y)
        cross = np.asarray(kernel.cross(task.x_test, task.x))
        ridges = [ridge * system.unit for ridge in configuration["ridges"]]
        for solution in Spectral().prepare(system).solve_grid(ridges):
            dual = np.asarray(solution.dual)
            errors = dual / np.asarray(solution.inverse_diagonal)[:, None]
            wrong = np.sum(guesses(y - errors) != task.labels)
            loss = float(wrong), float(np.sum(errors**2))
            if loss < least:
                least, found = loss, cross @ dual / n
    return {"": found}


def recipe(configuration: Configuration, task: Task) -> Path:
    """Return the scores of `KAREClassifier`, as its users call it.

    Args:
        configuration: Parameters that are not its defaults.
        task: Rows; inputs as they are.
    """
    model = KAREClassifier(random_state=task.seed, **configuration)
    scores = model.fit(task.x, task.labels).decision_function(task.x_test)
    return {"": np.reshape(scores, (len(task.x_test), -1))}


def svc(configuration: Configuration, task: Task) -> Path:
    """Return the decisions of a support vector machine."""
    s = configuration["bandwidth"] * median_distance(euclidean_distances(task.x))
    model = SVC(C=configuration["C"], gamma=0.5 / s**2, decision_function_shape="ovr")
    decision = model.fit(task.x, task.labels).decision_function(task.x_test)
    return {"": np.reshape(decision, (len(task.x_test), -1))}


def probabilities(make: Callable[[Configuration, int, int], Any]) -> Learner:
    """Return the learner of a classifier in scikit-learn's manner: its probabilities.

    Args:
        make: From a configuration, the number of classes and a seed to the classifier.
    """

    def scores(configuration: Configuration, task: Task) -> Path:
        model = make(configuration, task.classes, task.seed).fit(task.x, task.labels)
        return {"": from_probabilities(model.predict_proba(task.x_test))}

    return scores


@probabilities
def random_forest(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make a forest of 500 trees."""
    options = {"n_estimators": 500, **configuration}
    return RandomForestClassifier(random_state=seed, n_jobs=1, **options)


@probabilities
def extra_trees(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make 500 extremely randomised trees."""
    options = {"n_estimators": 500, **configuration}
    return ExtraTreesClassifier(random_state=seed, n_jobs=1, **options)


@probabilities
def hist_gradient_boosting(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make scikit-learn's boosting; below 10,000 rows it does not stop early."""
    return HistGradientBoostingClassifier(random_state=seed, **configuration)


@probabilities
def lightgbm(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make LightGBM's boosting, so that a seed determines it."""
    return importlib.import_module("lightgbm").LGBMClassifier(
        random_state=seed, **LIGHTGBM, **configuration
    )


@probabilities
def catboost(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make CatBoost's boosting, which writes no files."""
    options = {"iterations": min(1000, CATBOOST_TREES // classes), **configuration}
    return importlib.import_module("catboost").CatBoostClassifier(
        random_seed=seed, **CATBOOST, **options
    )


@probabilities
def tabpfn(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make TabPFN at its defaults."""
    return importlib.import_module("tabpfn").TabPFNClassifier(
        random_state=seed, device="cpu", **configuration
    )


@probabilities
def tabicl(configuration: Configuration, classes: int, seed: int) -> Any:
    """Make TabICL at its defaults."""
    return importlib.import_module("tabicl").TabICLClassifier(
        random_state=seed, device="cpu", **configuration
    )


def xrfm(configuration: Configuration, task: Task) -> Path:
    """Return xRFM's scores; held-out rows choose its iteration, then all rows train.

    A fifth of the training rows (of each class) chooses how often the metric is learnt;
    with that number fixed, the machine is fitted once more to all training rows, which
    served it better than the machine of four fifths on small data.
    """
    held_out = _held_out(task.labels, np.random.default_rng(task.seed))
    rest = ~held_out if not held_out.all() else held_out
    chooser = _xrfm_model(configuration, task.seed, iterations=5, choose=True)
    _fit_xrfm(chooser, task, rest, held_out)
    iterations = int(chooser.trees[0]["model"].best_iter)
    model = _xrfm_model(configuration, task.seed, iterations, choose=False)
    _fit_xrfm(model, task, np.ones(len(task.x), bool), held_out)
    return {"": from_probabilities(model.predict_proba(task.x_test.astype("float32")))}


def _xrfm_model(
    configuration: Configuration, seed: int, iterations: int, choose: bool
) -> Any:
    kernel = {"kernel": "l2", "exponent": 1.0, "bandwidth_mode": "constant", "diag": False}
    model = {**kernel, "bandwidth": configuration["bandwidth"]}
    fit = {
        "reg": configuration["reg"],
        "iters": iterations,
        "early_stop_rfm": choose,
        "return_best_params": choose,
        "verbose": False,
    }
    return importlib.import_module("xrfm").xRFM(
        rfm_params={"model": model, "fit": fit},
        device=importlib.import_module("torch").device("cpu"),
        tuning_metric="brier",
        classification_mode="prevalence",
        n_threads=1,
        random_state=seed,
        verbose=False,
    )


def _fit_xrfm(model: Any, task: Task, rows: np.ndarray, held_out: np.ndarray) -> None:
    x = task.x.astype("float32")
    classes = importlib.import_module("torch").as_tensor(task.labels)
    model.fit(x[rows], classes[rows], x[held_out], classes[held_out])


def _held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of about a fifth of the rows, by class; a class keeps one at least.

    Where no class can spare a row, it is all rows. (`StratifiedShuffleSplit` refuses
    classes of one row.)
    """
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        mask[rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)]] = True
    return mask if mask.any() else ~mask
