"""Which solver: decided from counts of operations and bytes, and said."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_kare.kernels.memory import in_words
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.cg import CG
from keras_kare.solvers.cholesky import Cholesky
from keras_kare.solvers.eigenpro import EigenPro
from keras_kare.solvers.normal import ALL_RIDGES
from keras_kare.solvers.nystrom import Nystrom
from keras_kare.solvers.primal import Primal
from keras_kare.solvers.solver import Solver
from keras_kare.solvers.spectral import Spectral

FEW_ROWS = 2048
"""Rows below which the matrix is always formed: that takes about a second."""

DIRECT_ROWS = 4096
"""Rows up to which a direct solver is taken, which knows leave-one-out and the like."""

MANY_ROWS = 8192
"""Rows above which it never is: its eigenvalues would take minutes, and gigabytes."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """A solver that was chosen, and why.

    Attributes:
        solver: The solver.
        why: For the head's report.
    """

    solver: Solver
    why: str


def decide(operator: KernelOperator, columns: int, ridges: int, limit: int) -> Decision:
    """Choose the exact solver of fewest operations, of those that fit in memory.

    Approximations (`"nystrom"`) and `"eigenpro"` are never chosen here: they need the
    user's word.

    Args:
        operator: `K`.
        columns: Number of targets `c`.
        ridges: How many ridges will be solved for.
        limit: Bytes that may be held.
    """
    n, f = float(operator.rows), operator.features
    dense: Solver = Cholesky() if ridges == 1 else Spectral()
    eigen = 10.0 * n**3 if ridges > 1 else n**3
    costs: dict[str, tuple[Solver, float]] = {}
    if n <= MANY_ROWS:
        work = 0.5 * n**2 * operator.pair_flops + eigen + ridges * n**2 * columns
        costs[dense.name] = dense, work
    if f is not None and f < n and (ridges == 1 or f <= ALL_RIDGES):
        sums = n * float(f) ** 2 + (10.0 if f <= ALL_RIDGES else 0.4) * float(f) ** 3
        passes = 1.0 if ridges == 1 else 3.0
        costs["primal"] = Primal(), passes * sums
    iterations = 100.0 * min(ridges, 6)
    costs["cg"] = CG(), iterations * operator.product_flops(columns) + n * 2000.0**2
    if n <= DIRECT_ROWS and len(costs) > 1 and _fits(dense, operator, columns, limit):
        del costs["cg"]
    if n <= FEW_ROWS and _fits(dense, operator, columns, limit):
        return Decision(dense, f"{operator.rows} rows, so that the matrix is small")
    return _cheapest(costs, operator, columns, limit)


def _cheapest(
    costs: dict[str, tuple[Solver, float]],
    operator: KernelOperator,
    columns: int,
    limit: int,
) -> Decision:
    fitting = {k: v for k, v in costs.items() if _fits(v[0], operator, columns, limit)}
    known = fitting or {"cg": costs["cg"]}  # it takes least
    name = min(known, key=lambda k: known[k][1])
    others = []
    for other, (solver, work) in costs.items():
        if other != name:
            size = in_words(solver.memory(operator, columns))
            told = (
                f"{work / 1e9:.3g}" if other in fitting else f"would take {size} of memory"
            )
            others.append(f"{other} {told}")
    solver, work = known[name]
    features = "" if operator.features is None else f", {operator.features} features"
    why = f"{operator.rows} rows{features}: about {work / 1e9:.3g} GFLOP"
    return Decision(solver, f"{why} ({', '.join(others)})" if others else why)


def _fits(solver: Solver, operator: KernelOperator, columns: int, limit: int) -> bool:
    return solver.memory(operator, columns) <= limit


SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (Spectral, Cholesky, Primal, CG, Nystrom, EigenPro)
}
"""Solvers by name, for `solver="..."`."""


def get(solver: Any) -> Solver | str:
    """Make a solver of its name or configuration; one, and `"auto"`, stay as they are.

    Raises:
        ValueError: If there is no such solver.
    """
    if isinstance(solver, dict):
        solver = keras.saving.deserialize_keras_object(solver)
    if isinstance(solver, Solver):
        lacking = [
            n for n in ("name", "tolerance", "memory_limit") if not hasattr(solver, n)
        ]
        if lacking:
            raise ValueError(
                "A solver has a class attribute `name`, and its `__init__` calls "
                "`super().__init__(tolerance, memory_limit)`. Received: solver of type "
                f"{type(solver).__name__} without {', '.join(lacking)}"
            )
        return solver
    if isinstance(solver, str) and solver == "auto":
        return solver
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    known = ", ".join(f'"{name}"' for name in SOLVERS)
    raise ValueError(
        f'`solver` must be "auto", one of {known}, or a solver of `keras_kare.solvers`. '
        f"Received: solver={solver!r}"
    )
