"""Every ridge at once: one eigendecomposition of the Gram matrix."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_kare import _linalg
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import AbstractSystem, System


@keras.saving.register_keras_serializable(package="keras_kare")
class Spectral(Solver):
    """`K/n = Q diag(e) Qᵀ`, from which each ridge costs only `O(n² c)`.

    About `10 n³` multiply-adds, once; four matrices of `n²` numbers.

    NumPy's LAPACK is used in float64 on every device: on CPUs it is several times
    faster than TensorFlow's eigensolver.

    Args:
        tolerance: Residual above which a solution counts as not converged. Defaults to
            `1e-6`.
        memory_limit: See `Solver`.

    Example:

    ```python
    system = kk.solvers.System(kernel.operator(x), y)
    path = kk.solvers.Spectral().prepare(system).solve_grid([1e-4, 1e-3, 1e-2])
    [solution.leave_one_out_mse for solution in path]
    ```
    """

    name = "spectral"

    def memory(self, operator: KernelOperator, columns: int) -> float:
        return 4.0 * 8.0 * operator.rows**2

    def prepare(self, system: AbstractSystem) -> SpectralPrepared:
        system = self.check_memory(system)
        _ = system.gram  # its trace is at hand then
        return SpectralPrepared(system, self)


class SpectralPrepared(Prepared):
    """The eigendecomposition, made when first asked for.

    Attributes:
        eigenvalues: `e` of `K/n`, ascending, `(n,)`. Negative ones, which only rounding
            can make, are zero.
        vectors: `Q`, `(n, n)`.
    """

    system: System

    @functools.cached_property
    def _basis(self) -> tuple[np.ndarray, np.ndarray]:
        gram = self.system.gram
        eigenvalues, vectors = _linalg.eigh(gram)
        return np.maximum(eigenvalues, 0.0) / len(gram), vectors

    @property
    def eigenvalues(self) -> np.ndarray:
        return self._basis[0]

    @property
    def vectors(self) -> np.ndarray:
        return self._basis[1]

    @functools.cached_property
    def _rotated(self) -> np.ndarray:
        return self.vectors.T @ self.system.y

    @functools.cached_property
    def _squared(self) -> np.ndarray:
        return self.vectors**2

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        (solution,) = self.solve_grid([ridge])
        return solution

    def solve_grid(self, ridges: Iterable[float]) -> Iterator[Solution]:
        for ridge in ridges:
            begun = time.perf_counter()
            shrunk = self.eigenvalues + ridge
            dual = self.vectors @ (self._rotated / shrunk[:, None])
            diagonal = self._squared @ (1.0 / shrunk)
            yield Solution(
                **self.system.finished(dual),
                ridge=float(ridge),
                inverse_diagonal=self.system.less_constant(diagonal, ridge),
                **self.facts(begun),
            )
