"""Per-example features of a group of variables, and the products that a kernel needs.

Every row `i` and output `k` of a network has a gradient with respect to a group
of variables, `J_k(x_i)`. A *factor* holds these gradients in whatever form its
layer makes cheap, and answers the verbs that kernels are built from. The number
of outputs is `C` (one for the NTK of the summed outputs), rows are `n`, right-hand
sides are `m`.
"""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf


class Factor(abc.ABC):
    """Per-example gradients with respect to one group of variables."""

    @abc.abstractmethod
    def gram(self) -> tf.Tensor:
        """`sum_k J_k J_kᵀ`, `(n, n)`."""

    @abc.abstractmethod
    def cross(self, other: Factor) -> tf.Tensor:
        """`sum_k J_k J'_kᵀ` against a factor of the same group, `(n, n')`."""

    @abc.abstractmethod
    def blocks(self, other: Factor) -> tf.Tensor:
        """`J_k J'_lᵀ` for all pairs of outputs, `(n, n', C, C)`."""

    @abc.abstractmethod
    def diag(self) -> tf.Tensor:
        """`sum_k |J_k(x_i)|²`, `(n,)`."""

    @abc.abstractmethod
    def diag_blocks(self) -> tf.Tensor:
        """`J_k(x_i) J_l(x_i)ᵀ`, `(n, C, C)`."""

    @abc.abstractmethod
    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        """`sum_i v_ij J_k(x_i)` for `v` of shape `(n, m)`: `(m, C, ...)` a variable."""

    @abc.abstractmethod
    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        """`sum_k J_k(x_i) w_jk` for weights as `vjp` returns them, `(n, m)`."""


class FullFactor(Factor):
    """Gradients written out: `j` of shape `(C, n, s)`, for groups of few variables.

    Biases, scales, and whatever falls back to the plain Jacobian.
    """

    def __init__(self, j: tf.Tensor):
        self.j = j

    def _rows(self) -> tf.Tensor:
        """`(n, C s)`: outputs side by side."""
        shape = tf.shape(self.j)
        return tf.reshape(tf.transpose(self.j, (1, 0, 2)), (shape[1], shape[0] * shape[2]))

    def gram(self) -> tf.Tensor:
        rows = self._rows()
        return tf.matmul(rows, rows, transpose_b=True)

    def cross(self, other: Factor) -> tf.Tensor:
        assert isinstance(other, FullFactor)
        return tf.matmul(self._rows(), other._rows(), transpose_b=True)

    def blocks(self, other: Factor) -> tf.Tensor:
        assert isinstance(other, FullFactor)
        return tf.einsum("kis,ljs->ijkl", self.j, other.j)

    def diag(self) -> tf.Tensor:
        return tf.reduce_sum(tf.square(self.j), axis=(0, 2))

    def diag_blocks(self) -> tf.Tensor:
        return tf.einsum("kis,lis->ikl", self.j, self.j)

    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        return [tf.einsum("kis,ij->jks", self.j, v)]

    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        return tf.einsum("kis,jks->ij", self.j, w[0])


class OuterFactor(Factor):
    """Gradients that are sums of outer products, `J_k(x_i) = sum_t a_it ⊗ b_kit`.

    This is every layer that computes `h = a W (+ bias)` at `T` positions: `a` are
    its inputs, `(n, T, p)`, and `b` the gradients of the outputs with respect to
    `h`, `(C, n, T, q)`. With `bias=True` the group is (kernel, bias), as if every
    `a` ended in a one.

    At one position, `K = (A Aᵀ + 1) ∘ (sum_k B_k B_kᵀ)`, and no `n x P` array
    exists. At several, either the per-example products are formed, or positions
    are contracted first, whichever takes fewer operations.

    Reference: Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent
    kernel", arXiv:2206.08720.
    """

    def __init__(self, a: tf.Tensor, b: tf.Tensor, bias: bool):
        self.a, self.b, self.bias = a, b, bias

    def gram(self) -> tf.Tensor:
        if self._single():
            return _hadamard_gram(self.a[:, 0], self._outputs(), self.bias)
        if self._products_are_cheaper():
            return self.full().gram()
        return self._contract_positions(self)

    def cross(self, other: Factor) -> tf.Tensor:
        assert isinstance(other, OuterFactor)
        if self._single() and other._single():
            inputs = tf.matmul(self.a[:, 0], other.a[:, 0], transpose_b=True)
            outputs = tf.matmul(self._outputs(), other._outputs(), transpose_b=True)
            return (inputs + 1.0 if self.bias else inputs) * outputs
        if self._products_are_cheaper():
            return self.full().cross(other.full())
        return self._contract_positions(other)

    def blocks(self, other: Factor) -> tf.Tensor:
        assert isinstance(other, OuterFactor)
        if not (self._single() and other._single()):
            return self.full().blocks(other.full())
        inputs = tf.matmul(self.a[:, 0], other.a[:, 0], transpose_b=True)
        inputs = inputs + 1.0 if self.bias else inputs
        outputs = tf.einsum("kiq,ljq->ijkl", self.b[:, :, 0], other.b[:, :, 0])
        return inputs[:, :, None, None] * outputs

    def diag(self) -> tf.Tensor:
        return tf.linalg.trace(self.diag_blocks())

    def diag_blocks(self) -> tf.Tensor:
        a = tf.einsum("itp,isp->its", self.a, self.a)
        b = tf.einsum("kitq,lisq->klits", self.b, self.b)
        return tf.einsum("its,klits->ikl", a + 1.0 if self.bias else a, b)

    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        kernel = tf.einsum("itp,kitq,ij->jkpq", self.a, self.b, v, optimize="optimal")
        if not self.bias:
            return [kernel]
        return [kernel, tf.einsum("kitq,ij->jkq", self.b, v)]

    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        h = tf.einsum("itp,jkpq->jkitq", self.a, w[0])
        if self.bias:
            h += w[1][:, :, None, None, :]
        return tf.einsum("jkitq,kitq->ij", h, self.b)

    def full(self) -> FullFactor:
        """The same gradients written out."""
        a = self.a
        if self.bias:
            a = tf.concat([a, tf.ones_like(a[:, :, :1])], axis=2)
        j = tf.einsum("itp,kitq->kipq", a, self.b)
        shape = tf.shape(j)
        return FullFactor(tf.reshape(j, (shape[0], shape[1], shape[2] * shape[3])))

    def _single(self) -> bool:
        return self.a.shape[1] == 1

    def _outputs(self) -> tf.Tensor:
        """`(n, C q)` at one position: the sum over outputs is one product."""
        b = self.b[:, :, 0]
        if b.shape[0] == 1:
            return b[0]
        shape = tf.shape(b)
        return tf.reshape(tf.transpose(b, (1, 0, 2)), (shape[1], shape[0] * shape[2]))

    def _products_are_cheaper(self) -> bool:
        """Multiply-adds a pair of rows: `C p q` against `T² (p + C q)`."""
        positions = self.a.shape[1]
        if positions is None:
            return True
        outputs, p, q = self.b.shape[0], self.a.shape[2], self.b.shape[3]
        return bool(outputs * p * q <= positions**2 * (p + outputs * q))

    def _contract_positions(self, other: OuterFactor) -> tf.Tensor:
        inputs = tf.einsum("itp,jsp->itjs", self.a, other.a)
        inputs = inputs + 1.0 if self.bias else inputs
        outputs = tf.einsum("kitq,kjsq->itjs", self.b, other.b)
        return tf.reduce_sum(inputs * outputs, axis=(1, 3))


def _hadamard_gram(a: tf.Tensor, b: tf.Tensor, bias: bool) -> tf.Tensor:
    """`(A Aᵀ + 1) ∘ (B Bᵀ)` with one product a factor in its gradient.

    For an upstream `G`: `∂A = ((G + Gᵀ) ∘ B Bᵀ) A`, `∂B = ((G + Gᵀ) ∘ (A Aᵀ + 1)) B`.
    Differentiating the two products as TensorFlow does would take two a factor.
    """

    @tf.custom_gradient
    def product(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Any]:
        inputs = tf.matmul(a, a, transpose_b=True)
        inputs = inputs + 1.0 if bias else inputs
        outputs = tf.matmul(b, b, transpose_b=True)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            both = upstream + tf.transpose(upstream)
            return tf.matmul(both * outputs, a), tf.matmul(both * inputs, b)

        return inputs * outputs, gradient

    return product(a, b)
