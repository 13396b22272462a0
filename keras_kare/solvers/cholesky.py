"""One ridge, directly: the Cholesky factor of `K/n + λI`."""

from __future__ import annotations

import time

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _linalg
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import AbstractSystem, System


@keras.saving.register_keras_serializable(package="keras_kare")
class Cholesky(Solver):
    """The Cholesky factor of `K/n + λI`, in float64.

    `n³/3` multiply-adds for the factor of one ridge, as many again for the diagonal of
    the inverse, from which leave-one-out errors come; five matrices of `n²` numbers.

    Args:
        tolerance: Residual above which a solution counts as not converged. Defaults to
            `1e-6`.
        memory_limit: See `Solver`.

    Example:

    ```python
    solution = kk.solvers.Cholesky().solve(kernel.operator(x), y, ridge=1e-3)
    solution.dual, solution.residual, solution.leave_one_out_mse
    ```
    """

    name = "cholesky"

    def memory(self, operator: KernelOperator, columns: int) -> float:
        return 5.0 * 8.0 * operator.rows**2

    def prepare(self, system: AbstractSystem) -> CholeskyPrepared:
        system = self.check_memory(system)
        _ = system.gram  # its trace is at hand then
        return CholeskyPrepared(system, self)


class CholeskyPrepared(Prepared):
    """The Gram matrix, formed when first asked for."""

    direct = False
    system: System

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        """Solve at one ridge, in float64.

        Raises:
            ValueError: If no jitter makes the matrix positive definite.
        """
        begun = time.perf_counter()
        gram, y = self.system.gram, self.system.y
        matrix = gram / len(gram)
        matrix[np.diag_indices_from(matrix)] += ridge
        lower, jitter = _linalg.inverse_cholesky(tf.constant(matrix))
        half = tf.matmul(lower, tf.constant(y))
        dual = tf.matmul(lower, half, transpose_a=True).numpy()
        diagonal = tf.reduce_sum(tf.square(lower), axis=0).numpy()
        return Solution(
            **self.system.finished(dual),
            ridge=float(ridge),
            inverse_diagonal=self.system.less_constant(diagonal, ridge),
            jitter=float(jitter),
            **self.facts(begun),
        )
