"""A machine on a few centres: the Nyström approximation, as in FALKON."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from keras_kare import _linalg, _rows, _validation
from keras_kare._progress import Progress
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.normal import NormalEquations
from keras_kare.solvers.primal import chunk_rows
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.stream import StreamSystem
from keras_kare.solvers.system import AbstractSystem, System

NEGLIGIBLE = 1e-12
"""Eigenvalues of the centres' matrix below this share of the largest are rounding."""


@keras.saving.register_keras_serializable(package="keras_kare")
class Nystrom(Solver):
    """The machine `ŷ(x) = Σ_j β_j k(x, z_j)` on `m` of the rows as centres.

    An approximation: of all functions that the centres span, the one that minimises
    `(1/n) Σ_i (ŷ(x_i) − y_i)² + λ |ŷ|²`. The report's `kernel_error` is the share of
    `tr(K)` that the centres do not span. Predictions need the centres only. In the
    orthonormal features `φ(x) = k(x, Z) K_ZZ^(-½)` this is an `m x m` primal system,
    solved directly, so that it is exact within the span. Datasets are streamed: one pass
    draws the centres, a second sums over the rows, and memory does not depend on `n`.

    Args:
        centres: Number `m` of rows that are drawn as centres, without replacement; all
            rows where there are fewer. Defaults to `1000`.
        seed: Of the draw. Defaults to `0`.
        tolerance: Of the residual of the `m x m` system. Defaults to `1e-6`.
        memory_limit: See `Solver`; it takes about four matrices of `m²` numbers.

    Example:

    ```python
    head = kk.NTKRidgeHead(ridge=1.0, solver=kk.solvers.Nystrom(centres=2000))
    model = kk.KAREModel(network, head=head)
    model.fit_head(x, y)
    model.head.report["kernel_error"]
    ```

    References:
        - Rudi, Carratino, Rosasco, "FALKON: an optimal large scale kernel method",
          arXiv:1705.10958.
        - Williams, Seeger, "Using the Nyström method to speed up kernel machines".
    """

    name = "nystrom"
    centred = True

    def __init__(
        self,
        centres: int = 1000,
        seed: int = 0,
        tolerance: float = 1e-6,
        memory_limit: int | None = None,
    ):
        _validation.check_whole("centres", centres, 1)
        _validation.check_whole("seed", seed, 0)
        self.centres, self.seed = centres, seed
        super().__init__(tolerance, memory_limit)

    def memory(self, operator: KernelOperator, columns: int) -> float:
        m = min(self.centres, operator.rows)
        return NormalEquations.memory(m, columns) + 8.0 * m * (m + 3.0 * chunk_rows(m))

    def prepare(self, system: AbstractSystem) -> NystromPrepared:
        if isinstance(system, StreamSystem):
            return self._prepare_stream(system)
        system = self.check_memory(system, "Name fewer `centres`.")
        # The centres' own features are centred: kernel values less their mean would be of
        # functions that the centres do not span.
        operator = system.scaled
        usable = np.flatnonzero(system.root)
        rng = np.random.default_rng(self.seed)
        drawn = rng.choice(usable, min(self.centres, len(usable)), replace=False)
        drawn = np.sort(drawn)
        transform = spanned(operator.block(drawn, drawn))
        normal = NormalEquations(transform.shape[1], system.columns, system.intercept)
        progress = Progress(system.rows, "row")
        for rows in operator.chunks(chunk_rows(len(drawn))):
            phi = operator.block(rows, drawn) @ transform
            normal.add(phi, system.y[rows], ones=system.root[rows])
            progress.step(rows.stop)
        progress.close()
        return NystromPrepared(system, self, drawn, transform, normal)

    def streams(self, kernel: Kernel) -> bool:
        return True

    def _prepare_stream(self, system: StreamSystem) -> NystromPrepared:
        step = chunk_rows(self.centres)
        needed = NormalEquations.memory(self.centres, system.columns)
        self.check_bytes(needed + 24.0 * self.centres * step, self.centres)
        drawn, anchors = system.stream.sample(self.centres, self.seed)
        operator = KernelOperator(system.kernel, anchors)
        transform = spanned(operator.block(slice(None), np.arange(operator.rows)))
        normal = NormalEquations(transform.shape[1], system.columns, system.intercept)
        for x, y, weights in system.read():
            parts = [
                system.kernel.cross(part, operator.x, dtype="float64").numpy() @ transform
                for part in _rows.slices(x, step)
            ]
            normal.add(np.concatenate(parts), y, weights)
        return NystromPrepared(system, self, drawn, transform, normal, operator.x)


class NystromPrepared(Prepared):
    """The centres and the sums over the rows, which serve every ridge.

    Args:
        system: The system.
        solver: The solver.
        drawn: Which rows are centres, `(m,)`.
        transform: What makes their features orthonormal, `(m, q)`.
        normal: The sums over all rows.
        anchors: The centres' inputs, where the system keeps none.
    """

    exact_leave_one_out = False

    def __init__(
        self,
        system: AbstractSystem,
        solver: Nystrom,
        drawn: np.ndarray,
        transform: np.ndarray,
        normal: NormalEquations,
        anchors: Any = None,
    ):
        super().__init__(system, solver)
        self._drawn, self._anchors, self._transform = drawn, anchors, transform
        self._normal = normal.finish()

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun, normal, system = time.perf_counter(), self._normal, self.system
        w, jitter = normal.solve(ridge)
        constant = normal.constant(w)
        known = normal.small or isinstance(system, System)
        return Solution(
            ridge=ridge,
            constant=None if constant is None else system.centre + constant,
            # (1/m) K(x, Z) α = K(x, Z) β
            dual=len(self._drawn) * (self._transform @ w),
            centres=self._drawn,
            jitter=jitter,
            freedom=normal.freedom(ridge) if known else None,
            residual=float(np.max(normal.residual(w, ridge))),
            kernel_error=max(0.0, 1.0 - normal.trace / (system.unit * system.count)),
            **self.facts(begun),
        )

    def anchors_of(self, solution: Solution) -> Any:
        kept = self._anchors
        return self.system.anchors_of(solution) if kept is None else kept


def spanned(gram: np.ndarray) -> np.ndarray:
    """Return `T = K_ZZ^(-½)`, `(m, q)`: centres span the features `φ(x) = k(x, Z) T`.

    Directions of `K_ZZ` that are rounding, as duplicated centres make them, are left out.

    Args:
        gram: `K_ZZ`, `(m, m)`.

    Raises:
        ValueError: If it is zero.
    """
    values, vectors = _linalg.eigh(0.5 * (gram + gram.T))
    if not values[-1] > 0.0:
        raise ValueError(
            "The kernel is zero on all centres: the network's outputs do not react to "
            "its weights there (dead or saturated units)."
        )
    kept = values > NEGLIGIBLE * values[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]))
