"""What figures and tables call the methods."""

from __future__ import annotations

METHODS = {
    "ntk_kare": "NTK-KARE",
    "after_ntk": "After-NTK",
    "ntk": "NTK at initialisation",
    "network": "Network",
    "residual": "Residual machine",
    "recipe": "NTK-KARE, our recipe",
    "kare_classifier": "KAREClassifier()",
    "recipe_kernel": "Recipe without the Laplace kernel",
    "recipe_untrained": "Recipe without training, NTK alone",
    "recipe_start": "Recipe without training, Laplace kernel allowed",
    "recipe_best": "Recipe with one machine",
    "recipe_trajectory": "Recipe with one machine, of the mean kernel over training",
    "laplace": "Laplace kernel ridge",
    "laplace_one_hot": "Laplace kernel ridge, recipe's inputs",
    "gaussian": "Gaussian kernel ridge",
    "gaussian_one_hot": "Gaussian kernel ridge, recipe's inputs",
    "svc": "Gaussian SVM",
    "svc_one_hot": "Gaussian SVM, recipe's inputs",
    "xrfm": "xRFM",
    "xrfm_one_hot": "xRFM, recipe's inputs",
    "random_forest": "Random forest",
    "hist_gradient_boosting": "HistGradientBoosting",
    "lightgbm": "LightGBM",
    "catboost": "CatBoost",
    "kare_regressor": "KARERegressor()",
    "kare_untrained": "KARERegressor(epochs=0)",
    "gp_rbf": "Gaussian process, RBF",
    "gp_matern": "Gaussian process, Matérn 5/2",
    "laplace_l1": "L1 Laplace kernel ridge",
}
"""Methods by their names in results; in the order of tables that are in no other."""

VARIANTS = {
    "depth_1": "one hidden layer",
    "paper_training": "one hidden layer, gradient descent at z = 0.1 as in the paper",
    "relu": "ReLU",
    "z_0.1": "relative z of 0.1",
    "z_10": "relative z of 10",
    "paper_inputs": "the paper's inputs",
    "standard_inputs": "standardised inputs",
    "he_start": "the initialisation of the paper's text",
    "one_seed": "one network",
}
"""Variants of the recipe by name, each by how it differs."""

OURS = ("recipe", "kare_classifier", "kare_regressor")
"""Our methods, which are bold."""


def in_text(method: str) -> str:
    """Return what Markdown calls a method: ours is bold."""
    name = METHODS.get(method) or _variant(method)
    return f"**{name}**" if method in OURS else name


def _variant(method: str) -> str:
    """Return "Recipe with one machine; ReLU" for `relu_best`; unknown names unchanged."""
    if method in VARIANTS:
        return f"Recipe; {VARIANTS[method]}"
    variant, _, part = method.rpartition("_")
    name = METHODS.get(f"recipe_{part}")
    return f"{name}; {VARIANTS[variant]}" if name and variant in VARIANTS else method
