"""More rows than features: the exact primal system, one pass over the rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_kare import _rows
from keras_kare._progress import Progress
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.normal import NormalEquations
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.stream import StreamSystem
from keras_kare.solvers.system import AbstractSystem, System

CHUNK = 4096
"""Most rows whose features are written out at a time."""

CHUNK_BYTES = 2**28
"""Most bytes of them, whatever the limit: products with more rows are no faster."""


@keras.saving.register_keras_serializable(package="keras_kare")
class Primal(Solver):
    """`(JᵀJ/n + λI) w = Jᵀy/n`: as many unknowns as the network has variables.

    Exact, in float64. One pass over the rows sums `JᵀJ` in `n F²` multiply-adds; after
    that, rows no longer matter. Datasets are streamed: memory does not depend on `n`.

    Args:
        tolerance: Residual above which a solution counts as not converged. Defaults to
            `1e-6`.
        memory_limit: See `Solver`; it takes about three matrices of `F²` numbers.

    Example:

    ```python
    head = kk.NTKRidgeHead(ridge=1.0, solver="primal")
    model = kk.KAREModel(network, head=head)
    model.fit_head(dataset)        # a tf.data.Dataset of any length
    ```
    """

    name = "primal"

    def memory(self, operator: KernelOperator, columns: int) -> float:
        if operator.features is None:
            raise ValueError(
                '`solver="primal"` needs a kernel with a finite feature map. Use "cg". '
                f"Received: an operator of type {type(operator).__name__}"
            )
        chunk = 8.0 * operator.features * chunk_rows(operator.features)
        vectors = 8.0 * 3.0 * operator.rows * columns
        return NormalEquations.memory(operator.features, columns) + 3.0 * chunk + vectors

    def prepare(self, system: AbstractSystem) -> Prepared:
        if isinstance(system, StreamSystem):
            return PrimalStream(system, self)
        return PrimalPrepared(self.check_memory(system), self)

    def streams(self, kernel: Kernel) -> bool:
        return kernel.has_features


class PrimalStream(Prepared):
    """The sums over a stream, which serve every ridge; `α` is not known then."""

    exact_leave_one_out = False

    def __init__(self, system: StreamSystem, solver: Primal):
        super().__init__(system, solver)
        features = system.kernel.feature_count(system.stream.first)
        solver.check_bytes(NormalEquations.memory(features, system.columns), features)
        self.normal = NormalEquations(features, system.columns, system.intercept)
        for x, y, weights in system.read():
            parts = [
                system.kernel.feature_rows(part, dtype="float64").numpy()
                for part in _rows.slices(x, chunk_rows(features))
            ]
            self.normal.add(np.concatenate(parts), y, weights)
        self.normal.finish()

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun, normal = time.perf_counter(), self.normal
        w, jitter = normal.solve(ridge)
        return Solution(
            ridge=ridge,
            weights=w,
            constant=normal.constant(w),
            jitter=jitter,
            squared=normal.dual_squared(w, ridge),
            freedom=normal.freedom(ridge) if normal.small else None,
            residual=float(np.max(normal.residual(w, ridge))),
            **self.facts(begun),
        )


class PrimalPrepared(Prepared):
    """The sums over the rows, which serve every ridge."""

    system: System

    def __init__(self, system: System, solver: Primal):
        super().__init__(system, solver)
        operator = system.operator
        assert operator.features is not None
        self.normal = NormalEquations(operator.features, system.columns)
        for rows, phi in self._features():
            self.normal.add(phi, system.y[rows])
        self.normal.finish()
        self.direct = self.normal.small

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        w, jitter = self.normal.solve(ridge)
        diagonal = None
        if self.direct:
            predicted, diagonal = self._leverages(w, ridge)
        else:
            operator = self.system.operator
            predicted = operator.jvp(operator.kernel.weights_from(w, operator.x))
        return Solution(
            ridge=ridge,
            dual=(self.system.y - predicted) / ridge,
            weights=w,
            constant=self.system.constant_of(w),
            jitter=jitter,
            inverse_diagonal=diagonal,
            **self.facts(begun),
        )

    def _leverages(self, w: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Return `J w`, and `diag(A⁻¹) = (1 − h)/λ`, `h_i = J_i (G + λI)⁻¹ J_iᵀ/n`.

        With an intercept `P` stands in for `A⁻¹`.
        """
        values, vectors = self.normal.basis
        shrunk = 1.0 / (values + ridge) / self.system.rows
        predicted, diagonal = np.empty_like(self.system.y), np.empty(self.system.rows)
        for rows, phi in self._features():
            predicted[rows] = phi @ w
            diagonal[rows] = (1.0 - (phi @ vectors) ** 2 @ shrunk) / ridge
        return predicted, self.system.less_constant(diagonal, ridge)

    def solve_grid(self, ridges: Iterable[float]) -> Iterator[Solution]:
        """Find weights and leave-one-out errors, by one more pass over the rows."""
        if not self.direct:
            yield from super().solve_grid(ridges)
            return
        begun, grid = time.perf_counter(), [float(ridge) for ridge in ridges]
        values, vectors = self.normal.basis
        turned = vectors.T @ self.normal.right
        shrunk = 1.0 / (values[:, None] + np.array(grid))  # (F, ridges)
        system, rows = self.system, self.system.rows
        errors = np.zeros((len(grid), system.columns))
        whole = system.less_constant(np.ones(rows), 1.0)  # λ (A⁻¹)_ii + h_i
        for chunk, phi in self._features():
            seen = phi @ vectors
            kept = whole[chunk, None] - (seen**2 @ shrunk) / rows  # (k, ridges)
            y = system.y[chunk]
            for i in range(len(grid)):
                left = y - seen @ (turned * shrunk[:, i : i + 1])
                errors[i] += np.sum((left / kept[:, i : i + 1]) ** 2, axis=0)
        facts = self.facts(begun)
        for i, ridge in enumerate(grid):
            w = vectors @ (turned * shrunk[:, i : i + 1])
            yield Solution(
                ridge=ridge,
                weights=w,
                constant=system.constant_of(w),
                freedom=float(np.sum(values * shrunk[:, i])) + system.intercept,
                squared=self.normal.dual_squared(w, ridge),
                loo_errors=errors[i] / system.count,
                **facts,
            )

    def _features(self) -> Iterator[tuple[slice, np.ndarray]]:
        operator = self.system.operator
        assert operator.features is not None
        progress = Progress(operator.rows, "row")
        try:
            for rows in operator.chunks(chunk_rows(operator.features)):
                yield rows, operator.feature_rows(rows)
                progress.step(rows.stop)
        finally:
            progress.close()


def chunk_rows(features: int) -> int:
    """Return how many rows of features are written out at a time."""
    return max(64, min(CHUNK, CHUNK_BYTES // (8 * features)))
