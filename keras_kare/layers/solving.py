"""What a head does with a system: which solver, which ridge, what it tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_kare import solvers
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.memory import available
from keras_kare.layers import ridge_selection
from keras_kare.layers.machine import Predictor, machine_targets
from keras_kare.layers.ridge_selection import Choice
from keras_kare.solvers import Decision, Prepared, Solution, Solver, System

MOST_HELD_OUT = 2048
"""Rows that choose a ridge where nothing else can, at most; a tenth of all."""

Validation = tuple[Any, np.ndarray, np.ndarray | None]
"""Rows to choose the ridge on, their targets, and how often each counts."""


def decide(system: System, ridges: int, wanted: Solver | str) -> Decision:
    """The user's solver, or, for `"auto"`, the one that takes fewest operations."""
    if isinstance(wanted, Solver):
        return Decision(wanted, "the user")
    limit = available() // 2
    return solvers.decide(system.operator, system.y.shape[1], ridges, limit)


def choose(
    kernel: Kernel,
    prepared: Prepared,
    validation: Validation | None,
    residual: bool,
    by: str = "validation data",
) -> Choice:
    """A ridge: on validation rows, else by leave-one-out, else on rows held out."""
    if validation is None and prepared.exact_leave_one_out:
        return ridge_selection.by_leave_one_out(prepared)
    if validation is None:
        return _choose_on_held_out(kernel, prepared)
    xv, yv, weights = validation
    left = machine_targets(kernel, xv, yv, residual)
    predict = Predictor(kernel, prepared, xv)
    return ridge_selection.by_rows(prepared, predict, left, weights, by)


def _choose_on_held_out(kernel: Kernel, prepared: Prepared) -> Choice:
    """On a tenth of the rows, by machines that were solved on the others."""
    system = prepared.system
    order = np.random.default_rng(0).permutation(system.rows)
    held = order[: min(MOST_HELD_OUT, max(1, system.rows // 10))]
    rest = np.sort(order[len(held) :])
    operator = system.unscaled
    kept = System(
        kernel.operator(operator.rows_of(rest)),
        *system.rows_given(rest),
        intercept=system.intercept,
    )
    yv, weights = system.rows_given(held)
    others = prepared.solver.prepare(kept)
    predict = Predictor(kernel, others, operator.rows_of(held))
    by = f"hold-out ({len(held)} rows)"
    return ridge_selection.by_rows(others, predict, yv, weights, by)


def report(solution: Solution) -> dict[str, Any]:
    """What a solution tells of itself, as JSON."""
    constant = solution.constant
    names = (
        "rows",
        "leave_one_out_mse",
        "kare",
        "effective_dimension",
        "jitter",
        "solver",
        "residual",
        "tolerance",
        "converged",
        "iterations",
        "stopped",
        "kernel_error",
    )
    told = {name: getattr(solution, name) for name in names}
    return {**told, "intercept": None if constant is None else constant.tolist()}


def shape(solution: Solution) -> tuple[int, int]:
    """Number of anchors that a solution needs, and of targets."""
    anchors = solution.rows if solution.dual is None else len(solution.dual)
    return anchors, solution.columns


def interrupted(solution: Solution) -> KeyboardInterrupt:
    """What tells, after Ctrl-C, that something is there."""
    stopped = KeyboardInterrupt()
    stopped.add_note(
        "The head holds the best iterate, whose relative residual is "
        f"{solution.residual:.2g}: `predict` works."
    )
    return stopped
