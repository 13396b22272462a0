"""What a learner gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Configuration = dict[str, Any]
"""Hyperparameters by name: what each fit costs anew."""

Path = dict[str, np.ndarray]
"""Scores `(m, k)` by the name of what comes free within a configuration, as ridges do;
`""` where nothing does."""


class Task(NamedTuple):
    """Rows to train on and rows to score.

    Attributes:
        x: Training inputs, `(n, d)`.
        labels: Their classes, whole numbers from 0, `(n,)`.
        classes: How many classes there are.
        x_test: Inputs to score, `(m, d)`.
        seed: That of learners which draw. Defaults to 0.
    """

    x: np.ndarray
    labels: np.ndarray
    classes: int
    x_test: np.ndarray
    seed: int = 0


def guesses(scores: np.ndarray) -> np.ndarray:
    """Return the likeliest class of each row, `(m,)`, of scores `(m, k)`."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0.0).astype(int)
    return np.asarray(scores.argmax(axis=1))


Learner = Callable[[Configuration, Task], Path]
"""A function from hyperparameters and rows to scores."""
