"""What every factor answers.

Every row `i` and output `k` of a network has a gradient with respect to a group
of variables, `J_k(x_i)`. A *factor* holds these gradients in whatever form its
layer makes cheap, and answers the verbs that kernels are built from. The number
of outputs is `C` (one for the NTK of the summed outputs), rows are `n`, right-hand
sides are `m`. Rows are the first axis of every array that a factor holds.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Cost:
    """The cost of a factor, counted from its shapes.

    Attributes:
        path: How rows meet: `"products"` (gradients written out, one matrix
            product), `"positions"` (inputs and output gradients meet position by
            position, then multiply), or `"lookup"` (rows meet where they share an
            index).
        row_flops: Floating-point operations a row to prepare, once.
        pair_flops: Floating-point operations a pair of rows.
        row_numbers: Numbers held a row.
        pair_numbers: Numbers held a pair of rows while it is computed.
    """

    path: str
    row_flops: float
    pair_flops: float
    row_numbers: float
    pair_numbers: float


class Factor(abc.ABC):
    """Per-example gradients with respect to one group of variables."""

    arrays: int = 1
    """How many arrays `vjp` returns and `jvp` takes."""

    @abc.abstractmethod
    def gram(self) -> tf.Tensor:
        """Return the kernel values of these rows, `sum_k J_k J_kᵀ`, `(n, n)`."""

    @abc.abstractmethod
    def cross(self, other: Any) -> tf.Tensor:
        """Return `sum_k J_k J'_kᵀ` for a factor of the same group, `(n, n')`."""

    @abc.abstractmethod
    def blocks(self, other: Any) -> tf.Tensor:
        """Return `J_k J'_lᵀ` for all pairs of outputs, `(n, n', C, C)`."""

    @abc.abstractmethod
    def diag(self) -> tf.Tensor:
        """Return the diagonal of `gram`, `sum_k |J_k(x_i)|²`, `(n,)`."""

    @abc.abstractmethod
    def diag_blocks(self) -> tf.Tensor:
        """Return `J_k(x_i) J_l(x_i)ᵀ` for all pairs of outputs, `(n, C, C)`."""

    @abc.abstractmethod
    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        """Return `sum_i v_ij J_k(x_i)` for `v`, `(n, m)`: `(m, C, ...)` a variable.

        The trailing axes hold the variable's entries in the variable's order. The sums
        over rows are formed in the type of `v`.
        """

    @abc.abstractmethod
    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        """Return `sum_k J_k(x_i) w_jk`, `(n, m)`, for one `(m, C) + shape` a variable.

        The sums are formed in the type of `w`.
        """

    def written(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Write out the gradients, `(n, C, ...)` a variable, in the variable's order.

        The same numbers as in `vjp` and `jvp`, for `v` and `w` of type `dtype`.
        """
        return self.vjp(tf.eye(length(self.parts()[-1]), dtype=dtype))

    @abc.abstractmethod
    def join(self, others: Sequence[Any]) -> Factor:
        """Return the sum of these gradients and others of the same group and rows.

        A layer that is called several times has one factor a call.
        """

    @abc.abstractmethod
    def cost(self, outputs: int | None = None) -> Cost:
        """Return what this factor costs, or would cost with another number of outputs."""

    @abc.abstractmethod
    def parts(self) -> list[tf.Tensor]:
        """Return the arrays that the factor holds; rows are the first axis of each."""

    @abc.abstractmethod
    def with_parts(self, parts: Sequence[tf.Tensor]) -> Factor:
        """Return the same kind of factor on other rows."""

    def condensed(self) -> Factor:
        """Return the same gradients in the form in which rows meet most cheaply."""
        return self

    def arranged(self, found: list[tf.Tensor]) -> list[tf.Tensor]:
        """Arrange what `condensed().vjp(v)` gave as `vjp(v)` does: an array a variable."""
        return found

    def cast(self, dtype: tf.DType) -> Factor:
        """Return the same gradients as numbers of another type."""
        parts = self.parts()
        if all(t.dtype == dtype for t in parts if t.dtype.is_floating):
            return self
        return self.with_parts(
            [tf.cast(t, dtype) if t.dtype.is_floating else t for t in parts]
        )


def length(x: tf.Tensor, axis: int = 0) -> Any:
    """Return the length of an axis: a number, or a tensor where it is not known yet."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]
