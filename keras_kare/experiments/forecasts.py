"""Predictive distributions of numbers, and how good they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special

SMALLEST_STD = 1e-3
"""Standard deviations below it, in units of the target's, count as this, for all alike."""

COVERED = 0.9
"""Share of new targets that central intervals should hold."""


class Forecast(NamedTuple):
    """What a regressor says about rows, in units of `y`.

    Attributes:
        mean: Predictions, `(m,)`.
        std: Standard deviations of Gaussian distributions of new targets, `(m,)`; `None`
            for none.
        draws: Equally likely values of new targets, `(m, k)`, in place of `std`; `None` for
            none.
    """

    mean: np.ndarray
    std: np.ndarray | None = None
    draws: np.ndarray | None = None


def scores(forecast: Forecast, y: np.ndarray, scale: float) -> dict[str, float | None]:
    """Return how good forecasts are, means over rows.

    Args:
        forecast: For `m` rows.
        y: Their targets, `(m,)`.
        scale: The unit of all scores, the target's standard deviation.

    Returns:
        `rmse`; and of distributions `crps`, `log_likelihood` (of draws: that of the
        Gaussian with their mean and standard deviation) and `covered`, the share of
        targets in central 90 % intervals. `None` where there is no distribution.
    """
    error = (y - forecast.mean) / scale
    found: dict[str, float | None] = {"rmse": float(np.sqrt(np.mean(error**2)))}
    if forecast.draws is not None:
        draws = forecast.draws / scale
        target = y / scale
        std = np.maximum(np.std(draws, axis=1), SMALLEST_STD)
        tails = [0.5 - 0.5 * COVERED, 0.5 + 0.5 * COVERED]
        low, high = np.quantile(draws, tails, axis=1)
        crps = crps_of_draws(target, draws)
        likelihood = log_density(target, np.mean(draws, axis=1), std)
        inside = (low <= target) & (target <= high)
    elif forecast.std is not None:
        std = np.maximum(forecast.std / scale, SMALLEST_STD)
        crps = crps_of_gaussian(error, np.zeros(len(y)), std)
        likelihood = log_density(error, np.zeros(len(y)), std)
        inside = np.abs(error) <= scipy.special.ndtri(0.5 + 0.5 * COVERED) * std
    else:
        return {**found, "crps": None, "log_likelihood": None, "covered": None}
    return {
        **found,
        "crps": float(np.mean(crps)),
        "log_likelihood": float(np.mean(likelihood)),
        "covered": float(np.mean(inside)),
    }


def crps_of_gaussian(y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return `E|Z − y| − ½ E|Z − Z'|` of `Z ~ N(mean, std²)`, `(m,)`, in units of `y`.

    Gneiting, Raftery, "Strictly proper scoring rules, prediction, and estimation", 2007,
    equation 21.
    """
    z = (y - mean) / std
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    spread = z * (2.0 * scipy.special.ndtr(z) - 1.0) + 2.0 * density
    return np.asarray(std * (spread - 1.0 / np.sqrt(np.pi)))


def crps_of_draws(y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return `E|Z − y| − ½ E|Z − Z'|` of equally likely draws.

    Args:
        y: `(m,)`.
        draws: `(m, k)`.

    Returns:
        `(m,)`, in units of `y`.
    """
    k = draws.shape[1]
    ordered = np.sort(draws, axis=1)
    half_spread = ordered @ (2.0 * np.arange(k) - k + 1.0) / k**2
    return np.asarray(np.mean(np.abs(draws - y[:, None]), axis=1) - half_spread)


def log_density(y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the logarithm of the Gaussian's density at `y`, `(m,)`."""
    z = (y - mean) / std
    return np.asarray(-0.5 * z**2 - np.log(std) - 0.5 * np.log(2.0 * np.pi))
