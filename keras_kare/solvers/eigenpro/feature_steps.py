"""Steps of `EigenPro` by a feature map: no row but those of the batch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _linalg, _rows
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.centred import CentredOperator
from keras_kare.solvers.eigenpro.steps import Batch, Iterate, Passes, Subspace


@dataclass(frozen=True)
class Mean:
    """The mean of the features, which machines with a constant take out.

    Attributes:
        unit: `q`, `(n,)`; see `keras_kare.solvers.centred`.
        features: `Jᵀq`, `(1, ...)` each, as `kernel.pull` returns it.
    """

    unit: np.ndarray
    features: list[tf.Tensor]

    @classmethod
    def of(cls, operator: CentredOperator, passes: Passes) -> Mean:
        """Take the mean by one pass over the rows, and `K q` by another."""
        kernel, scale = operator.kernel, operator.scale
        scales = np.ones(operator.rows) if scale is None else scale
        v = (operator.unit * scales)[:, None]
        features = _rows.total(
            kernel.pull(kernel.held(x), tf.constant(v[rows])) for rows, x in passes()
        )
        product = np.empty(operator.rows)
        for rows, x in passes():
            product[rows] = kernel.push(kernel.held(x), features).numpy()[:, 0]
        operator.product = product * scales
        return cls(operator.unit, features)

    def less(self, w: list[tf.Tensor], numbers: Any, p: np.ndarray) -> list[tf.Tensor]:
        """Return `JᵀC p`, from `Jᵀp` of some rows alone."""
        share = self.unit[numbers] @ p
        pairs = zip(w, self.features, strict=True)
        shares = share[:, None]
        return [t - tf.tensordot(tf.cast(shares, t.dtype), _as(e, t), 1) for t, e in pairs]

    def less_values(
        self, values: np.ndarray, numbers: Any, w: list[tf.Tensor]
    ) -> np.ndarray:
        """Return `C J w` of some rows, from `J w`."""
        pairs = zip(w, self.features, strict=True)
        parts = [tf.matmul(_flat(t), _flat(_as(e, t)), transpose_b=True) for t, e in pairs]
        return values - np.outer(self.unit[numbers], tf.add_n(parts).numpy())


class FeatureIterate(Iterate):
    """Steps by the feature map: `w = Jᵀα/n` is kept up to date.

    Args:
        operator: `K`, of a kernel with a feature map.
        subspace: With its images.
        columns: `c`.
        ridge: `λ`.
        held: What `kernel.held` gives of all rows, where that is kept.
        mean: Of the features, for a machine with a constant.
    """

    def __init__(
        self,
        operator: KernelOperator,
        subspace: Subspace,
        columns: int,
        ridge: float,
        held: Any = None,
        mean: Mean | None = None,
    ):
        super().__init__(operator, subspace, columns, ridge)
        self.kernel, self.scale = operator.kernel, operator.scale
        self._held, self._mean = held, mean
        self._w = [tf.zeros((columns, *e.shape[1:]), self.dtype) for e in subspace.images]
        self.set_dtype(self.dtype)

    def set_dtype(self, dtype: str) -> None:
        super().set_dtype(dtype)
        self._images = [tf.cast(_flat(e), dtype) for e in self.subspace.images]
        self._w = [tf.cast(w, dtype) for w in self._w]

    def batch(self, numbers: np.ndarray, x_rows: Any) -> Batch:
        held = self._held_of(numbers, x_rows)
        found, vectors = self.subspace.inside(numbers)
        if not self._w:  # without a subspace, nothing has told their shapes
            zero = tf.zeros((len(numbers), self.dual.shape[1]), self.dtype)
            self._w = self.kernel.pull(held, zero)

        def product(p: np.ndarray) -> tuple[np.ndarray, list[Any]]:
            w = self._pull(held, numbers, p, self.dtype)
            coupling = self._on_images(w) + self.ridge * (p[found].T @ vectors)
            z = self._inverse * coupling
            w = [t / self.rows for t in self._less_images(w, z)]
            ap = self._push(held, numbers, w) + self.ridge * p
            ap[found] -= self.ridge * (vectors @ z.T)
            return ap, [z, *w]

        return Batch(self._push(held, numbers, self._w), product)

    def move(self, parts: list[Any]) -> None:
        super().move(parts)
        self._w = [a + b for a, b in zip(self._w, parts[1:], strict=True)]

    def correct(self, residual: np.ndarray) -> None:
        before = self.dual[self.subspace.rows]
        super().correct(residual)
        z = self.subspace.vectors.T @ (self.dual[self.subspace.rows] - before)
        if self._w:
            self._w = self._less_images(self._w, -z.T / self.rows)

    def values(self, passes: Passes) -> np.ndarray:
        if not np.any(self.dual):
            self._w = [tf.zeros_like(t) for t in self._w]
            return np.zeros_like(self.dual)
        w: list[tf.Tensor] = []
        for rows, x_rows in passes():
            held = self._held_of(rows, x_rows)
            part = self._pull(held, rows, self.dual[rows] / self.rows, "float64")
            w = [a + b for a, b in zip(w, part, strict=True)] if w else part
        values = np.empty_like(self.dual)
        for rows, x_rows in passes():
            values[rows] = self._push(self._held_of(rows, x_rows), rows, w)
        self._w = [tf.cast(t, self.dtype) for t in w]
        return values

    def _pull(self, held: Any, numbers: Any, p: np.ndarray, dtype: str) -> list[tf.Tensor]:
        """Return `Jᵀp` of some rows."""
        v = p if self.scale is None else self.scale[numbers, None] * p
        w: list[tf.Tensor] = self.kernel.pull(held, tf.constant(v, dtype))
        return w if self._mean is None else self._mean.less(w, numbers, p)

    def _push(self, held: Any, numbers: Any, w: list[tf.Tensor]) -> np.ndarray:
        """Return `J w` of some rows, float64."""
        values = np.asarray(self.kernel.push(held, w).numpy(), "float64")
        if self.scale is not None:
            values = self.scale[numbers, None] * values
        return values if self._mean is None else self._mean.less_values(values, numbers, w)

    def _held_of(self, numbers: np.ndarray | slice, x_rows: Any) -> Any:
        if self._held is None:
            return self.kernel.held(x_rows)
        return _rows.take(self._held, numbers)

    def _on_images(self, w: list[tf.Tensor]) -> np.ndarray:
        """Return `wᵀE/n`, `(c, q)`."""
        if not self._images:
            return np.zeros((self.dual.shape[1], 0))
        pairs = zip(w, self._images, strict=True)
        total = tf.add_n([tf.matmul(_flat(t), e, transpose_b=True) for t, e in pairs])
        return np.asarray(total.numpy(), "float64") / self.rows

    def _less_images(self, w: list[tf.Tensor], z: np.ndarray) -> list[tf.Tensor]:
        """Return `w − E z` for `z` of shape `(c, q)`."""
        if not self._images:
            return w
        c = tf.constant(z, self.dtype)
        pairs = zip(w, self._images, strict=True)
        return [t - tf.reshape(tf.matmul(c, e), tf.shape(t)) for t, e in pairs]


def add_images(
    subspace: Subspace, operator: KernelOperator, mean: Mean | None = None
) -> None:
    """Form `E`, and turn `V` so that `EᵀE` is diagonal in the arithmetic of `E`.

    Args:
        subspace: `V`.
        operator: `K`, of a kernel with a feature map.
        mean: Of the features, for a machine with a constant.
    """
    q, v = len(subspace.values), subspace.vectors
    if not q:
        return
    if operator.scale is not None:
        v = v * operator.scale[subspace.rows, None]
    kernel, x = operator.kernel, operator.rows_of(subspace.rows)
    step, _ = kernel.chunk(x, q)
    total = _rows.total(
        kernel.pull(kernel.held(_rows.take(x, part)), tf.constant(v[part]))
        for part in _rows.cuts(len(v), step)
    )
    if mean is not None:
        total = mean.less(total, subspace.rows, subspace.vectors)
    flat = [_flat(t) for t in total]
    inner = tf.add_n([tf.matmul(e, e, transpose_b=True) for e in flat]).numpy()
    values, turn = _linalg.eigh(inner)
    subspace.values, subspace.vectors = np.maximum(values, 0.0), subspace.vectors @ turn
    subspace.images = [tf.tensordot(turn.T, t, 1) for t in total]


def _as(t: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(t, like.dtype)


def _flat(t: tf.Tensor) -> tf.Tensor:
    """Make all axes but the first one."""
    return tf.reshape(t, (t.shape[0], -1))
