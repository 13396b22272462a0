"""Rules for the weights of masking kernels: one function each, in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from keras_kare.mkl.group_lasso import Certificate, GroupLasso, Point
from keras_kare.mkl.lowest_kare import lowest_kare


@dataclass(frozen=True)
class Weighed:
    """What a rule found.

    Args:
        point: The weights, and the kernel ridge regression of them.
        certificate: What it reaches in the group lasso.
        iterations: Steps that it took.
        unfinished: What was not reached, in words; `None` where the aim was reached.
        more: Further lines of the report.
    """

    point: Point
    certificate: Certificate
    iterations: int = 0
    unfinished: str | None = None
    more: dict[str, float] = field(default_factory=dict)


Rule = Callable[[GroupLasso, np.ndarray, float, int], Weighed]
"""Of the problem, the weights of the NTK, a relative duality gap and a number of steps."""


def optimal(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take the weights of the group lasso."""
    point, found, steps = problem.minimise(ntk, tolerance, max_iterations)
    unfinished = None
    if found.relative_gap > tolerance:
        unfinished = (
            f"the relative duality gap is {found.relative_gap:.1e}, above "
            f"tolerance={tolerance:.1e}"
        )
    return Weighed(point, found, steps, unfinished)


def of_ntk(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take the weights of the neural tangent kernel."""
    point = problem.at(ntk)
    return Weighed(point, problem.certify(point))


def of_kare(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take weights of low KARE, at the ridge of the machine."""
    ridge = problem.regularization / len(problem.y)
    descent = lowest_kare(problem.rows, problem.y, ridge, ntk, max_iterations)
    point = problem.at(descent.weights)
    unfinished = None if descent.converged else "KARE still falls"
    values = descent.values
    more = {"kare": values[-1], "kare_of_ntk": values[0]}
    return Weighed(point, problem.certify(point), len(values) - 1, unfinished, more)


RULES: dict[str, Rule] = {"optimal": optimal, "ntk": of_ntk, "kare": of_kare}
