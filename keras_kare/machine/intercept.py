"""Whether a machine gets a constant: from its targets, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FAR = 3.0
"""Times its spread that a target's mean must be away from zero to count as far.

Root mean squared errors on scikit-learn's diabetes with shifted targets (a wide layer, the
ridge by leave-one-out, three starts), without a constant beside with one: at a shift of 3
standard deviations 1 to 4 % more, at 10 up to 17 %, at 50 up to 113 %, and then in
proportion to the shift. With one they are the same at every shift. Below, the machine is
the paper's."""


@dataclass(frozen=True)
class Intercept:
    """Whether there is an intercept, and who said so.

    Attributes:
        present: Whether there is one.
        by: Who said so, for the head's report.
    """

    present: bool
    by: str


def decide(
    wanted: bool | str, parts: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> Intercept:
    """Take the user's word, or, for `"auto"`, look whether some target is far from zero.

    Args:
        wanted: `"auto"`, or what the user said.
        parts: Targets `(k, c)` of some rows and how often each counts `(k,)`, until all
            rows were there. Read for `"auto"` only.
    """
    if isinstance(wanted, bool):
        return Intercept(wanted, "the user")
    moments = Moments()
    for y, weights in parts:
        moments.add(y, weights)
    if moments.classes:
        return Intercept(False, "targets of -1 and 1")
    times = moments.times
    if times > FAR:
        return Intercept(True, f"a mean {times:.3g} times as large as the spread")
    return Intercept(False, f"means of at most {times:.2g} times the spread")


class Moments:
    """Mean and spread of targets, from parts of them.

    Attributes:
        classes: Whether all are -1 or 1, as classes are encoded.
    """

    def __init__(self) -> None:
        self.classes = True
        self._unit: np.ndarray | None = None
        self._count = 0.0
        self._mean, self._squares = np.zeros(1), np.zeros(1)

    def add(self, y: np.ndarray, weights: np.ndarray | None) -> None:
        """Take in the targets of some rows."""
        y = np.asarray(y, "float64")
        if self._unit is None:  # in some unit of their own, squares are numbers
            largest = np.max(np.abs(y), axis=0)
            self._unit = np.where(largest > 0.0, largest, 1.0)
        self.classes = self.classes and bool(np.all(np.abs(y) == 1.0))
        y = y / self._unit
        w = np.ones(len(y)) if weights is None else np.asarray(weights, "float64")
        count = float(np.sum(w))
        if not count:
            return
        mean = w @ y / count
        total, away = self._count + count, mean - self._mean
        self._squares = self._squares + w @ (y - mean) ** 2
        self._squares = self._squares + away**2 * (self._count * count / total)
        self._mean = self._mean + away * (count / total)
        self._count = total

    @property
    def times(self) -> float:
        """The largest of `|mean|/spread`; infinite for constants other than zero."""
        spread = np.sqrt(self._squares / max(self._count, 1e-300))
        size = np.abs(self._mean)
        ratio = np.full_like(size, np.inf)
        np.divide(size, spread, out=ratio, where=spread > 0.0)
        return float(np.max(np.where(size > 0.0, ratio, 0.0)))
