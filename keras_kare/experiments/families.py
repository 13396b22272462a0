"""Who takes part in the UCI comparison, each with its grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from keras_kare.datasets import preprocess, signed_one_hot
from keras_kare.experiments import learners, settings
from keras_kare.experiments.contenders import available
from keras_kare.experiments.edge_cases import complete
from keras_kare.experiments.lab import Lab, lab, values
from keras_kare.experiments.protocols import Family, Paths
from keras_kare.experiments.scaling import as_given, one_hot, standardize
from keras_kare.experiments.settings import Architecture, Training
from keras_kare.experiments.task import Configuration, Learner, Path, Task
from keras_kare.experiments.variants import RECIPES
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.mixtures import kernels
from keras_kare.recipes.recipe import Recipe

DEPTHS = settings.UCI_DEPTHS
LARGE_DEPTHS = (1, 2, 3)
WIDTH = 64
"""The part of the paper's grid that is run: one of its five widths, all its learning rates,
and all its depths, or three of them on large data sets."""

HONEST_DEPTH = 1
HONEST_KARE_RATE = 10.0
HONEST_MSE_RATE = 0.1
HONEST_EPOCHS = (30, 100)
"""What the honest protocol, which fits all of it five times a fold, has of that."""


def families(protocol: str, large: bool = False) -> dict[str, Family]:
    """Return a protocol's families, by name.

    The honest ones have less of the paper's grid; they may stop training early. The
    repeated one has the recipe, too, with its variants.

    Args:
        protocol: As in `uci_jobs.jobs`.
        large: Whether for a large data set, where less of the paper's grid is run.
    """
    honest = protocol in ("honest", "repeated")
    depths = (HONEST_DEPTH,) if honest else LARGE_DEPTHS if large else DEPTHS
    epochs = HONEST_EPOCHS if honest else (settings.UCI_KARE_EPOCHS,)
    kare = tuple(
        {"depth": depth, "rate": rate, "epochs": epochs}
        for depth in depths
        for rate in ((HONEST_KARE_RATE,) if honest else settings.UCI_KARE_RATES[depth])
    )
    mse = tuple(
        {"depth": depth, "rate": rate}
        for depth in depths
        for rate in ((HONEST_MSE_RATE,) if honest else settings.UCI_MSE_RATES)
    )
    found = {
        "kare": Family(
            ("ntk", "ntk_kare"), kare, predict_kare, preprocess, settings="one output"
        ),
        "mse": Family(("network", "after_ntk", "residual"), mse, predict_mse, preprocess),
    }
    if protocol == "repeated":
        found |= {name: recipe_family(name) for name in RECIPES}
    for name, contender in available().items():
        least_squares = name in ("laplace", "gaussian")
        family = Family(
            (name,),
            contender.configurations,
            alone(contender.predict, name),
            standardize,
            "squared_error" if least_squares else "accuracy",
            chooses=len(contender.configurations) > 1,
        )
        found[name] = family
        if honest and name in WITH_OUR_INPUTS:
            hot = f"{name}_one_hot"
            predict = alone(contender.predict, hot)
            found[hot] = replace(family, methods=(hot,), predict=predict, inputs=one_hot)
    return found


FULL_BATCH = 1000
"""Most training rows for KARE to take all at once, as in the paper up to 5,000."""

LARGE_BATCH = 500
"""Rows of a batch of KARE above that."""


def predict_kare(configuration: Configuration, task: Task) -> Paths:
    """Predict by `ntk`, the kernel at its start, and `ntk_kare`, after some epochs.

    The network has one output, whose kernel serves all classes.
    """
    station, y = kare_start(configuration, task)
    found: Paths = {"ntk": kare_path("", station, y, task), "ntk_kare": {}}
    x, before = task.x, 0
    for epochs in configuration["epochs"]:
        training = kare_training(configuration["rate"], epochs - before, len(x))
        if not station.train_kare(x, y, training):
            break
        before = epochs
        found["ntk_kare"].update(kare_path(f"epochs={epochs} ", station, y, task))
    return found


def kare_start(configuration: Configuration, task: Task) -> tuple[Lab, np.ndarray]:
    """Return a network at the start of its training, and the targets."""
    station = lab(task.x.shape[1], 1, Architecture(configuration["depth"], WIDTH))
    station.draw("torch", task.seed)
    return station, signed_one_hot(task.labels, task.classes)


def kare_path(prefix: str, station: Lab, y: np.ndarray, task: Task) -> Path:
    """Predict by the kernel of this moment; names begin with the prefix."""
    found = station.predictions(task.x, y, task.x_test, settings.UCI_RIDGES)
    return _named(prefix, found)


def kare_training(rate: float, epochs: int, rows: int) -> Training:
    """Return a training by all rows, up to 1,000; above, by batches of about 500."""
    return Training(rate, epochs, None if rows <= FULL_BATCH else LARGE_BATCH)


def predict_mse(configuration: Configuration, task: Task) -> Paths:
    """Predict by a `network` that squared error trains, its kernel, and both.

    `after_ntk` is its kernel; the residual machine is that kernel's, fitted to what the
    network leaves, and added to its outputs.
    """
    x, labels, classes, x_test, _ = task
    y = signed_one_hot(labels, classes)
    station = lab(x.shape[1], y.shape[1], Architecture(configuration["depth"], WIDTH))
    station.draw("torch", task.seed)
    training = Training(
        configuration["rate"], settings.UCI_MSE_EPOCHS, settings.UCI_MSE_BATCH
    )
    station.train_mse(x, y, training, task.seed)
    fitted, outputs = station.outputs(x), station.outputs(x_test)
    found: Paths = {"network": {"": outputs}}
    kernel = kernels(station, x, x_test)
    if kernel is not None and np.all(np.isfinite(fitted)):
        ridges = settings.UCI_RIDGES
        found["after_ntk"] = _named("", values(kernel, y, ridges))
        rest = {r: outputs + p for r, p in values(kernel, y - fitted, ridges).items()}
        found["residual"] = _named("", rest)
    return found


def alone(learner: Learner, method: str) -> Callable[[Configuration, Task], Paths]:
    """Return the predictions of a learner as those of a family of one method."""
    return lambda configuration, task: {method: learner(configuration, task)}


WITH_OUR_INPUTS = ("laplace", "gaussian", "svc", "xrfm")
"""Contenders that also get the recipe's inputs, to tell these from the kernels' merits.

Trees have no use for a column for each value.
"""


def recipe_family(name: str) -> Family:
    """Make the family of an estimator, which chooses by itself.

    Args:
        name: One of `variants.RECIPES`.
    """
    return Family(
        (name,),
        (RECIPES[name],),
        alone(complete(learners.recipe), name),
        as_given,
        chooses=False,
        settings=repr((DEFAULTS, Recipe())),
    )


def _named(prefix: str, found: dict[float, np.ndarray]) -> Path:
    return {f"{prefix}ridge={ridge:g}": values for ridge, values in found.items()}
