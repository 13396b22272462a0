"""A kernel's matrix as a linear map: `K v` without `K`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation

CHUNK = 4096
"""Most rows at a time."""

TILE_BYTES = 2**27
"""Most bytes of kernel values at a time, whatever the limit: more are no faster."""

ONE_VALUE = (
    "Systems and heads need a kernel with one value a pair of rows, and "
    '`outputs="full"` has a block. Use `outputs="sum"` or `outputs="trace"`.'
)


class KernelOperator:
    """`K`, `(n, n)`, of some rows, by its products; any kernel, in tiles.

    Made by `kernel.operator(x)`. A tile is a few rows of `K`, formed and dropped.
    Kernels with a finite feature map give a `FeatureOperator` instead.

    Args:
        kernel: The kernel.
        x: Rows, `(n, ...)`.
        scale: `s`, `(n,)`: the operator is that of `diag(s) K diag(s)`. Defaults to ones.

    Attributes:
        rows: `n`.
        shape: `(n, n)`.
        features: How many numbers the feature map of a row has; `None` without one.

    Example:

    ```python
    operator = kk.kernels.NTK(network).operator(x)
    operator @ v                  # K v, (n, m), and K is never formed
    operator.jvp(operator.vjp(v)) # the same, for a kernel with features
    ```
    """

    features: int | None = None

    @property
    def narrow(self) -> bool:
        """Whether the kernel's own type is float32, in which products are faster."""
        return any(v.dtype == "float32" for v in self.kernel.trainable_variables)

    @property
    def pair_flops(self) -> float:
        """About how many floating-point operations a kernel value takes."""
        return self.kernel.pair_flops(self.x)

    def product_flops(self, vectors: int) -> float:
        """Return about how many operations a product with so many vectors takes."""
        return float(self.rows) ** 2 * (self.pair_flops + 2.0 * vectors)

    def __init__(self, kernel: keras.layers.Layer, x: Any, scale: np.ndarray | None = None):
        self.kernel = kernel
        self.x = keras.tree.map_structure(tf.convert_to_tensor, x)
        self.rows = _rows.count(self.x)
        self.shape = (self.rows, self.rows)
        self.scale = None if scale is None else np.asarray(scale, "float64")

    def scaled(self, scale: np.ndarray) -> KernelOperator:
        """Return the operator of `diag(scale) K diag(scale)`."""
        before = 1.0 if self.scale is None else self.scale
        return type(self)(self.kernel, self.x, np.asarray(scale, "float64") * before)

    def __matmul__(self, v: Any) -> np.ndarray:
        """Return `K v` for `v` of shape `(n,)` or `(n, m)`; float64."""
        v = self._vectors(v)
        return self.matmul(v[:, None])[:, 0] if v.ndim == 1 else self.matmul(v)

    def matmul(self, v: np.ndarray, dtype: str = "float64") -> np.ndarray:
        """Return `K v` for `m` vectors at once, `(n, m)` float64.

        Args:
            v: `(n, m)`.
            dtype: Type in which kernel values and sums are formed. Defaults to
                `"float64"`; `"float32"` is about twice as fast.
        """
        v = self._in(v).astype(dtype)
        parts = [
            self.kernel.cross(self.rows_of(rows), self.x, dtype=dtype).numpy() @ v
            for rows in self.chunks(self._tile())
        ]
        return self._out(np.concatenate(parts))

    def columns(self, indices: np.ndarray, dtype: str = "float64") -> np.ndarray:
        """Return some columns of `K`, `(n, k)` float64."""
        others = self.rows_of(np.asarray(indices))
        k, values = len(indices), None
        step = max(64, min(CHUNK, TILE_BYTES // (8 * max(k, 1))))
        for rows in self.chunks(step):
            part = self.kernel.cross(self.rows_of(rows), others, dtype=dtype).numpy()
            values = np.empty((self.rows, k)) if values is None else values
            values[rows] = part
        assert values is not None
        if self.scale is not None:
            values *= self.scale[:, None] * self.scale[indices]
        return values

    def block(self, rows: Any, columns: np.ndarray) -> np.ndarray:
        """Return entries of `K`: for a slice or numbers of rows, and numbers of columns."""
        values = self.kernel.cross(
            self.rows_of(rows), self.rows_of(columns), dtype="float64"
        ).numpy()
        if self.scale is not None:
            values = values * self.scale[rows, None] * self.scale[columns]
        return values

    @functools.cached_property
    def diagonal(self) -> np.ndarray:
        """The diagonal of `K`, `(n,)` float64."""
        parts = [
            self.kernel.diag(self.rows_of(rows), dtype="float64").numpy()
            for rows in self.chunks(CHUNK)
        ]
        values = np.concatenate(parts)
        if values.ndim != 1:
            raise ValueError(ONE_VALUE)
        return values if self.scale is None else values * self.scale**2

    @property
    def trace(self) -> float:
        """`tr(K)`."""
        return float(np.sum(self.diagonal))

    def dense(self) -> np.ndarray:
        """Return `K` itself, `(n, n)` float64."""
        gram = self.kernel.gram(self.x, dtype="float64").numpy()
        if gram.ndim != 2:
            raise ValueError(ONE_VALUE)
        if self.scale is not None:
            gram = gram * self.scale * self.scale[:, None]
        return gram

    def vjp(self, v: Any) -> list[tf.Tensor]:
        """Return `Jᵀ v` for `v`, `(n, m)`: one array a variable, as `kernel.vjp`; float64.

        Raises:
            NotImplementedError: For kernels without a finite feature map.
        """
        v = self._in(self._vectors(v))
        return _rows.total(
            self.kernel.vjp(self.rows_of(rows), v[rows], dtype="float64")
            for rows in self.chunks(CHUNK)
        )

    def jvp(self, w: list[tf.Tensor]) -> np.ndarray:
        """Return `J w`, `(n, m)` float64, for weights as `vjp` returns them.

        Raises:
            NotImplementedError: For kernels without a finite feature map.
        """
        parts = [
            self.kernel.jvp(self.rows_of(rows), w).numpy() for rows in self.chunks(CHUNK)
        ]
        return self._out(np.concatenate(parts))

    def feature_rows(self, rows: slice) -> np.ndarray:
        """Return `J` of a few rows, written out: `(k, features)` float64."""
        values = self.kernel.feature_rows(self.rows_of(rows), dtype="float64").numpy()
        return values if self.scale is None else values * self.scale[rows, None]

    def rows_of(self, rows: Any) -> Any:
        """Return some of the inputs: those of a slice, or of row numbers."""
        return _rows.take(self.x, rows)

    def chunks(self, step: int) -> Iterator[slice]:
        """Cut all rows into slices of at most `step`."""
        return _rows.cuts(self.rows, step)

    def _tile(self) -> int:
        return max(16, min(CHUNK, TILE_BYTES // (8 * self.rows)))

    def _vectors(self, v: Any) -> np.ndarray:
        v = np.asarray(v)
        if v.ndim not in (1, 2) or len(v) != self.rows or v.dtype.kind not in "fiu":
            raise ValueError(
                f"`v` must be numbers of shape ({self.rows},) or ({self.rows}, m). "
                f"Received: v of shape {v.shape} and type {v.dtype}"
            )
        _validation.check_finite("v", v)
        return v

    def _in(self, v: np.ndarray) -> np.ndarray:
        return v if self.scale is None else v * self.scale[:, None]

    def _out(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, "float64")
        return values if self.scale is None else values * self.scale[:, None]


class FeatureOperator(KernelOperator):
    """`K = J Jᵀ` of a kernel with a finite feature map, as `J (Jᵀ v)`.

    A product takes two passes over the rows, a chunk at a time; what the network's
    passes give (`kernel.held`) is kept from product to product where it fits in a
    quarter of the memory limit, so that the network runs once.

    Args:
        kernel: The kernel.
        x: Rows, `(n, ...)`.
        scale: As in `KernelOperator`.
    """

    def __init__(self, kernel: keras.layers.Layer, x: Any, scale: np.ndarray | None = None):
        super().__init__(kernel, x, scale)
        self.features = kernel.feature_count(self.x)
        self._held: list[Any] | None = None
        self._step, self._holds = kernel.chunk(self.x, 1)

    def matmul(self, v: np.ndarray, dtype: str = "float64") -> np.ndarray:
        v = self._in(v)
        step, _ = self.kernel.chunk(self.x, v.shape[1])
        if step < self._step:  # many vectors: fewer rows at a time
            self._step, self._held = step, None
        w: list[tf.Tensor] | None = None
        for rows, held in self._passes():
            part = self.kernel.pull(held, tf.constant(v[rows], dtype))
            w = part if w is None else [a + b for a, b in zip(w, part, strict=True)]
        assert w is not None
        parts = [self.kernel.push(held, w).numpy() for _, held in self._passes()]
        return self._out(np.concatenate(parts))

    def product_flops(self, vectors: int) -> float:
        features = float(self.features or 0)
        passes = 0.0 if self._holds else 12.0 * features
        # Fewer than a handful of vectors take as long as that.
        return self.rows * (passes + 4.0 * features * max(vectors, 4))

    def release(self) -> None:
        """Forget what was kept."""
        self._held = None

    def _passes(self) -> Iterator[tuple[slice, Any]]:
        """Yield each chunk of rows and what its passes give."""
        if self._held is not None:
            yield from zip(self.chunks(self._step), self._held, strict=True)
            return
        kept: list[Any] = []
        for rows in self.chunks(self._step):
            held = self.kernel.held(self.rows_of(rows))
            if self._holds:
                kept.append(held)
            yield rows, held
        if self._holds:
            self._held = kept


class DenseOperator(KernelOperator):
    """A kernel matrix that is there already.

    Args:
        gram: `K`, `(n, n)`, symmetric positive semi-definite.

    Raises:
        ValueError: If it is not square, or holds NaN or Inf.
    """

    def __init__(self, gram: Any):
        gram = np.asarray(gram, "float64")
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
            raise ValueError(
                f"`gram` must be a square matrix. Received: gram of shape {gram.shape}"
            )
        _validation.check_finite("gram", gram)
        self.gram = gram
        self.rows, self.shape, self.scale = len(gram), gram.shape, None

    @property
    def narrow(self) -> bool:
        return False

    @property
    def pair_flops(self) -> float:
        return 0.0

    def scaled(self, scale: np.ndarray) -> KernelOperator:
        return DenseOperator(self.gram * scale * np.asarray(scale)[:, None])

    def matmul(self, v: np.ndarray, dtype: str = "float64") -> np.ndarray:
        return np.asarray(self.gram @ v, "float64")

    def columns(self, indices: np.ndarray, dtype: str = "float64") -> np.ndarray:
        return self.gram[:, indices]

    def block(self, rows: Any, columns: np.ndarray) -> np.ndarray:
        return self.gram[rows][:, columns]

    @functools.cached_property
    def diagonal(self) -> np.ndarray:
        return np.diag(self.gram).copy()

    def dense(self) -> np.ndarray:
        return self.gram

    def vjp(self, v: Any) -> list[tf.Tensor]:
        raise NotImplementedError("A matrix alone has no feature map.")

    def jvp(self, w: list[tf.Tensor]) -> np.ndarray:
        raise NotImplementedError("A matrix alone has no feature map.")
