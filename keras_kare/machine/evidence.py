"""What a machine says of rows that it has not seen: what probabilities are calibrated on.

The same rows as choose a ridge: validation rows, those that a rehearsal left out, each row
by the machine without it, or rows held out from the solving.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_kare._labels import are_signs
from keras_kare.machine.calibration import Evidence
from keras_kare.machine.problem import Problem, Rows
from keras_kare.solvers import Solution

LEFT_OUT = "leave-one-out"
VALIDATED = "validation data"


def of_rows(
    problem: Problem,
    other: Rows,
    predict: Callable[[Solution], np.ndarray],
    solution: Solution,
    by: str,
) -> Evidence | None:
    """Return what a solution says of other rows; `None` where they have no classes.

    Args:
        problem: What is solved.
        other: Rows that are no part of it.
        predict: Predicts what the machine fits, for those rows.
        solution: Of the problem.
        by: Where the rows come from.
    """
    if not are_signs(other.y):
        return None
    scores = predict(solution) + (other.y - problem.targets(other.x, other.y))
    return Evidence(scores, other.y, other.weights, by)


def left_out(problem: Problem, solution: Solution) -> Evidence | None:
    """Return what machines without it say of each row, where the solution knows that.

    Args:
        problem: What was solved.
        solution: Its solution.
    """
    rows = problem.rows
    if solution.dual is None or solution.inverse_diagonal is None:
        return None
    if not (isinstance(rows, Rows) and are_signs(rows.y)):
        return None
    errors = solution.dual / solution.inverse_diagonal[:, None]
    if rows.weights is None:
        return Evidence(rows.y - errors, rows.y, None, LEFT_OUT)
    there = rows.weights > 0.0
    weights = np.asarray(rows.weights[there], "float64")
    scores = rows.y[there] - errors[there] / np.sqrt(weights)[:, None]
    return Evidence(scores, rows.y[there], weights, LEFT_OUT)
