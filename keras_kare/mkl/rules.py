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
        converged: Whether it ended for lack of more to gain.
        missed: The aim that it missed, in words; `None` where there is none to miss.
        more: Further lines of the report.
    """

    point: Point
    certificate: Certificate
    iterations: int = 0
    converged: bool = True
    missed: str | None = None
    more: dict[str, float] = field(default_factory=dict)


Rule = Callable[[GroupLasso, np.ndarray, float, int], Weighed]
"""Of the problem, the weights of the NTK, a relative duality gap and a number of steps."""


def optimal(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take the weights of the group lasso."""
    point, found, steps = problem.minimise(ntk, tolerance, max_iterations)
    missed = None
    if found.relative_gap > tolerance:
        missed = (
            f"the relative duality gap is {found.relative_gap:.1e}, above "
            f"tolerance={tolerance:.1e}"
        )
    return Weighed(point, found, steps, missed is None, missed)


def of_ntk(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take the weights of the neural tangent kernel."""
    point = problem.at(ntk)
    return Weighed(point, problem.certify(point))


def of_kare(
    problem: GroupLasso, ntk: np.ndarray, tolerance: float, max_iterations: int
) -> Weighed:
    """Take weights of low KARE, at the ridge of the machine; fewer steps are a choice."""
    ridge = problem.regularization / len(problem.y)
    descent = lowest_kare(problem.rows, problem.y, ridge, ntk, max_iterations)
    point = problem.at(descent.weights)
    steps, more = len(descent.values) - 1, {"kare": descent.values[-1]}
    more["kare_of_ntk"] = descent.values[0]
    found = problem.certify(point)
    return Weighed(point, found, steps, descent.converged, more=more)


RULES: dict[str, Rule] = {"optimal": optimal, "ntk": of_ntk, "kare": of_kare}
