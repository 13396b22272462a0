"""Who takes part in the UCI comparison, each with its grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from keras_kare.datasets import preprocess, signed_one_hot
from keras_kare.experiments import settings
from keras_kare.experiments.contenders import Contender, available
from keras_kare.experiments.lab import lab, values
from keras_kare.experiments.protocols import Family, Paths
from keras_kare.experiments.scaling import one_hot, standardize
from keras_kare.experiments.settings import Architecture, Training
from keras_kare.experiments.task import Configuration, Task
from keras_kare.experiments.variants import RECIPE, TRAJECTORY, VARIANTS, Variant
from keras_kare.experiments.variants import paths as recipe_paths
from keras_kare.recipes.mixtures import kernels

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
    """Return a protocol's families, by name; of `"screen"`, variants of the recipe.

    The honest one has less of the paper's grid; it may stop training early.

    Args:
        protocol: As in `uci_jobs.jobs`.
        large: Whether for a large data set, where less of the paper's grid is run.
    """
    if protocol == "screen":
        return {name: recipe_family(variant, name) for name, variant in VARIANTS.items()}
    honest = protocol == "honest"
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
    if honest:
        found["recipe"] = recipe_family(RECIPE)
    for name, contender in available().items():
        least_squares = name in ("laplace", "gaussian")
        family = Family(
            (name,),
            contender.configurations,
            library(contender, name),
            standardize,
            "squared_error" if least_squares else "accuracy",
            chooses=len(contender.configurations) > 1,
        )
        found[name] = family
        if honest and name in WITH_OUR_INPUTS:
            hot = f"{name}_one_hot"
            predict = library(contender, hot)
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
    x, labels, classes, x_test, _ = task
    y = signed_one_hot(labels, classes)
    depth, rate = configuration["depth"], configuration["rate"]
    station = lab(x.shape[1], 1, Architecture(depth, WIDTH))
    station.draw("torch", task.seed)
    found: Paths = {"ntk": {}, "ntk_kare": {}}
    found["ntk"] = _named("", station.predictions(x, y, x_test, settings.UCI_RIDGES))
    before = 0
    for epochs in configuration["epochs"]:
        if not station.train_kare(x, y, kare_training(rate, epochs - before, len(x))):
            break
        before = epochs
        path = station.predictions(x, y, x_test, settings.UCI_RIDGES)
        found["ntk_kare"].update(_named(f"epochs={epochs} ", path))
    return found


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


def library(contender: Contender, method: str) -> Callable[[Configuration, Task], Paths]:
    """Return the predictions of a contender as those of a family of one method."""
    return lambda configuration, task: {method: contender.predict(configuration, task)}


WITH_OUR_INPUTS = ("laplace", "gaussian", "svc", "xrfm")
"""Contenders that also get the recipe's inputs, to tell these from the kernels' merits.

Trees have no use for a column for each value.
"""

PARTS = ("kernel", "start", "untrained", "best", "trajectory")
"""What is added to the name of a recipe for its parts."""


def recipe_family(variant: Variant, name: str = "recipe") -> Family:
    """Make a family of a recipe and of its parts.

    `recipe` chooses among everything; `recipe_kernel` among NTKs alone, without the Laplace
    kernel; `recipe_start` among networks that have not trained; `recipe_untrained` among
    these alone; `recipe_best` takes one machine; `recipe_trajectory` has one, too, whose
    kernel is the mean over training.
    """

    def predict(configuration: Configuration, task: Task) -> Paths:
        x, labels, classes, x_test, seeds = task
        y = signed_one_hot(labels, classes)
        found: Paths = {method: {} for method in methods}
        for key, scores in recipe_paths(variant, x, y, x_test, list(seeds)).items():
            words = f"steps={key.steps},share={key.share:g} ridge={key.ridge:.3g}"
            if key.steps == TRAJECTORY:
                found[trajectory][words] = scores
                continue
            found[name][words] = found[best][words] = scores
            if key.steps == 0:
                found[start][words] = scores
            if key.share == 0.0:
                found[kernel][words] = scores
            if key.steps == 0 and key.share == 0.0:
                found[untrained][words] = scores
        return found

    methods = name, *(f"{name}_{part}" for part in PARTS)
    _, kernel, start, untrained, best, trajectory = methods
    inputs = {"paper": preprocess, "standard": standardize, "one_hot": one_hot}
    return Family(
        methods,
        ({},),
        predict,
        inputs[variant.inputs],
        seeds=tuple(range(variant.seeds)),
        settings=repr(variant),
        blends=dict.fromkeys((name, kernel, start), variant.recipe.machines),
    )


def _named(prefix: str, found: dict[float, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}ridge={ridge:g}": values for ridge, values in found.items()}
