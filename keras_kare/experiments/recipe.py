"""How NTK-KARE is used on small tables, so that it predicts rows that it has not seen.

KARE fools its optimiser: after training, neither it nor leave-one-out says how good a
kernel is, since both have been pleased. Only rows that did not train can. So:

1. **Cross-fitting.** The training rows are cut into folds. On all but one of them a
   network is trained, and its kernel's machine predicts the rest, after several numbers of
   steps, for several ridges, and for kernels into which more or less of a Laplace kernel is
   mixed. No prediction is of a row that trained.
2. **Choice.** The squared error of those predictions chooses: of each number of steps and
   share of the Laplace kernel, the best ridge; of those machines, the best three.
3. **Refit.** Networks of several seeds train on all rows for as many steps. Their kernels,
   each divided by its trace, are averaged: a sum of NTKs is an NTK. The three machines'
   predictions are averaged: on few rows the best three are hard to tell apart, and their
   mean is better than the one that came out first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from keras_kare.experiments.settings import PAPER_OBJECTIVE, Architecture, Objective
from keras_kare.experiments.training import batches_of, lab, path

RIDGES = tuple(10.0 ** (i / 2) for i in range(-8, 7))
"""Relative ridges to choose from."""


TRAJECTORY = -1
"""In place of a number of steps: the mean of the kernels after each number above 0."""


class Key(NamedTuple):
    """What is chosen: steps of training, share of the Laplace kernel, relative ridge."""

    steps: int
    share: float
    ridge: float


@dataclass(frozen=True)
class Recipe:
    """Settings.

    Attributes:
        architecture: Of the networks, which have one output for any number of targets.
        objective: What trains them.
        learning_rate: Of the optimizer.
        steps: Numbers of steps to choose from, rising from 0.
        batch_size: Most rows of a step.
        shares: Of a Laplace kernel in the sum, to choose from.
        bandwidth: Of that kernel, in median distances of training rows.
        initialization: Of the networks.
        inputs: `"paper"` clips and standardises; `"standard"` standardises; `"one_hot"`
            gives each value of a column with few of them a column of its own, too.
        seeds: Networks of the refit. Cross-fitting has one a fold.
        machines: How many are averaged.
        ridges: Relative, to choose from.
    """

    architecture: Architecture
    objective: Objective
    learning_rate: float
    steps: tuple[int, ...] = (0, 10, 30, 100)
    batch_size: int = 512
    shares: tuple[float, ...] = (0.0, 0.5, 1.0)
    bandwidth: float = 1.0
    initialization: str = "torch"
    inputs: str = "one_hot"
    seeds: int = 3
    machines: int = 3
    ridges: tuple[float, ...] = RIDGES


RECIPE = Recipe(
    architecture=Architecture(depth=2, width=64),
    objective=Objective(ridge=1.0, relative=True, optimizer="adam"),
    learning_rate=3e-3,
)
"""The one that was found best; see the results page."""

VARIANTS = {
    "recipe": RECIPE,
    "depth_1": replace(RECIPE, architecture=Architecture(depth=1, width=64)),
    "paper_training": replace(
        RECIPE,
        architecture=Architecture(depth=1, width=64),
        objective=PAPER_OBJECTIVE,
        learning_rate=10.0,
    ),
    "relu": replace(RECIPE, architecture=Architecture(2, 64, "relu")),
    "z_0.1": replace(RECIPE, objective=Objective(0.1, True, "adam")),
    "z_10": replace(RECIPE, objective=Objective(10.0, True, "adam")),
    "paper_inputs": replace(RECIPE, inputs="paper"),
    "standard_inputs": replace(RECIPE, inputs="standard"),
    "he_start": replace(RECIPE, initialization="paper"),
    "one_seed": replace(RECIPE, seeds=1),
}
"""What was tried, on data sets that the recipe is not confirmed on."""


def paths(
    recipe: Recipe, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, seeds: list[int]
) -> dict[Key, np.ndarray]:
    """Predictions of machines trained on all of `x`, for whatever may be chosen.

    Args:
        recipe: Settings.
        x: Inputs that networks take, `(n, d)`.
        y: Targets, `(n, c)`.
        x_test: `(m, d)`.
        seeds: Of the networks.

    Returns:
        `(m, c)` by key. Steps after which a network is not finite are left out.
    """
    station = lab(x.shape[1], 1, recipe.architecture, recipe.objective)
    batches = batches_of(len(x), recipe.batch_size)
    sums: dict[int, list[list[np.ndarray]]] = {}
    for seed in seeds:
        station.start(recipe.initialization, seed)
        before = 0
        for steps in recipe.steps:
            losses = station.descent.run(
                x, y, recipe.learning_rate, steps - before, batches, seed
            )
            before = steps
            grams = station.grams(x, x_test)
            if grams is None or not np.all(np.isfinite(losses)):
                break
            unit = np.trace(grams[0]) / len(x)
            sums.setdefault(steps, []).append([gram / unit for gram in grams])
    # what not all networks got to is left out
    kernels = {
        steps: _mean(pairs) for steps, pairs in sums.items() if len(pairs) == len(seeds)
    }
    trained = [pair for steps, pair in kernels.items() if steps > 0]
    if trained:
        kernels[TRAJECTORY] = _mean(trained)
    rough = laplace(x, x_test, recipe.bandwidth)
    found: dict[Key, np.ndarray] = {}
    for steps, pair in kernels.items():
        for share in recipe.shares:
            if share == 1.0 and steps != 0:
                continue  # the same for all steps
            gram, cross = (
                (1.0 - share) * a + share * b for a, b in zip(pair, rough, strict=True)
            )
            for ridge, values in path(gram, cross, y, recipe.ridges).items():
                found[Key(steps, share, ridge)] = values
    return found


def _mean(pairs: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.mean(parts, axis=0) for parts in zip(*pairs, strict=True)]


def laplace(
    x: np.ndarray, x_test: np.ndarray, bandwidth: float
) -> tuple[np.ndarray, np.ndarray]:
    """`exp(-‖x - x'‖/s)` for `(X, X)` and `(x, X)`; `s` in median distances of `X`."""
    from scipy.spatial.distance import cdist

    within = cdist(x, x)
    away = within[within > 0.0]
    scale = bandwidth * (float(np.median(away)) if len(away) else 1.0)
    return np.exp(-within / scale), np.exp(-cdist(x_test, x) / scale)
