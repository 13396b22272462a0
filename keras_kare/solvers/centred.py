"""Machines with a constant beside them: those of rows less their mean.

With a constant `b` that no ridge holds back, and `ρ = w½` (ones without weights), the
system is

    (K/n + λI) α + ρ b = y,    ρᵀα = 0.

Let `q = ρ/|ρ|` and `C = I − q qᵀ`. Then `α` solves `(C K C/n + λI) α = C y`, the system
without a constant for features and targets less their means, and `b` is what is left on
average: `|ρ| b = qᵀ(y − K α/n)`. So a solver needs to know nothing of constants. Of the
inverse of its system, `q` has the share `q qᵀ/λ`, which the constant takes: it is one
more degree of freedom, and what stands in for `A⁻¹` in leave-one-out errors and KARE is

    P = (C K C/n + λI)⁻¹ − q qᵀ/λ.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare.kernels.operator import KernelOperator


class CentredOperator(KernelOperator):
    """`C K C` with `C = I − q qᵀ`, for any operator `K`.

    Args:
        operator: `K`.
        root: `ρ`, `(n,)`.

    Attributes:
        plain: `K`.
        unit: `q`, `(n,)`.
    """

    def __init__(self, operator: KernelOperator, root: np.ndarray):
        self.plain, self.unit = operator, root / np.linalg.norm(root)
        self.rows, self.shape = operator.rows, operator.shape
        self.features, self.scale = operator.features, operator.scale

    @property
    def kernel(self) -> Any:
        """The kernel of `K`, whose values know of no mean."""
        return self.plain.kernel

    @property
    def x(self) -> Any:
        """The rows, `(n, ...)`."""
        return self.plain.x

    @property
    def narrow(self) -> bool:
        return self.plain.narrow

    @property
    def pair_flops(self) -> float:
        return self.plain.pair_flops

    def product_flops(self, vectors: int) -> float:
        return self.plain.product_flops(vectors)

    def scaled(self, scale: np.ndarray) -> KernelOperator:
        raise NotImplementedError("Scale the operator before its mean is taken out.")

    @functools.cached_property
    def product(self) -> np.ndarray:
        """`K q`, `(n,)`; those who have it already may say so."""
        return self.plain.matmul(self.unit[:, None])[:, 0]

    @functools.cached_property
    def flat_mean(self) -> np.ndarray:
        """`Jᵀq`, `(F,)`, in the order of `kernel.feature_rows`."""
        mean = self.plain.vjp(self.unit[:, None])
        return np.concatenate([np.ravel(part.numpy()) for part in mean])

    def matmul(self, v: np.ndarray, dtype: str = "float64") -> np.ndarray:
        return self.project(self.plain.matmul(self.project(v), dtype))

    def columns(self, indices: np.ndarray, dtype: str = "float64") -> np.ndarray:
        values = self.plain.columns(indices, dtype)
        return self._less_means(values, slice(None), indices)

    def block(self, rows: Any, columns: np.ndarray) -> np.ndarray:
        return self._less_means(self.plain.block(rows, columns), rows, columns)

    @functools.cached_property
    def diagonal(self) -> np.ndarray:
        q, t = self.unit, self.product
        return self.plain.diagonal - 2.0 * q * t + q**2 * float(q @ t)

    def dense(self) -> np.ndarray:
        gram = self.plain.dense()
        self.product = gram @ self.unit
        return self._less_means(gram, slice(None), slice(None))

    def vjp(self, v: Any) -> list[tf.Tensor]:
        return self.plain.vjp(self.project(np.asarray(v, "float64")))

    def jvp(self, w: list[tf.Tensor]) -> np.ndarray:
        return self.project(self.plain.jvp(w))

    def feature_rows(self, rows: slice) -> np.ndarray:
        return self.plain.feature_rows(rows) - np.outer(self.unit[rows], self.flat_mean)

    def rows_of(self, rows: Any) -> Any:
        return self.plain.rows_of(rows)

    def project(self, v: np.ndarray) -> np.ndarray:
        """Return `C v`, `(n, m)`."""
        return v - np.outer(self.unit, self.unit @ v)

    def _less_means(self, values: np.ndarray, rows: Any, columns: Any) -> np.ndarray:
        """Return `K_ij − q_i t_j − t_i q_j + (qᵀt) q_i q_j` of a block, for `t = K q`."""
        q, t = self.unit, self.product
        values = values - np.outer(q[rows], t[columns] - float(q @ t) * q[columns])
        values -= np.outer(t[rows], q[columns])
        return values
