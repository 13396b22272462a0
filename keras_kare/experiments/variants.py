"""The recipe, which is `KAREClassifier`, with its defaults and with other parameters."""

from __future__ import annotations

from keras_kare.experiments.task import Configuration

ABLATIONS: dict[str, Configuration] = {
    "recipe_untrained": {"epochs": 0},
    "recipe_kernel": {"laplace": False},
    "recipe_best": {"machines": 1},
}
"""The recipe without its parts: nothing is trained or learnt; kernels of networks alone;
one machine."""

VARIANTS: dict[str, Configuration] = {
    "depth_1": {"hidden_sizes": (64,)},
    "relu": {"activation": "relu"},
    "z_0.1": {"kare_ridge": 0.1},
    "z_10": {"kare_ridge": 10.0},
    "numbers": {"few_values": 0},
    "one_network": {"networks": 1},
    "epochs_300": {"epochs": 300},
    "folds_8": {"folds": 8},
    "machines_3": {"machines": 3},
    "machines_8": {"machines": 8},
}
"""What else was tried, on data sets that the recipe is not confirmed on."""

RECIPES: dict[str, Configuration] = {"recipe": {}, **ABLATIONS, **VARIANTS}
"""Parameters of the estimator by what results call it."""
