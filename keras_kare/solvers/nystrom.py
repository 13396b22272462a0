"""A machine on a few centres: the Nyström approximation, as in FALKON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_kare import _linalg, _rows, _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.normal import NormalEquations
from keras_kare.solvers.primal import chunk_rows
from keras_kare.solvers.progress import Progress
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.stream import Stream, StreamPrepared, sum_over
from keras_kare.solvers.system import System

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
        self._keep(tolerance, memory_limit)

    def memory(self, operator: KernelOperator, columns: int) -> float:
        m = min(self.centres, operator.rows)
        return NormalEquations.memory(m, columns) + 8.0 * m * (m + 3.0 * chunk_rows(m))

    def prepare(self, system: System) -> NystromPrepared:
        self.check_memory(system, "Name fewer `centres`.")
        return NystromPrepared(system, self)

    def streams(self, kernel: Kernel) -> bool:
        return True

    def prepare_stream(self, kernel: Kernel, stream: Stream) -> StreamPrepared:
        step = chunk_rows(self.centres)
        chunk = 24.0 * self.centres * step
        needed = NormalEquations.memory(self.centres, stream.columns) + chunk
        self.check_bytes(needed, self.centres)
        _, anchors = stream.sample(self.centres, self.seed)
        operator = KernelOperator(kernel, anchors)
        span = CentreFeatures(operator.block(slice(None), np.arange(operator.rows)))
        features_kept = span.transform.shape[1]
        normal = NormalEquations(features_kept, stream.columns, stream.intercept)

        def features(x: Any) -> np.ndarray:
            parts = [
                kernel.cross(part, operator.x, dtype="float64").numpy() @ span.transform
                for part in _rows.slices(x, step)
            ]
            return np.concatenate(parts)

        trace = sum_over(stream, kernel, features, normal)
        return StreamPrepared(self, normal, trace, operator.x, span.coefficients)


class NystromPrepared(Prepared):
    """The centres and the sums over the rows, which serve every ridge."""

    exact_leave_one_out = False
    solver: Nystrom

    def __init__(self, system: System, solver: Nystrom):
        super().__init__(system, solver)
        # The centres' own features are centred: kernel values less their mean would be of
        # functions that the centres do not span.
        operator = system.scaled
        usable = np.flatnonzero(system.root)
        rng = np.random.default_rng(solver.seed)
        drawn = rng.choice(usable, min(solver.centres, len(usable)), replace=False)
        self.centres = np.sort(drawn)
        self.features = CentreFeatures(operator.block(self.centres, self.centres))
        self.normal = self.features.equations(
            lambda rows: operator.block(rows, self.centres),
            system,
            operator.chunks(chunk_rows(len(self.centres))),
        )

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun, normal = time.perf_counter(), self.normal
        w, jitter = normal.solve(ridge)
        trace = self.system.scaled.trace / self.system.rows
        constant = normal.constant(w)
        return Solution(
            ridge=ridge,
            constant=None if constant is None else self.system.centre + constant,
            # (1/m) K(x, Z) α = K(x, Z) β
            dual=len(self.centres) * self.features.coefficients(w),
            centres=self.centres,
            jitter=jitter,
            freedom=normal.freedom(ridge),
            residual=float(np.max(normal.residual(w, ridge))),
            kernel_error=max(0.0, 1.0 - normal.trace / trace),
            **self._facts(begun),
        )


class CentreFeatures:
    """`φ(x) = k(x, Z) T` with `T = K_ZZ^(-½)`: the features that the centres span.

    Directions of `K_ZZ` that are rounding, as duplicated centres make them, are left out.

    Args:
        gram: `K_ZZ`, `(m, m)`.
    """

    def __init__(self, gram: np.ndarray):
        values, vectors = _linalg.eigh(0.5 * (gram + gram.T))
        if not values[-1] > 0.0:
            raise ValueError(
                "The kernel is zero on all centres: the network's outputs do not react to "
                "its weights there (dead or saturated units)."
            )
        kept = values > NEGLIGIBLE * values[-1]
        self.transform = vectors[:, kept] / np.sqrt(values[kept])

    def equations(
        self,
        block: Callable[[slice], np.ndarray],
        system: System,
        chunks: Iterator[slice],
    ) -> NormalEquations:
        """The normal equations of these features.

        Args:
            block: Kernel values between some rows and the centres.
            system: Targets of all rows, and whether they have an intercept.
            chunks: The rows, a few at a time.
        """
        y, root = system.y, system.root
        normal = NormalEquations(self.transform.shape[1], y.shape[1], system.intercept)
        progress = Progress(len(y), "row")
        for rows in chunks:
            normal.add(block(rows) @ self.transform, y[rows], ones=root[rows])
            progress.step(rows.stop)
        progress.close()
        return normal.finish()

    def coefficients(self, w: np.ndarray) -> np.ndarray:
        """`β` of the centres, `(m, c)`."""
        return self.transform @ w
