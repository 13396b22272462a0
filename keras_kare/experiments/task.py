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
        seeds: One a fit whose scores are averaged; most learners fit once.
            Defaults to `(0,)`.
    """

    x: np.ndarray
    labels: np.ndarray
    classes: int
    x_test: np.ndarray
    seeds: tuple[int, ...] = (0,)

    @property
    def seed(self) -> int:
        """The seed of those who fit once."""
        return self.seeds[0]


Learner = Callable[[Configuration, Task], Path]
"""A function from hyperparameters and rows to scores."""
