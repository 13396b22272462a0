"""Gradients written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_kare.kernels.factors.factor import Cost, Factor, length


class FullFactor(Factor):
    """Gradients written out, for groups of few variables.

    Biases, scales, products of few positions, and whatever falls back to the plain
    Jacobian.

    Args:
        j: `(n, C, ...)`: for row and output, the gradient by one variable; the
            trailing axes hold the variable's entries in the variable's order.
    """

    def __init__(self, j: tf.Tensor):
        size = j.shape[2:].num_elements()
        self.j = j if j.shape.rank == 3 else tf.reshape(j, (-1, j.shape[1], size))

    def rows(self) -> tf.Tensor:
        """Return the gradients with outputs side by side, `(n, C s)`."""
        return tf.reshape(self.j, (-1, self.j.shape[1] * self.j.shape[2]))

    def gram(self) -> tf.Tensor:
        return symmetric_product(self.rows())

    def cross(self, other: FullFactor) -> tf.Tensor:
        return tf.matmul(self.rows(), other.rows(), transpose_b=True)

    def blocks(self, other: FullFactor) -> tf.Tensor:
        count, size = self.j.shape[1:]
        left, right = (tf.reshape(f.j, (-1, size)) for f in (self, other))
        both = tf.matmul(left, right, transpose_b=True)
        n1, n2 = length(self.j), length(other.j)
        return tf.transpose(tf.reshape(both, (n1, count, n2, count)), (0, 2, 1, 3))

    def diag(self) -> tf.Tensor:
        return tf.reduce_sum(tf.square(self.j), axis=(1, 2))

    def diag_blocks(self) -> tf.Tensor:
        return tf.matmul(self.j, self.j, transpose_b=True)

    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        return [tf.einsum("iks,ij->jks", tf.cast(self.j, v.dtype), v)]

    def written(self, dtype: tf.DType) -> list[tf.Tensor]:
        return [tf.cast(self.j, dtype)]

    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        size = self.j.shape[1] * self.j.shape[2]
        rows = tf.cast(self.rows(), w[0].dtype)
        return tf.matmul(rows, tf.reshape(w[0], (-1, size)), transpose_b=True)

    def join(self, others: Sequence[FullFactor]) -> FullFactor:
        return FullFactor(tf.add_n([self.j, *(other.j for other in others)]))

    def cost(self, outputs: int | None = None) -> Cost:
        size = float((outputs or self.j.shape[1]) * self.j.shape[2])
        return Cost("products", 0.0, 2.0 * size, size, 1.0)

    def parts(self) -> list[tf.Tensor]:
        return [self.j]

    def with_parts(self, parts: Sequence[tf.Tensor]) -> FullFactor:
        return FullFactor(parts[0])


def symmetric_product(rows: tf.Tensor) -> tf.Tensor:
    """Return `R Rᵀ` with one product in its gradient, `(G + Gᵀ) R`; TensorFlow has two."""

    @tf.custom_gradient
    def product(r: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.matmul(upstream + tf.transpose(upstream), r)

        return tf.matmul(r, r, transpose_b=True), gradient

    return product(rows)
