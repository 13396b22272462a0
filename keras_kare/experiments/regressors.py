"""Regressors behind one interface: ours, Gaussian processes, kernel ridge, trees, xRFM.

Each is fitted to rows and returns a function from other rows to forecasts. All run on one
thread, and a seed determines what they predict. What they choose, they choose inside of
the training rows.

| name | regressor | forecast | library |
|---|---|---|---|
| `kare_regressor` | `KARERegressor` | Gaussian | this one |
| `kare_untrained` | the same without training, `epochs=0` | Gaussian | this one |
| `gp_rbf`, `gp_matern` | Gaussian process, one length scale | Gaussian | scikit-learn |
| `laplace_l1` | kernel ridge, K = exp(-‖x - x'‖₁ / s) | mean | this one |
| `random_forest` | 500 trees | what each tree predicts | scikit-learn |
| `hist_gradient_boosting` | boosted trees | mean | scikit-learn |
| `lightgbm` | boosted trees | mean | lightgbm |
| `catboost` | boosted symmetric trees | mean | catboost |
| `xrfm` | kernel ridge whose metric learns | mean | xrfm |
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.preprocessing import StandardScaler

from keras_kare.experiments.forecasts import Forecast
from keras_kare.experiments.learners import CATBOOST, LIGHTGBM, RIDGES
from keras_kare.kernels import DenseOperator, Laplace
from keras_kare.solvers import Spectral, System

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the L1 Laplace kernel, as factors of the median distance of training rows."""

RESTARTS = 2
"""Starts of a Gaussian process' hyperparameters beside the first."""

XRFM_GRID = tuple((s, reg) for s in (3.0, 10.0) for reg in (1e-3, 1e-1, 1.0))
"""Bandwidths and regularisations of xRFM, as among classifiers."""

HELD_OUT = 0.2
"""Share of the training rows that chooses for xRFM."""

Predictor = Callable[[np.ndarray], Forecast]
"""From rows `(m, d)` to forecasts."""

Fit = Callable[[np.ndarray, np.ndarray, int], Predictor]
"""From rows `(n, d)`, targets `(n,)` and a seed to what predicts."""


class Regressor(NamedTuple):
    """How to fit.

    Attributes:
        fit: The function.
        settings: What results depend on, in words: with others they are other results.
        library: The package that it needs. Defaults to `"sklearn"`.
    """

    fit: Fit
    settings: str
    library: str = "sklearn"


def available() -> dict[str, Regressor]:
    """Return the regressors whose library is installed, by name."""
    return {
        name: each
        for name, each in REGRESSORS.items()
        if importlib.util.find_spec(each.library) is not None
    }


def kare(**options: Any) -> Fit:
    """Return ours, as a user would call it, with options."""

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
        from keras_kare.sklearn import KARERegressor

        model = KARERegressor(random_state=seed, **options).fit(x, y)
        return lambda other: Forecast(*model.predict(other, return_std=True))

    return fit


def gaussian_process(kernel: Callable[[float], Any]) -> Fit:
    """Return a Gaussian process on standardised inputs; its noise is in its forecasts.

    Args:
        kernel: From a first length scale, the root of the number of columns, to the kernel.
    """

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
        scaler = StandardScaler().fit(x)
        covariance = ConstantKernel(1.0, (1e-3, 1e4)) * kernel(float(x.shape[1]) ** 0.5)
        model = GaussianProcessRegressor(
            covariance + WhiteKernel(0.1, (1e-6, 1e1)),
            n_restarts_optimizer=RESTARTS,
            normalize_y=True,
            random_state=seed,
        ).fit(scaler.transform(x), y)
        return lambda other: Forecast(
            *model.predict(scaler.transform(other), return_std=True)
        )

    return fit


def laplace_l1(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
    """Fit kernel ridge regression; leave-one-out squared error chooses scale and ridge."""
    scaler = StandardScaler().fit(x)
    x, mean = scaler.transform(x), float(np.mean(y))
    first = Laplace(distance="l1", dtype="float64")
    first.adapt(x)
    gram = np.asarray(first.gram(x))
    best, weights, width = np.inf, np.zeros((len(x), 1)), BANDWIDTHS[0]
    for factor in BANDWIDTHS:
        system = System(DenseOperator(gram ** (1.0 / factor)), (y - mean)[:, None])
        ridges = [ridge * system.unit for ridge in RIDGES]
        for solution in Spectral().prepare(system).solve_grid(ridges):
            error = solution.leave_one_out_mse
            if error is not None and error < best:
                best, width = error, factor
                weights = system.predictor(solution) / len(x)

    def predict(other: np.ndarray) -> Forecast:
        cross = np.asarray(first.cross(scaler.transform(other), x)) ** (1.0 / width)
        return Forecast(mean + (cross @ weights)[:, 0])

    return predict


def random_forest(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
    """Fit 500 trees; a forecast is what each of them predicts, equally likely.

    Trees grow until leaves are pure, so that each predicts the target of a training row,
    or a mean of equal rows: noise is in their spread.
    """
    model = RandomForestRegressor(500, random_state=seed, n_jobs=1).fit(x, y)

    def predict(other: np.ndarray) -> Forecast:
        draws = np.stack([tree.predict(other) for tree in model.estimators_], axis=1)
        return Forecast(np.mean(draws, axis=1), draws=draws)

    return predict


def point(make: Callable[[int], Any]) -> Fit:
    """Return a regressor in scikit-learn's manner, of which only the mean is known.

    Args:
        make: From a seed to the regressor.
    """

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
        model = make(seed).fit(x, y)
        return lambda other: Forecast(np.ravel(model.predict(other)))

    return fit


def _lightgbm(seed: int) -> Any:
    return importlib.import_module("lightgbm").LGBMRegressor(random_state=seed, **LIGHTGBM)


def _catboost(seed: int) -> Any:
    return importlib.import_module("catboost").CatBoostRegressor(
        random_seed=seed, **CATBOOST
    )


def xrfm(x: np.ndarray, y: np.ndarray, seed: int) -> Predictor:
    """Fit xRFM; a held-out fifth chooses its grid and iteration, then all rows train."""
    scaler = StandardScaler().fit(x)
    inputs, mean, scale = scaler.transform(x), float(np.mean(y)), float(np.std(y)) or 1.0
    scaled = (y - mean) / scale
    order = np.random.default_rng(seed).permutation(len(x))
    held, rest = np.split(order, [max(1, round(HELD_OUT * len(x)))])
    best, chosen = np.inf, (XRFM_GRID[0], 0)
    for pair in XRFM_GRID:
        model = _xrfm_model(pair, seed, 5, choose=True)
        _fit_xrfm(model, inputs, scaled, rest, held)
        predicted = np.ravel(model.predict(inputs[held].astype("float32")))
        error = float(np.mean((predicted - scaled[held]) ** 2))
        if error < best:
            best, chosen = error, (pair, int(model.trees[0]["model"].best_iter))
    model = _xrfm_model(chosen[0], seed, chosen[1], choose=False)
    _fit_xrfm(model, inputs, scaled, order, held)

    def predict(other: np.ndarray) -> Forecast:
        rows = scaler.transform(other).astype("float32")
        return Forecast(mean + scale * np.ravel(model.predict(rows)))

    return predict


def _xrfm_model(pair: tuple[float, float], seed: int, iterations: int, choose: bool) -> Any:
    kernel = {"kernel": "l2", "exponent": 1.0, "bandwidth_mode": "constant", "diag": False}
    fit = {
        "reg": pair[1],
        "iters": iterations,
        "early_stop_rfm": choose,
        "return_best_params": choose,
        "verbose": False,
    }
    return importlib.import_module("xrfm").xRFM(
        rfm_params={"model": {**kernel, "bandwidth": pair[0]}, "fit": fit},
        device=importlib.import_module("torch").device("cpu"),
        tuning_metric="mse",
        n_threads=1,
        random_state=seed,
        verbose=False,
    )


def _fit_xrfm(
    model: Any, x: np.ndarray, y: np.ndarray, rows: np.ndarray, held: np.ndarray
) -> None:
    x, y = x.astype("float32"), y.astype("float32")[:, None]
    model.fit(x[rows], y[rows], x[held], y[held])


_GP = f"one length scale, white noise, {1 + RESTARTS} starts"

REGRESSORS: dict[str, Regressor] = {
    "kare_regressor": Regressor(kare(), "defaults", "keras_kare"),
    "kare_untrained": Regressor(kare(epochs=0), "epochs=0", "keras_kare"),
    "gp_rbf": Regressor(gaussian_process(RBF), _GP),
    "gp_matern": Regressor(gaussian_process(lambda s: Matern(s, nu=2.5)), _GP),
    "laplace_l1": Regressor(laplace_l1, "6 scales, 11 ridges, leave-one-out", "keras_kare"),
    "random_forest": Regressor(random_forest, "500 trees"),
    "hist_gradient_boosting": Regressor(
        point(lambda seed: HistGradientBoostingRegressor(random_state=seed)), "defaults"
    ),
    "lightgbm": Regressor(point(_lightgbm), "defaults", "lightgbm"),
    "catboost": Regressor(point(_catboost), "defaults", "catboost"),
    "xrfm": Regressor(xrfm, "6 configurations, a fifth held out", "xrfm"),
}
"""All regressors by name; trees and boosting run at their libraries' defaults."""
