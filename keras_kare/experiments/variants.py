"""The recipe of the scikit-learn estimators, and what else was tried."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from keras_kare.experiments.lab import initial_weights, lab
from keras_kare.experiments.settings import PAPER_OBJECTIVE, Architecture, Objective
from keras_kare.recipes.cross_fitting import trained_kernels
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.mixtures import mean_kernels, predictions, rough_kernels
from keras_kare.recipes.recipe import Key, Recipe, Start

TRAJECTORY = -1
"""What stands for the mean of the kernels after each number of steps above 0."""


@dataclass(frozen=True)
class Variant:
    """A recipe, and the networks that it trains, of one output for any targets.

    Attributes:
        recipe: See `keras_kare.recipes.recipe`.
        architecture: Shape of the networks.
        objective: What trains them.
        initialization: How networks start.
        inputs: `"paper"` clips and standardises; `"standard"` standardises; `"one_hot"`
            gives each value of a column with few of them a column of its own, too.
        seeds: Networks of the refit. Cross-fitting has one a fold.
    """

    recipe: Recipe
    architecture: Architecture
    objective: Objective
    initialization: str = "torch"
    inputs: str = "one_hot"
    seeds: int = DEFAULTS.networks


DEPTH, WIDTH = len(DEFAULTS.hidden_sizes), DEFAULTS.hidden_sizes[0]

RECIPE = Variant(
    Recipe(),
    Architecture(DEPTH, WIDTH, DEFAULTS.activation),
    Objective(DEFAULTS.kare_ridge, relative=True, optimizer="adam"),
)
"""The defaults of the estimators: the one that was found best; see the results page."""

VARIANTS = {
    "recipe": RECIPE,
    "depth_1": replace(RECIPE, architecture=Architecture(1, WIDTH)),
    "paper_training": replace(
        RECIPE,
        recipe=Recipe(learning_rate=10.0),
        architecture=Architecture(1, WIDTH),
        objective=PAPER_OBJECTIVE,
    ),
    "relu": replace(RECIPE, architecture=Architecture(DEPTH, WIDTH, "relu")),
    "z_0.1": replace(RECIPE, objective=Objective(0.1, True, "adam")),
    "z_10": replace(RECIPE, objective=Objective(10.0, True, "adam")),
    "paper_inputs": replace(RECIPE, inputs="paper"),
    "standard_inputs": replace(RECIPE, inputs="standard"),
    "he_start": replace(RECIPE, initialization="paper"),
    "one_seed": replace(RECIPE, seeds=1),
}
"""What was tried, on data sets that the recipe is not confirmed on."""


def paths(
    variant: Variant, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, seeds: list[int]
) -> dict[Key, np.ndarray]:
    """Predict by machines trained on all of `x`, for whatever may be chosen.

    Args:
        variant: Settings.
        x: Inputs that networks take, `(n, d)`.
        y: Targets, `(n, c)`.
        x_test: `(m, d)`.
        seeds: One a network.

    Returns:
        `(m, c)` by key. Steps after which a network is not finite are left out.
    """
    station = lab(x.shape[1], 1, variant.architecture, variant.objective)
    found = []
    for seed in seeds:
        weights = initial_weights(station.network, variant.initialization, seed)
        start = Start(weights, seed)
        found.append(trained_kernels(station, variant.recipe, x, y, x_test, start))
    # what not all networks got to is left out
    trained = {
        steps: mean_kernels([each[steps] for each in found])
        for steps in found[0]
        if all(steps in each for each in found)
    }
    later = [kernel for steps, kernel in trained.items() if steps > 0]
    if later:
        trained[TRAJECTORY] = mean_kernels(later)
    rough = rough_kernels(x, x_test, variant.recipe.bandwidth)
    every = predictions(variant.recipe, trained, rough, y)
    return {key: predicted.values for key, predicted in every.items()}
