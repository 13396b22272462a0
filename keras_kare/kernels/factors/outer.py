"""Gradients that are sums of outer products over positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_kare.kernels.factors.factor import Cost, Factor, length
from keras_kare.kernels.factors.full import FullFactor
from keras_kare.kernels.factors.layout import Layout
from keras_kare.kernels.factors.one_position import hadamard_gram, only, pulled, pushed

PASS = 64.0
"""Multiply-adds of a matrix product that take as long as one pass over its result."""


class OuterFactor(Factor):
    """Gradients that are sums of outer products, `J_k(x_i) = sum_t a_it ⊗ b_itk`.

    This is every layer that computes `h = a W (+ bias)` at `T` positions, in `G`
    independent groups of features (one for most layers).

    At one position, `K = (A Aᵀ + 1) ∘ (sum_k B_k B_kᵀ)`, and no `n x P` array
    exists. In general, either the outer products are formed and multiplied, or
    positions meet first, whichever takes fewer operations.

    Args:
        a: `(n, G, T, p)`: what the layer's kernel meets.
        b: `(n, G, T, C, q)`: gradients of the `C` outputs by `h`.
        bias: Whether the group is (kernel, bias), as if every `a` ended in a one.
        layout: Where `(g, p, q)` lies in the kernel. Defaults to that order.

    Reference: Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent
    kernel", arXiv:2206.08720.
    """

    def __init__(
        self, a: tf.Tensor, b: tf.Tensor, bias: bool = False, layout: Layout | None = None
    ):
        self._a, self.b, self.bias, self.layout = a, b, bias, layout
        self.arrays = 2 if bias else 1

    @property
    def a(self) -> tf.Tensor:
        """The inputs that the layer's kernel meets, `(n, G, T, p)`."""
        return self._a

    @property
    def _sizes(self) -> tuple[int, Any, int]:
        """The sizes `G`, `T`, where it is known, and `p`."""
        groups, steps, p = self._a.shape[1:]
        return groups, steps, p

    def gram(self) -> tf.Tensor:
        if self._forms():
            return self.formed().gram()
        if self._one_position():
            return hadamard_gram(self._inputs()[0], self._outputs()[0], self.bias)
        return self._meet(self)

    def cross(self, other: OuterFactor) -> tf.Tensor:
        return self.formed().cross(other.formed()) if self._forms() else self._meet(other)

    def blocks(self, other: OuterFactor) -> tf.Tensor:
        if self._forms(blocks=True):
            return self.formed().blocks(other.formed())
        inputs, outputs = self._pairs(other, self._each(), other._each())
        (groups, t1, _), t2, count = self._sizes, other._sizes[1], self.b.shape[3]
        n1, n2 = length(self.b), length(other.b)
        inputs = tf.reshape(inputs, (groups, n1, t1, 1, n2, t2, 1))
        outputs = tf.reshape(outputs, (groups, n1, t1, count, n2, t2, count))
        return tf.transpose(tf.reduce_sum(inputs * outputs, (0, 2, 5)), (0, 2, 1, 3))

    def diag(self) -> tf.Tensor:
        return tf.linalg.trace(self.diag_blocks())

    def diag_blocks(self) -> tf.Tensor:
        if self._forms():
            return self.formed().diag_blocks()
        a = self.a
        a = tf.einsum("igtp,igsp->igts", a, a)
        b = tf.einsum("igtkq,igslq->igtskl", self.b, self.b)
        return tf.einsum("igts,igtskl->ikl", a + 1.0 if self.bias else a, b)

    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        if self._forms():
            return self.arranged(self.formed().vjp(v))
        a, b = tf.cast(self.a, v.dtype), tf.cast(self.b, v.dtype)
        if self._one_position():
            kernel, bias = pulled(only(a), only(b), v)
        else:
            kernel = tf.einsum("igtp,igtkq,ij->jkgpq", a, b, v, optimize="optimal")
            bias = tf.einsum("igtkq,ij->jkgq", b, v) if self.bias else None
        kernel = kernel if self.layout is None else self.layout.to_variable(kernel)
        return [kernel, bias] if self.bias else [kernel]

    def written(self, dtype: tf.DType) -> list[tf.Tensor]:
        if self._forms():
            return self._in_order(tf.cast(self.formed().j, dtype))
        cast = OuterFactor(
            tf.cast(self.a, dtype), tf.cast(self.b, dtype), self.bias, self.layout
        )
        return self._in_order(cast.formed().j)

    def _in_order(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """Bring `(m, C, G (q p + q))`, as products are formed, to the variables' order."""
        (groups, _, p), q = self._sizes, self.b.shape[4]
        lead = length(flat), length(flat, 1)
        flat = tf.reshape(flat, (*lead, groups, q * p + q * self.bias))
        kernel = tf.reshape(flat[..., : q * p], (*lead, groups, q, p))
        kernel = tf.transpose(kernel, (0, 1, 2, 4, 3))
        kernel = kernel if self.layout is None else self.layout.to_variable(kernel)
        return [kernel, flat[..., q * p :]] if self.bias else [kernel]

    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        (groups, _, p), q = self._sizes, self.b.shape[4]
        kernel = w[0] if self.layout is None else self.layout.from_variable(w[0])
        lead = length(w[0]), length(w[0], 1)
        kernel = tf.reshape(kernel, (*lead, groups, p, q))
        if self._forms():
            flat = tf.transpose(kernel, (0, 1, 2, 4, 3))
            flat = tf.reshape(flat, (*lead, groups, q * p))
            if self.bias:
                shift = tf.reshape(w[1], (*lead, groups, q))
                flat = tf.concat([flat, shift], axis=3)
            return self.formed().jvp([flat])
        a, b = (tf.cast(t, kernel.dtype) for t in (self.a, self.b))
        if self._one_position():
            return pushed(only(a), only(b), kernel, w[1] if self.bias else None)
        h = tf.einsum("igtp,jkgpq->jkigtq", a, kernel)
        if self.bias:
            bias = tf.reshape(w[1], (*lead, 1, groups, 1, q))
            h += bias
        return tf.einsum("jkigtq,igtkq->ij", h, b)

    def join(self, others: Sequence[OuterFactor]) -> OuterFactor:
        a = tf.concat([self.a, *(other.a for other in others)], axis=2)
        b = tf.concat([self.b, *(other.b for other in others)], axis=2)
        return OuterFactor(a, b, self.bias, self.layout)

    def formed(self) -> FullFactor:
        """Return the same gradients written out, bias last; not in the variable's order."""
        count, q = self.b.shape[3:]
        (groups, steps, p), rows = self._sizes, -1
        if steps is None:
            steps, rows = -1, length(self.b)
        b = tf.reshape(self.b, (rows, groups, steps, count * q))
        # The transposed product is the faster one on a CPU.
        j = tf.matmul(b, self.a, transpose_a=True)
        j = tf.reshape(j, (-1, groups, count, q * p))
        return self._written_out(j)

    def _written_out(self, j: tf.Tensor) -> FullFactor:
        """Add the bias to products `(n, G, C, q p)`."""
        groups, count, size = j.shape[1:]
        if self.bias:
            j = tf.concat([j, tf.reduce_sum(self.b, axis=2)], axis=3)
            size = j.shape[3]
        if groups > 1 and count > 1:
            j = tf.transpose(j, (0, 2, 1, 3))
        return FullFactor(tf.reshape(j, (-1, count, groups * size)))

    def condensed(self) -> Factor:
        return self.formed() if self._forms() else self

    def arranged(self, found: list[tf.Tensor]) -> list[tf.Tensor]:
        return self._in_order(found[0]) if self._forms() else found

    def cost(self, outputs: int | None = None) -> Cost:
        """Count by path; positions of an unknown number always form products."""
        (groups, steps, p), (count, q) = self._sizes, self.b.shape[3:]
        count = outputs or count
        if not self._forms(count):
            pairs = float(groups * steps**2)
            flops = pairs * 2.0 * (p + count * q + 1)
            row = float(groups * steps * (p + count * q))
            return Cost("positions", 0.0, flops, row, 3.0 * pairs + 1.0)
        size = float(groups * (p + int(self.bias)) * count * q)
        return Cost("products", 2.0 * (steps or 1) * size, 2.0 * size, size, 1.0)

    def parts(self) -> list[tf.Tensor]:
        return [self.a, self.b]

    def with_parts(self, parts: Sequence[tf.Tensor]) -> OuterFactor:
        return OuterFactor(parts[0], parts[1], self.bias, self.layout)

    def _forms(self, outputs: int | None = None, blocks: bool = False) -> bool:
        """Tell whether to write products out: multiply-adds a pair of rows, passes counted.

        `C p q` for one product of rows against `T² (p + C q)` and the passes over
        `T²` products of inputs and of outputs.
        """
        (groups, steps, p), (count, q) = self._sizes, self.b.shape[3:]
        if steps is None:
            return True
        count = outputs or count
        pairs = count**2 if blocks else 1
        products = groups * p * q * (pairs if blocks else count)
        met = p + q * (pairs if blocks else count) + PASS * (1 + pairs)
        return bool(products <= groups * steps**2 * met)

    def _one_position(self) -> bool:
        return self._sizes[:2] == (1, 1)

    def _inputs(self) -> tf.Tensor:
        """Return the inputs as matrices, `(G, n T, p)`."""
        groups, _, p = self._sizes
        a = self.a if groups == 1 else tf.transpose(self.a, (1, 0, 2, 3))
        return tf.reshape(a, (groups, -1, p))

    def _outputs(self) -> tf.Tensor:
        """Return the gradients as matrices, `(G, n T, C q)`: outputs are summed over."""
        groups, (count, q) = self.b.shape[1], self.b.shape[3:]
        b = self.b if groups == 1 else tf.transpose(self.b, (1, 0, 2, 3, 4))
        return tf.reshape(b, (groups, -1, count * q))

    def _each(self) -> tf.Tensor:
        """Return the gradients with every output for itself, `(G, n T C, q)`."""
        groups, (count, q) = self.b.shape[1], self.b.shape[3:]
        return (
            tf.reshape(self._outputs(), (groups, -1, q)) if count > 1 else self._outputs()
        )

    def _pairs(
        self, other: OuterFactor, b1: tf.Tensor, b2: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        a = self._inputs()
        inputs = tf.matmul(a, a if other is self else other._inputs(), transpose_b=True)
        inputs = inputs + 1.0 if self.bias else inputs
        return inputs, tf.matmul(b1, b2, transpose_b=True)

    def _meet(self, other: OuterFactor) -> tf.Tensor:
        inputs, outputs = self._pairs(other, self._outputs(), other._outputs())
        if self._one_position():
            return inputs[0] * outputs[0]
        (groups, t1, _), t2 = self._sizes, other._sizes[1]
        shape = (groups, length(self.b), t1, length(other.b), t2)
        return tf.reduce_sum(tf.reshape(inputs * outputs, shape), axis=(0, 2, 4))
