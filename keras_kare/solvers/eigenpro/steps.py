"""Steps of `EigenPro`: a batch of rows, and the top of the spectrum with each batch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _linalg
from keras_kare.kernels.operator import KernelOperator

STEPS = 4
"""Most conjugate directions that one batch is worth."""

ENOUGH = 0.1
"""The residual of a batch need not fall below that share of what it was."""

NEGLIGIBLE = 1e-10
"""Eigenvalues below this share of the largest are rounding."""

Passes = Callable[[], Iterator[tuple[slice, Any]]]
"""Begins to read all rows in order: which they are, and their inputs."""


class Subspace:
    """The top eigenvectors of a subsample's kernel matrix, `K_SS ≈ V diag(e) Vᵀ`.

    Args:
        rows: Numbers of the rows `S`, `(m,)`, in increasing order.
        gram: `K_SS`, `(m, m)` float64.
        components: `q`.

    Attributes:
        vectors: `V`, `(m, q)`, orthonormal.
        values: `e`, `(q,)`.
        next: The largest eigenvalue of `K_SS/m` that is left out.
        left: The mean of the diagonal of what is left out.
        images: `E = J_Sᵀ V`, `(q, ...)` each, as `kernel.pull` returns them, where set.
    """

    def __init__(self, rows: np.ndarray, gram: np.ndarray, components: int):
        values, vectors = _linalg.eigh(0.5 * (gram + gram.T))
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        sound = int(np.count_nonzero(values > NEGLIGIBLE * values[0]))
        q = min(components, sound)
        self.rows = rows
        self.values, self.vectors = values[:q], np.ascontiguousarray(vectors[:, :q])
        others = values[q:] if q < len(values) else values[-1:]
        self.next = float(others[0]) / len(rows)
        self.left = float(np.sum(others)) / len(rows)
        self.images: list[tf.Tensor] = []

    def inside(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of these rows belong to `S`, and their rows of `V`."""
        at = np.searchsorted(self.rows, numbers)
        at[at == len(self.rows)] = 0
        found = np.flatnonzero(self.rows[at] == numbers)
        return found, self.vectors[at[found]]


@dataclass(frozen=True)
class Batch:
    """A batch of rows `B`, as its steps need it.

    Attributes:
        values: `K_BX α/n`, `(b, c)`.
        product: From `p`, `(b, c)`, with `d` the direction that `p` and the correction
            on `S` make: `(A d)_B`, and what `Iterate.move` needs of `d`, with targets
            on the first axes.
    """

    values: np.ndarray
    product: Callable[[np.ndarray], tuple[np.ndarray, list[Any]]]


class Iterate(abc.ABC):
    """`α`, and how one batch of rows improves it.

    With `A = K/n + λI`, the solution minimises `½ αᵀAα − yᵀα`. Each update takes, from
    the batch's coordinates and the subspace `P_S V`, the direction that conjugate
    gradients take within the batch, and its best length. Directions are A-orthogonal to
    the subspace, on which the residual is zero throughout:

        d = P_B p − P_S V z,   z = (e/n + λ)⁻¹ Vᵀ A_SB p.

    `λ` very small makes this EigenPro's correction, with the top eigenvalues taken out
    altogether. Nothing else is stored of past batches, `f = (1/n) Σ α_i k(·, x_i)` holds
    at all times, and the residual of every batch vanishes at the solution, so that no
    variance is left there.

    Args:
        operator: `K`.
        subspace: `V` and `e`.
        columns: `c`.
        ridge: `λ`.

    Attributes:
        dual: `α`, `(n, c)`.
        dtype: Type in which kernel values and products are formed.
    """

    def __init__(
        self, operator: KernelOperator, subspace: Subspace, columns: int, ridge: float
    ):
        self.operator, self.subspace, self.ridge = operator, subspace, ridge
        self.rows, self.dual = operator.rows, np.zeros((operator.rows, columns))
        self.dtype = "float32" if operator.narrow else "float64"
        self._inverse = 1.0 / (subspace.values / self.rows + ridge)

    def set_dtype(self, dtype: str) -> None:
        """Go on in another type."""
        self.dtype = dtype

    @abc.abstractmethod
    def batch(self, numbers: np.ndarray, x_rows: Any) -> Batch:
        """Return what an update needs of some rows."""

    @abc.abstractmethod
    def values(self, passes: Passes) -> np.ndarray:
        """Compute `K α/n` anew, `(n, c)` float64; rounding errors start at zero again.

        Args:
            passes: All rows.
        """

    def update(self, numbers: np.ndarray, x_rows: Any, y_rows: np.ndarray) -> np.ndarray:
        """Improve `α` by one batch.

        Args:
            numbers: Which rows they are, `(b,)`, each once.
            x_rows: Their inputs.
            y_rows: Their targets, `(b, c)`, scaled as the rows are.

        Returns:
            `|r_B|²` of each target before the update, `(c,)`.
        """
        batch = self.batch(numbers, x_rows)
        r = y_rows - batch.values - self.ridge * self.dual[numbers]
        before = np.sum(r**2, axis=0)
        total, p, squared = np.zeros_like(r), r.copy(), before
        moves: list[Any] = []
        for _ in range(STEPS):
            ap, parts = batch.product(p)
            step = _ratio(squared, np.sum(p * ap, axis=0))
            total += step * p
            scaled = [_times(step, part) for part in parts]
            moves = [a + b for a, b in zip(moves, scaled, strict=True)] if moves else scaled
            r -= step * ap
            now = np.sum(r**2, axis=0)
            if np.all(now <= ENOUGH**2 * before):
                break
            p, squared = r + _ratio(now, squared) * p, now
        self.dual[numbers] += total
        self.move(moves)
        return before

    def move(self, parts: list[Any]) -> None:
        """Take the correction on `S` that belongs to a direction of a batch."""
        self.dual[self.subspace.rows] -= self.subspace.vectors @ parts[0].T

    def correct(self, residual: np.ndarray) -> None:
        """Make the residual zero on the subspace.

        Args:
            residual: `r_S`, `(m, c)`.
        """
        z = self._inverse[:, None] * (self.subspace.vectors.T @ residual)
        self.dual[self.subspace.rows] += self.subspace.vectors @ z


class MatrixIterate(Iterate):
    """Steps by kernel values between a batch and all rows."""

    def batch(self, numbers: np.ndarray, x_rows: Any = None) -> Batch:
        n, subspace = self.rows, self.subspace
        columns = self.operator.columns(numbers, self.dtype)
        a = columns[numbers] / n
        a[np.diag_indices_from(a)] += self.ridge
        coupling = subspace.vectors.T @ columns[subspace.rows] / n
        found, vectors = subspace.inside(numbers)
        coupling[:, found] += self.ridge * vectors.T

        def product(p: np.ndarray) -> tuple[np.ndarray, list[Any]]:
            z = self._inverse[:, None] * (coupling @ p)
            return a @ p - coupling.T @ z, [z.T]

        return Batch(columns.T @ self.dual / n, product)

    def values(self, passes: Passes) -> np.ndarray:
        return self.operator.matmul(self.dual) / self.rows


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `a/b`; 0 where `b` is not positive, or no number."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0.0)


def _times(step: np.ndarray, part: Any) -> Any:
    """Multiply each target's part by its step."""
    shaped = np.reshape(step, (-1,) + (1,) * (len(part.shape) - 1))
    return part * (tf.constant(shaped, part.dtype) if tf.is_tensor(part) else shaped)
