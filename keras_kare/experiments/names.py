"""What figures and tables call the methods."""

from __future__ import annotations

from keras_kare.experiments.variants import RECIPES


def _call(parameters: dict[str, object]) -> str:
    said = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    return f"KAREClassifier({said})"


METHODS = {
    "ntk_kare": "NTK-KARE",
    "ntk_kare_guarded": "NTK-KARE with a divergence guard (ours)",
    "after_ntk": "After-NTK",
    "ntk": "NTK at initialisation",
    "network": "Network",
    "residual": "Residual machine",
    **{name: _call(parameters) for name, parameters in RECIPES.items()},
    "laplace": "Laplace kernel ridge",
    "laplace_one_hot": "Laplace kernel ridge, recipe's inputs",
    "laplace_l1": "L1 Laplace kernel ridge",
    "gaussian": "Gaussian kernel ridge",
    "gaussian_one_hot": "Gaussian kernel ridge, recipe's inputs",
    "svc": "Gaussian SVM",
    "svc_one_hot": "Gaussian SVM, recipe's inputs",
    "xrfm": "xRFM",
    "xrfm_one_hot": "xRFM, recipe's inputs",
    "random_forest": "Random forest",
    "extra_trees": "Extremely randomised trees",
    "hist_gradient_boosting": "HistGradientBoosting",
    "lightgbm": "LightGBM",
    "catboost": "CatBoost",
    "tabpfn": "TabPFN",
    "tabicl": "TabICL",
    "kare_regressor": "KARERegressor()",
    "kare_untrained": "KARERegressor(epochs=0)",
    "gp_rbf": "Gaussian process, RBF",
    "gp_matern": "Gaussian process, Matérn 5/2",
}
"""Methods by their names in results; in the order of tables that are in no other."""

OURS = ("recipe", "kare_regressor")
"""Our methods, which are bold."""


def in_text(method: str) -> str:
    """Return what Markdown calls a method: ours is bold; unknown names are unchanged."""
    name = METHODS.get(method, method)
    return f"**{name}**" if method in OURS else name
