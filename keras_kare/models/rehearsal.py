"""Choosing the ridge of a kernel that was trained on all its rows.

A kernel trained on rows makes their leave-one-out errors look too good, so that
rows which trained cannot choose a ridge. Without validation data, training is
therefore rehearsed: from the same start, for as many epochs, on four fifths of the
rows. The remaining fifth never trained that kernel, and chooses `λ̃`. The model
itself then goes back to where its training on all rows had ended.
"""

from __future__ import annotations

from typing import Any

import numpy as np

HELD_OUT = 0.2
FEWEST = 10
NAME = "rows held out from a rehearsal of the training"


class Snapshot:
    """Values of a model's variables and its optimizer's, to return to."""

    def __init__(self, model: Any):
        self._variables = [*model.variables, *model.optimizer.variables]
        self._values = [np.asarray(v.value) for v in self._variables]

    def restore(self) -> None:
        """Put all values back."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


def held_out(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that rehearse and of those that choose; always the same."""
    shuffled = np.random.default_rng(0).permutation(rows)
    count = max(1, round(HELD_OUT * rows))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])
