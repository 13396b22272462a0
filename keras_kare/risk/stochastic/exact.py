"""KARE exactly, from the `F x F` matrix of a feature map with `F <= n` numbers.

With `G = JᵀJ/n`, `H = (G + zI)⁻¹` and `w = H Jᵀy/n`,

    a = (y − J w)/z,   b = (a − J H w)/z,   Jᵀa = n w,   Jᵀb = n H w,
    tr(A⁻¹) = (n − F)/z + tr(H),   tr(A⁻²) = (n − F)/z² + tr(H²),   A⁻²J = J H²,

and the gradient of KARE by `J` is

    −(2/(n c t²)) (b wᵀ + a (H w)ᵀ) + (4 s/(n² t³)) J H².

With an intercept, `J` and `y` are those less their means, `1/z` less is the trace of the
`P` that stands in for `A⁻¹`, and `1/z²` that of its square (see
`keras_kare.solvers.centred`). The gradient by `J` less its mean is the one by `J`: it
has no mean, either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _linalg
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.memory import available, in_words
from keras_kare.kernels.operator import KernelOperator
from keras_kare.risk.stochastic.estimate import Estimate
from keras_kare.risk.stochastic.row_gradients import summed_gradients
from keras_kare.solvers import System
from keras_kare.solvers.centred import CentredOperator
from keras_kare.solvers.normal import NormalEquations
from keras_kare.solvers.primal import CHUNK_BYTES, chunk_rows

TOLERANCE = 1e-6
"""Residual above which rounding errors have spoilt the solution."""


class Exact:
    """The solution in the primal form, in float64, and KARE of it.

    Args:
        system: The system.
        ridge: `z`.

    Attributes:
        estimate: The `Estimate`.

    Raises:
        MemoryError: Before the work, if it does not fit.
    """

    def __init__(self, system: System, ridge: float):
        self._system, self._ridge = system, ridge
        count, c = system.count, system.y.shape[1]
        assert system.operator.features is not None
        self._features = system.operator.features
        _check_memory(self._features, c)
        self._factorise()
        self._solve()
        with np.errstate(over="ignore"):  # the estimate is checked
            self._s = float(np.sum(self._a**2)) / (count * c)
        self._null = count - self._features - system.intercept
        null = self._null / ridge
        self._t = (null + float(np.trace(self._inverse))) / count
        self.estimate = Estimate(
            value=self._s / self._t**2,
            standard_error=0.0,
            method="primal",
            probes=0,
            ridge=ridge,
            residual=self._residual,
            tolerance=TOLERANCE,
            iterations=0,
            dual=self._a,
        )

    def gradients(self, kernel: Kernel, slope: float) -> list[tf.Tensor]:
        """Differentiate KARE.

        Args:
            kernel: The kernel; its rows count once each.
            slope: The derivative of `z` by `tr(K)`.
        """
        (n, c), s, t, z = self._a.shape, self._s, self._t, self._ridge
        by_s, by_t = 1.0 / t**2, -2.0 * s / t**3
        trace_of_square = self._null / z**2 + float(np.sum(self._inverse**2))
        by_ridge = -2.0 * by_s * float(np.sum(self._a * self._b)) / (n * c)
        by_ridge -= by_t * trace_of_square / n
        inner = tf.constant((-2.0 * by_t / n**2) * (self._inverse @ self._inverse))
        left = np.concatenate([self._b, self._a], axis=1) * (-2.0 * by_s / (n * c))
        right = tf.constant(np.concatenate([self._w, self._hw], axis=1))

        def by_features(rows: slice, j: tf.Tensor) -> tf.Tensor:
            # H is large where J is small: float64, whatever the network's type.
            wide = tf.cast(j, tf.float64)
            found = tf.matmul(self._less_mean(wide, rows), inner)
            found += 2.0 * slope * by_ridge * wide
            return tf.cast(found + tf.matmul(left[rows], right, transpose_b=True), j.dtype)

        def features(_: slice, x: Any) -> tf.Tensor:
            return kernel.feature_rows(x)

        step = chunk_rows(self._features)
        operator = self._system.operator
        return summed_gradients(kernel, operator, step, features, by_features)

    def _less_mean(self, j: tf.Tensor, rows: slice) -> tf.Tensor:
        operator = self._system.operator
        if not isinstance(operator, CentredOperator):
            return j
        return j - np.outer(operator.unit[rows], operator.flat_mean)

    def _factorise(self) -> None:
        """Find `H`, `w` and `H w` in one pass over the rows."""
        operator, y = self._system.operator, self._system.y
        normal = NormalEquations(self._features, y.shape[1])
        for rows in self._chunks():
            normal.add(operator.feature_rows(rows), y[rows])
        normal.finish()
        system = normal.gram + self._ridge * np.eye(self._features)
        lower, _ = _linalg.inverse_cholesky(tf.constant(system))
        self._inverse = tf.matmul(lower, lower, transpose_a=True).numpy()
        self._w = self._inverse @ normal.right
        self._hw = self._inverse @ self._w
        self._residual = float(np.max(normal.residual(self._w, self._ridge)))

    def _solve(self) -> None:
        """Find `a` and `b` in another pass over the rows."""
        operator, y, z = self._system.operator, self._system.y, self._ridge
        self._a, self._b = np.empty_like(y), np.empty_like(y)
        for rows in self._chunks():
            j = operator.feature_rows(rows)
            self._a[rows] = (y[rows] - j @ self._w) / z
            self._b[rows] = (self._a[rows] - j @ self._hw) / z

    def _chunks(self) -> Iterator[slice]:
        return self._system.operator.chunks(chunk_rows(self._features))


def fits(operator: KernelOperator, most: int) -> bool:
    """Tell whether the primal form is exact and small."""
    features = operator.features
    return features is not None and features <= min(operator.rows, most)


def _check_memory(features: int, columns: int) -> None:
    needed = NormalEquations.memory(features, columns) + 3.0 * CHUNK_BYTES
    if needed > available():
        raise MemoryError(
            f'`method="primal"` takes {in_words(needed)} for {features} features, and '
            f'{in_words(available())} are free. Use `method="stochastic"`.'
        )
