"""Other learners behind one interface: kernel ridge, SVM, trees, boosting, xRFM.

Each contender is a grid of configurations and a function from a task to scores of its
test rows, so that one protocol chooses hyperparameters for all of them alike. What a
learner gives for free within a configuration (kernel ridge: every ridge, from one
eigendecomposition) comes back as a path, and the protocol chooses along it too.

All of them run on one thread, and a seed determines their scores.

| name | learner | library |
|---|---|---|
| `laplace` | kernel ridge, K = exp(-‖x - x'‖ / s) | SciPy |
| `gaussian` | kernel ridge, K = exp(-‖x - x'‖² / (2 s²)) | SciPy |
| `laplace_l1` | kernel ridge, K = exp(-‖x - x'‖₁ / s), which chooses by itself | SciPy |
| `svc` | support vector machine, Gaussian kernel | scikit-learn |
| `random_forest` | 500 trees | scikit-learn |
| `extra_trees` | 500 extremely randomised trees | scikit-learn |
| `hist_gradient_boosting` | boosted trees | scikit-learn |
| `lightgbm` | boosted trees | lightgbm |
| `catboost` | boosted symmetric trees | catboost |
| `xrfm` | kernel ridge whose metric learns from gradients of its predictions | xrfm |
| `tabpfn` | a transformer that was trained on tables | tabpfn, and weights |
| `tabicl` | a transformer that was trained on tables | tabicl, and weights |
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import product
from typing import Any

try:
    from keras_kare.experiments import learners
except ImportError as error:
    raise ImportError(
        "`keras_kare.experiments.contenders` needs scikit-learn: "
        f'`pip install "keras_kare[experiments]"`. Received: {error}'
    ) from error
from keras_kare.experiments.edge_cases import complete
from keras_kare.experiments.task import Configuration, Learner
from keras_kare.kernels import Gaussian, Laplace


@dataclass(frozen=True)
class Contender:
    """A learner with its grid.

    Attributes:
        name: What tables call it.
        configurations: The grid: what each fit costs anew.
        predict: From a configuration and a task to a path: names of what comes free
            within the configuration (`""` where nothing does), each with scores of shape
            `(m, k)`. `k` is 1 for two classes, positive for class 1, and the number of
            classes otherwise, larger for likelier. Classes without training rows have
            the lowest score; training rows of one class are allowed.
        library: The package that it needs. Defaults to `"sklearn"`.
        note: What else there is to say of that. Defaults to nothing.
    """

    name: str
    configurations: tuple[Configuration, ...]
    predict: Learner
    library: str = "sklearn"
    note: str = ""

    @property
    def remedy(self) -> str:
        """How to install the library."""
        return f"pip install {self.library.replace('sklearn', 'scikit-learn')}"


def available() -> dict[str, Contender]:
    """Return the contenders whose library is installed, by name."""
    return {name: each for name, each in CONTENDERS.items() if _installed(each.library)}


def not_run() -> dict[str, str]:
    """Say why the others do not run: libraries that are not installed."""
    return {
        name: f"{each.library} is not installed: `{each.remedy}`{each.note}"
        for name, each in CONTENDERS.items()
        if not _installed(each.library)
    }


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _grid(**values: tuple[Any, ...]) -> tuple[Configuration, ...]:
    """Return every combination of the values, the last name varying fastest.

    (`ParameterGrid` sorts the names, and equals are chosen among in the grid's order.)
    """
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


_RIDGES = tuple(map(learners.ridge_name, learners.RIDGES))

WEIGHTS = (
    "; its weights are no part of the package: they are downloaded on first use, once a "
    "person has accepted their terms"
)

L1_RIDGES = tuple(10.0**power for power in range(-6, 3))

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
            complete(learners.kernel_ridge(Laplace), _RIDGES),
        ),
        Contender(
            "gaussian",
            _grid(bandwidth=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
            complete(learners.kernel_ridge(Gaussian), _RIDGES),
        ),
        Contender(
            "laplace_l1",
            ({"bandwidths": (0.5, 1.0, 2.0), "ridges": L1_RIDGES},),
            complete(learners.laplace_l1),
        ),
        Contender(
            "svc",
            _grid(bandwidth=(0.5, 1.0, 2.0, 4.0), C=(0.1, 1.0, 10.0, 100.0, 1000.0)),
            complete(learners.svc),
        ),
        Contender("random_forest", _grid(), complete(learners.random_forest)),
        Contender("extra_trees", _grid(), complete(learners.extra_trees)),
        Contender(
            "hist_gradient_boosting", _grid(), complete(learners.hist_gradient_boosting)
        ),
        Contender("lightgbm", _grid(), complete(learners.lightgbm), "lightgbm"),
        Contender("catboost", _grid(depth=(4,)), complete(learners.catboost), "catboost"),
        Contender(
            "xrfm",
            _grid(bandwidth=(3.0, 10.0), reg=(1e-3, 1e-1, 1.0)),
            complete(learners.xrfm),
            "xrfm",
        ),
        Contender("tabpfn", _grid(), complete(learners.tabpfn), "tabpfn", WEIGHTS),
        Contender("tabicl", _grid(), complete(learners.tabicl), "tabicl", WEIGHTS),
    )
}
