"""Training and test rows, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


# Compared by identity: `==` of two arrays is no truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """Training and test rows of one data set.

    Attributes:
        x: Training inputs, `(n, d)`.
        y: Training targets, float, `(n, c)`.
        x_test: Test inputs, `(m, d)`.
        y_test: Test targets, float, `(m, c)`.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
