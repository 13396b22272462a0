"""Other learners behind one interface: kernel ridge, SVM, forests, boosting, xRFM.

Each contender is a grid of configurations and a function from training rows to scores
of test rows, so that one protocol chooses hyperparameters for all of them alike. What a
learner gives for free within a configuration (kernel ridge: every ridge, from one
eigendecomposition) comes back as a path, and the protocol chooses along it too.

All of them run on one thread, and a seed determines their scores.

| name | learner | library |
|---|---|---|
| `laplace` | kernel ridge, K = exp(-‖x - x'‖ / s) | SciPy |
| `gaussian` | kernel ridge, K = exp(-‖x - x'‖² / (2 s²)) | SciPy |
| `svc` | support vector machine, Gaussian kernel | scikit-learn |
| `random_forest` | 500 trees | scikit-learn |
| `kare_classifier` | `keras_kare.sklearn.KAREClassifier` | this one |
| `hist_gradient_boosting` | boosted trees | scikit-learn |
| `lightgbm` | boosted trees | lightgbm |
| `catboost` | boosted symmetric trees | catboost |
| `xrfm` | kernel ridge whose metric learns from gradients of its predictions | xrfm |
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

try:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.svm import SVC
except ImportError as error:
    raise ImportError(
        "`keras_kare.experiments.contenders` needs scikit-learn: "
        f'`pip install "keras_kare[experiments]"`. Received: {error}'
    ) from error

from keras_kare._validation import is_whole
from keras_kare.datasets import signed_one_hot
from keras_kare.recipes.mixtures import Kernels, path

Configuration = dict[str, Any]
Path = dict[str, np.ndarray]
Predict = Callable[[Configuration, np.ndarray, np.ndarray, int, np.ndarray, int], Path]
# Like `Predict`, without its cases: labels 0 to p - 1, all of them present, p at least 2.
Scores = Callable[[Configuration, np.ndarray, np.ndarray, int, np.ndarray, int], Path]


@dataclass(frozen=True)
class Contender:
    """A learner with its grid.

    Attributes:
        name: What tables call it.
        configurations: The grid: what each fit costs anew.
        predict: From `(configuration, x (n, d), labels (n,), classes, x_test (m, d),
            seed)` to a path: names of what comes free within the configuration (`""`
            where nothing does), each with scores of shape `(m, k)`. `k` is 1 for two
            classes, positive for class 1, and the number of classes otherwise, larger
            for likelier. Classes without training rows have the lowest score; training
            rows of one class are allowed.
        library: The package that it needs.
        remedy: How to install it.
    """

    name: str
    configurations: tuple[Configuration, ...]
    predict: Predict
    library: str = "sklearn"
    remedy: str = "pip install scikit-learn"


def available() -> dict[str, Contender]:
    """The contenders whose library is installed, by name."""
    return {name: each for name, each in CONTENDERS.items() if _installed(each.library)}


def not_run() -> dict[str, str]:
    """Why the others do not run: `NOT_RUN`, and those whose library is not installed."""
    missing = {
        name: f"{each.library} is not installed: `{each.remedy}`"
        for name, each in CONTENDERS.items()
        if not _installed(each.library)
    }
    return {**NOT_RUN, **missing}


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _library(name: str) -> Any:
    """A library that few users have, imported when a contender needs it."""
    return importlib.import_module(name)


# Kernel ridge ---------------------------------------------------------------------------

# λ~, relative to the kernel's mean diagonal: λ = λ~ tr(K) / n², in K / n + λ I.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


def _laplace(distances: np.ndarray, s: float) -> np.ndarray:
    return np.asarray(np.exp(-distances / s))


def _gaussian(distances: np.ndarray, s: float) -> np.ndarray:
    return np.asarray(np.exp(-(distances**2) / (2.0 * s**2)))


def _kernel_ridge(kernel: Callable[[np.ndarray, float], np.ndarray]) -> Scores:
    """Scores along the ridge, for targets in {-1, 1}: see `mixtures.path`."""

    def scores(
        configuration: Configuration,
        x: np.ndarray,
        labels: np.ndarray,
        classes: int,
        x_test: np.ndarray,
        seed: int,
    ) -> Path:
        distances = _distances(x)
        s = configuration["bandwidth"] * _median(distances)
        cross = kernel(euclidean_distances(x_test, x), s)
        kernels = Kernels(kernel(distances, s), cross, np.zeros(len(x_test)))
        found = path(kernels, signed_one_hot(labels, classes), RIDGES)
        return {_ridge_name(ridge): each.values for ridge, each in found.items()}

    return scores


def _distances(x: np.ndarray) -> np.ndarray:
    """Pairwise distances, shape `(n, n)`: exact zeros on the diagonal."""
    return np.asarray(euclidean_distances(x))


def _median(distances: np.ndarray) -> float:
    """The median distance of different rows; of unequal rows, where that is zero."""
    pairs = distances[np.triu_indices(len(distances), 1)]
    median = float(np.median(pairs))
    if median > 0.0:
        return median
    return float(np.median(pairs[pairs > 0.0])) if pairs.any() else 1.0


def _ridge_name(ridge: float) -> str:
    return f"ridge={ridge:g}"


# scikit-learn ---------------------------------------------------------------------------


def _svc(
    configuration: Configuration,
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    x_test: np.ndarray,
    seed: int,
) -> Path:
    s = configuration["bandwidth"] * _median(_distances(x))
    model = SVC(C=configuration["C"], gamma=0.5 / s**2, decision_function_shape="ovr")
    decision = model.fit(x, labels).decision_function(x_test)
    return {"": np.reshape(decision, (len(x_test), -1))}


def _probabilities(make: Callable[[Configuration, int, int], Any]) -> Scores:
    """Scores of a classifier in scikit-learn's manner: its probabilities.

    Args:
        make: From a configuration, the number of classes and a seed to the classifier.
    """

    def scores(
        configuration: Configuration,
        x: np.ndarray,
        labels: np.ndarray,
        classes: int,
        x_test: np.ndarray,
        seed: int,
    ) -> Path:
        model = make(configuration, classes, seed).fit(x, labels)
        return {"": _from_probabilities(model.predict_proba(x_test))}

    return scores


def _from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities `(m, p)` as scores: for two classes the difference, `(m, 1)`."""
    probabilities = np.asarray(probabilities, "float64")
    if probabilities.shape[1] == 2:
        return probabilities[:, 1:] - probabilities[:, :1]
    return probabilities


def _random_forest(configuration: Configuration, classes: int, seed: int) -> Any:
    options = {"n_estimators": 500, **configuration}
    return RandomForestClassifier(random_state=seed, n_jobs=1, **options)


def _kare_classifier(configuration: Configuration, classes: int, seed: int) -> Any:
    """Ours, as a user would call it; in single precision, as the other networks here."""
    from keras_kare.sklearn import KAREClassifier

    return KAREClassifier(dtype="float32", random_state=seed)


def _hist_gradient_boosting(configuration: Configuration, classes: int, seed: int) -> Any:
    # Early stopping is off below 10,000 rows by default.
    return HistGradientBoostingClassifier(random_state=seed, **configuration)


# Boosting libraries ---------------------------------------------------------------------


def _lightgbm(configuration: Configuration, classes: int, seed: int) -> Any:
    return _library("lightgbm").LGBMClassifier(
        random_state=seed,
        n_jobs=1,
        deterministic=True,
        force_col_wise=True,
        verbosity=-1,
        **configuration,
    )


# Its 1,000 iterations up to 10 classes. Their cost grows with the classes: 1,000 of the
# default depth take ten minutes with 100 classes and 1,200 rows, so that these have 100.
CATBOOST_TREES = 10_000


def _catboost(configuration: Configuration, classes: int, seed: int) -> Any:
    iterations = min(1000, CATBOOST_TREES // classes)
    options = {"iterations": iterations, **configuration}
    return _library("catboost").CatBoostClassifier(
        random_seed=seed,
        thread_count=1,
        verbose=False,
        allow_writing_files=False,
        **options,
    )


# xRFM -----------------------------------------------------------------------------------

HELD_OUT = 0.2


def _xrfm(
    configuration: Configuration,
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    x_test: np.ndarray,
    seed: int,
) -> Path:
    """xRFM, its iteration chosen on held-out training rows, then fitted to all of them.

    A fifth of the training rows (of each class) chooses how often the metric is learnt;
    with that number fixed, the machine is fitted once more to all training rows, which
    served it better than the machine of four fifths on small data.
    """
    held_out = _held_out(labels, np.random.default_rng(seed))
    rest = ~held_out if not held_out.all() else held_out
    chooser = _xrfm_model(configuration, seed, iterations=5, choose=True)
    _fit_xrfm(chooser, x, labels, rest, held_out)
    iterations = int(chooser.trees[0]["model"].best_iter)
    everything = np.ones(len(x), bool)
    model = _xrfm_model(configuration, seed, iterations, choose=False)
    _fit_xrfm(model, x, labels, everything, held_out)
    probabilities = model.predict_proba(x_test.astype("float32"))
    return {"": _from_probabilities(probabilities)}


def _xrfm_model(
    configuration: Configuration, seed: int, iterations: int, choose: bool
) -> Any:
    kernel = {"kernel": "l2", "exponent": 1.0, "bandwidth_mode": "constant", "diag": False}
    fit = {
        "reg": configuration["reg"],
        "iters": iterations,
        "early_stop_rfm": choose,
        "return_best_params": choose,
        "verbose": False,
    }
    return _library("xrfm").xRFM(
        rfm_params={
            "model": {**kernel, "bandwidth": configuration["bandwidth"]},
            "fit": fit,
        },
        device=_library("torch").device("cpu"),
        tuning_metric="brier",
        classification_mode="prevalence",
        n_threads=1,
        random_state=seed,
        verbose=False,
    )


def _fit_xrfm(
    model: Any, x: np.ndarray, labels: np.ndarray, rows: np.ndarray, held_out: np.ndarray
) -> None:
    x = x.astype("float32")
    classes = _library("torch").as_tensor(labels)
    model.fit(x[rows], classes[rows], x[held_out], classes[held_out])


def _held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask of about a fifth of the rows, by class; a class keeps one row at least.

    Where no class can spare a row, all rows.
    """
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        mask[rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)]] = True
    return mask if mask.any() else ~mask


# The cases that all learners share ------------------------------------------------------


def _complete(scores: Scores, names: tuple[str, ...] = ("",)) -> Predict:
    """Give a learner of complete label sets the cases that not all learners take.

    These are classes without training rows, and training rows that say nothing: all of
    one class, or all equal. Then the scores are the classes' frequencies.

    Args:
        scores: The learner.
        names: What comes free within a configuration, as `scores` names it.
    """

    def predict(
        configuration: Configuration,
        x: np.ndarray,
        labels: np.ndarray,
        classes: int,
        x_test: np.ndarray,
        seed: int,
    ) -> Path:
        x, labels, x_test = _checked(x, labels, classes, x_test)
        present, dense = np.unique(labels, return_inverse=True)
        if len(present) == 1 or np.all(x == x[0]):
            constant = _frequencies(dense, len(x_test))
            return {name: _columns(constant, present, classes) for name in names}
        # Threads are limited here and not only by arguments: HistGradientBoosting and
        # BLAS have none.
        with _library("threadpoolctl").threadpool_limits(limits=1):
            path = scores(configuration, x, dense, len(present), x_test, seed)
        return {name: _columns(each, present, classes) for name, each in path.items()}

    return predict


def _frequencies(labels: np.ndarray, rows: int) -> np.ndarray:
    """Scores of test rows that are all alike, as `_columns` takes them."""
    frequencies = np.bincount(labels) / len(labels)
    scores = np.tile(frequencies, (rows, 1))
    return np.zeros((rows, 1)) if len(frequencies) == 1 else _from_probabilities(scores)


def _columns(scores: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Scores of the classes present as scores of all.

    Args:
        scores: Shape `(m, 1)` for one or two present classes, else `(m, p)`.
        present: The classes with training rows, ascending, shape `(p,)`.
        classes: How many there are in all.

    Returns:
        Shape `(m, 1)` for two classes, else `(m, classes)`; missing classes lie below
        the lowest score.
    """
    if classes == 2:
        return scores if len(present) == 2 else scores + (1.0 if present[0] == 1 else -1.0)
    if len(present) == 2:
        scores = np.hstack([-scores, scores])
    lowest = scores.min(initial=0.0) - 1.0
    columns = np.full((len(scores), classes), lowest)
    columns[:, present] = scores
    return columns


def _checked(
    x: np.ndarray, labels: np.ndarray, classes: int, x_test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as float64 and labels as integers, or an error that names what is wrong."""
    x = np.asarray(x, "float64")
    x_test = np.asarray(x_test, "float64")
    labels = np.asarray(labels)
    if not is_whole(classes) or classes < 2:
        raise ValueError(
            f"`classes` must be a whole number of at least 2. Received: classes={classes!r}"
        )
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(
            f"`x` must have rows of features, shape (n, d). Received: x of shape {x.shape}"
        )
    if x_test.ndim != 2 or x_test.shape[1] != x.shape[1]:
        raise ValueError(
            "`x_test` must have the features of `x`, shape (m, d). "
            f"Received: x_test of shape {x_test.shape}, x of shape {x.shape}"
        )
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be one integer a row of `x`. Received: "
            f"labels of shape {labels.shape} and dtype {labels.dtype}, x of {len(x)} rows"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            "`labels` must lie between 0 and `classes` - 1. Number the classes from 0. "
            f"Received: labels from {labels.min()} to {labels.max()}, classes={classes}"
        )
    for name, rows in (("x", x), ("x_test", x_test)):
        if not np.isfinite(rows).all():
            raise ValueError(
                f"`{name}` holds NaN or Inf. Remove or impute those entries. "
                f"Received: {name} of shape {rows.shape}"
            )
    return x, labels, x_test


def _grid(**values: tuple[Any, ...]) -> tuple[Configuration, ...]:
    """Every combination of the values, the last name varying fastest."""
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


# The table ------------------------------------------------------------------------------

_RIDGE_NAMES = tuple(_ridge_name(ridge) for ridge in RIDGES)

# Bandwidths of the kernels are factors of the median distance of training rows; those of
# xRFM are plain distances, as its authors have them (default 10). Forests and boosting run
# at their libraries' defaults, with one configuration, which needs no inner folds: a fit
# costs five to fifty times one of the kernels'. CatBoost's depth is 4 instead of 6: as
# accurate on six of these data sets, at a third of the cost.
CONTENDERS: dict[str, Contender] = {
    each.name: each
    for each in (
        Contender(
            "laplace",
            _grid(bandwidth=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
            _complete(_kernel_ridge(_laplace), _RIDGE_NAMES),
        ),
        Contender(
            "gaussian",
            _grid(bandwidth=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
            _complete(_kernel_ridge(_gaussian), _RIDGE_NAMES),
        ),
        Contender(
            "svc",
            _grid(bandwidth=(0.5, 1.0, 2.0, 4.0), C=(0.1, 1.0, 10.0, 100.0, 1000.0)),
            _complete(_svc),
        ),
        Contender(
            "random_forest",
            _grid(),
            _complete(_probabilities(_random_forest)),
        ),
        Contender(
            "kare_classifier",
            _grid(),
            _complete(_probabilities(_kare_classifier)),
            library="keras_kare",
            remedy="pip install keras_kare",
        ),
        Contender(
            "hist_gradient_boosting",
            _grid(),
            _complete(_probabilities(_hist_gradient_boosting)),
        ),
        Contender(
            "lightgbm",
            _grid(),
            _complete(_probabilities(_lightgbm)),
            library="lightgbm",
            remedy="pip install lightgbm",
        ),
        Contender(
            "catboost",
            _grid(depth=(4,)),
            _complete(_probabilities(_catboost)),
            library="catboost",
            remedy="pip install catboost",
        ),
        Contender(
            "xrfm",
            _grid(bandwidth=(3.0, 10.0), reg=(1e-3, 1e-1, 1.0)),
            _complete(_xrfm),
            library="xrfm",
            remedy="pip install xrfm",
        ),
    )
}

NOT_RUN: dict[str, str] = {
    "tabpfn": "its weights are no part of its package: they are downloaded on first "
    "use, once a person has accepted their terms",
}
