"""Features scaled by what training rows say."""

from __future__ import annotations

import numpy as np

from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.few_values import FewValues

FEW = DEFAULTS.few_values
"""Most values of a column that `one_hot` takes for categories."""


def standardize(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Zero mean and unit variance in the training rows; constant columns become 0.

    Args:
        x: Training inputs, `(n, d)`.
        x_test: Test inputs, `(m, d)`.
        rows: Not used: other ways to scale ask for the rows of the data set.
    """
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    constant = deviation <= 1e-9 * np.abs(mean)
    deviation = np.where(constant, 1.0, deviation)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    x[:, constant], x_test[:, constant] = 0.0, 0.0
    return x, x_test


def one_hot(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns, and one more for each value of a column with few of them.

    The publishers coded categories as numbers, in an order that may mean nothing, and do
    not say which columns these are. Columns of 3 to `FEW` different values are taken to be
    such, but keep their numbers, too.
    """
    few = FewValues(FEW).fit(x)
    scaled, scaled_test = standardize(x, x_test)
    return (
        np.hstack([scaled, few.transform(x)]),
        np.hstack([scaled_test, few.transform(x_test)]),
    )
