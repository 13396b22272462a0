"""Features scaled by what training rows say."""

from __future__ import annotations

import numpy as np

from keras_kare.datasets.preparation import standardized
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.few_values import FewValues

FEW = DEFAULTS.few_values
"""Most values of a column that `one_hot` takes for categories."""


def as_given(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both unchanged, for estimators that scale by themselves.

    Args:
        x: Training inputs, `(n, d)`.
        x_test: Test inputs, `(m, d)`.
        rows: Not used: other ways to scale ask for the rows of the data set.
    """
    return x, x_test


def standardize(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scale to zero mean and unit variance in the training rows; constant columns become 0.

    Args:
        x: Training inputs, `(n, d)`.
        x_test: Test inputs, `(m, d)`.
        rows: Not used: other ways to scale ask for the rows of the data set.
    """
    constant = x.std(axis=0) <= 1e-9 * np.abs(x.mean(axis=0))
    return standardized(x, x_test, constant)


def one_hot(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Standardise, and add a column for each value of a column with few of them.

    The publishers coded categories as numbers, in an order that may mean nothing, and do
    not say which columns these are. Columns of 3 to `FEW` different values are taken to be
    such, but keep their numbers, too.
    """
    few = FewValues(FEW).fit(x)
    pairs = zip(standardize(x, x_test), (x, x_test), strict=True)
    first, second = (np.hstack([scaled, few.transform(raw)]) for scaled, raw in pairs)
    return first, second
