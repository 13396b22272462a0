"""Numbers that may be codes: columns of few values, one-hot."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from keras_kare.recipes.defaults import DEFAULTS


class FewValues(TransformerMixin, BaseEstimator):
    """A transformer to a column for each value of columns that have few.

    The columns of one with `L` values hold 0 and `√(L/2)`. Were these values equally
    frequent, rows of different ones would be as far apart as two numbers drawn from a
    standard normal distribution are, for `L = 2`, and further for more values.

    Args:
        most: Most values of a column that is taken; less than 3 takes none. Defaults to
            `8`.

    Attributes:
        values_: The values of each column, empty where it is not taken.
    """

    def __init__(self, most: int = DEFAULTS.few_values):
        self.most = most

    def fit(self, X: Any, y: Any = None) -> FewValues:
        """Remember the values of the columns of `X`, `(n, d)`; holes are none."""
        columns = np.asarray(X, "float64").T
        found = [np.unique(column[~np.isnan(column)]) for column in columns]
        self.values_ = [v if 3 <= len(v) <= self.most else v[:0] for v in found]
        self.n_features_in_ = len(found)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return `(n, L)` for the `L` values in all; unknown values and holes are zeros."""
        blocks = [np.empty((len(X), 0))]
        for column, values in zip(np.asarray(X, "float64").T, self.values_, strict=True):
            blocks.append(np.sqrt(len(values) / 2.0) * (column[:, None] == values))
        return np.hstack(blocks)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the columns' names, `name_value`."""
        if input_features is None:
            input_features = [f"x{i}" for i in range(self.n_features_in_)]
        pairs = zip(input_features, self.values_, strict=True)
        return np.array([f"{n}_{v:g}" for n, vs in pairs for v in vs], dtype=object)
