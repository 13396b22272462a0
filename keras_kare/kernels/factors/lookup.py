"""Gradients of a table of which each row of the data uses a few entries."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_kare.kernels.factors.factor import Cost, Factor, length

DENSE = 4
"""Entries that at least one row in so many uses are multiplied as dense matrices."""

WIDTHS = (4, 16, 64, 256)
"""Entries are grouped by how many rows use them; above the last, they are dense."""


class LookupFactor(Factor):
    """Gradients that are zero but in the entries looked up, `J_k(x_i)[v] = sum b_itk`.

    The sum goes over the positions `t` at which row `i` looks up entry `v`. No
    array of `n` times the size of the table exists: rows meet in the entries that
    both use. Entries that many rows use are multiplied as dense matrices, the
    others in groups by the number of rows that use them.

    Args:
        indices: `(n, T)`, integers: which entry each position looks up.
        b: `(n, T, C, q)`: gradients of the `C` outputs by what was looked up.
        size: Number of entries of the table.
    """

    def __init__(self, indices: tf.Tensor, b: tf.Tensor, size: int):
        self.indices, self.b, self.size = indices, b, size

    def gram(self) -> tf.Tensor:
        return self.cross(self)

    def cross(self, other: LookupFactor) -> tf.Tensor:
        return self._side_by_side()._meet(other._side_by_side())[:, :, 0, 0]

    def blocks(self, other: LookupFactor) -> tf.Tensor:
        return self._meet(other)

    def diag(self) -> tf.Tensor:
        return tf.linalg.trace(self.diag_blocks())

    def diag_blocks(self) -> tf.Tensor:
        entries = _Entries(self, self.indices)
        each = tf.einsum("ekq,elq->ekl", entries.g, entries.g)
        return tf.math.unsorted_segment_sum(each, entries.row, length(self.b))

    def vjp(self, v: tf.Tensor) -> list[tf.Tensor]:
        count, q = self.b.shape[2:]
        weighted = tf.einsum("itkq,ij->itjkq", tf.cast(self.b, v.dtype), v)
        m = length(v, 1)
        flat = tf.reshape(weighted, tf.stack([-1, m, count, q]))
        table = tf.math.unsorted_segment_sum(
            flat, tf.reshape(self.indices, [-1]), self.size
        )
        return [tf.transpose(table, (1, 2, 0, 3))]

    def written(self, dtype: tf.DType) -> list[tf.Tensor]:
        count, q = self.b.shape[2:]
        n = length(self.b)
        entries = tf.cast(self.indices, tf.int32) + self.size * tf.range(n)[:, None]
        flat = tf.cast(tf.reshape(self.b, (-1, count, q)), dtype)
        table = tf.math.unsorted_segment_sum(flat, tf.reshape(entries, [-1]), n * self.size)
        table = tf.reshape(table, (-1, self.size, count, q))
        return [tf.transpose(table, (0, 2, 1, 3))]

    def jvp(self, w: list[tf.Tensor]) -> tf.Tensor:
        count, q = self.b.shape[2:]
        table = tf.reshape(w[0], (-1, count, self.size, q))
        found = tf.gather(table, self.indices, axis=2)  # (m, C, n, T, q)
        return tf.einsum("jkitq,itkq->ij", found, tf.cast(self.b, w[0].dtype))

    def join(self, others: Sequence[LookupFactor]) -> LookupFactor:
        indices = tf.concat([self.indices, *(other.indices for other in others)], axis=1)
        b = tf.concat([self.b, *(other.b for other in others)], axis=1)
        return LookupFactor(indices, b, self.size)

    def cost(self, outputs: int | None = None) -> Cost:
        """Count as if each position met one other of each row; data decides."""
        steps, (count, q) = self.indices.shape[1] or 1, self.b.shape[2:]
        numbers = float(steps * (outputs or count) * q)
        return Cost("lookup", 2.0 * numbers, 2.0 * numbers, 2.0 * numbers, 8.0 * steps)

    def parts(self) -> list[tf.Tensor]:
        return [self.indices, self.b]

    def with_parts(self, parts: Sequence[tf.Tensor]) -> LookupFactor:
        return LookupFactor(parts[0], parts[1], self.size)

    def _side_by_side(self) -> LookupFactor:
        """Take outputs as one long output: their sum is one product."""
        steps = -1 if self.b.shape[1] is None else self.b.shape[1]
        count, q = self.b.shape[2:]
        n = length(self.b)
        return LookupFactor(
            self.indices, tf.reshape(self.b, (n, steps, 1, count * q)), self.size
        )

    def _meet(self, other: LookupFactor) -> tf.Tensor:
        """Return the products of all pairs of rows and of outputs, `(n, n', C, C)`."""
        count = self.b.shape[2]
        n1, n2 = length(self.b), length(other.b)
        both = tf.concat(
            [tf.reshape(self.indices, [-1]), tf.reshape(other.indices, [-1])], axis=0
        )
        used, number = tf.unique(both)
        own = tf.size(self.indices)
        left = _Entries(self, tf.reshape(number[:own], tf.shape(self.indices)))
        right = _Entries(other, tf.reshape(number[own:], tf.shape(other.indices)))
        users1, users2 = left.users(tf.size(used)), right.users(tf.size(used))
        most = tf.where((users1 > 0) & (users2 > 0), tf.maximum(users1, users2), 0)
        dense = (most * DENSE >= tf.maximum(n1, n2)) | (most > WIDTHS[-1])
        total = tf.reshape(_dense(left, right, dense, n1, n2), (n1, n2, count, count))
        flat = tf.reshape(total, (n1 * n2, count * count))
        low = 0
        for width in WIDTHS:
            group = (most > low) & (most <= width) & ~dense
            flat += _grouped(left, right, group, width, n1, n2)
            low = width
        return tf.reshape(flat, (n1, n2, count, count))


class _Entries:
    """The sum that each row has in each entry that it uses, over repeated positions.

    Sorted by entry. `number` are entries as numbers without gaps, `(n, T)`.
    """

    def __init__(self, factor: LookupFactor, number: tf.Tensor):
        count, q = factor.b.shape[2:]
        n = tf.cast(tf.shape(number)[0], tf.int64)
        rows = tf.broadcast_to(tf.range(n)[:, None], tf.shape(number))
        keys = tf.reshape(tf.cast(number, tf.int64) * n + rows, [-1])
        order = tf.argsort(keys, stable=True)
        keys = tf.gather(keys, order)
        b = tf.gather(tf.reshape(factor.b, (-1, count, q)), order)
        unique, segment = tf.unique(keys)
        self.g = tf.math.segment_sum(b, segment)  # (E, C, q)
        self.entry = tf.cast(unique // n, tf.int32)
        self.row = tf.cast(unique % n, tf.int32)

    def users(self, entries: tf.Tensor) -> tf.Tensor:
        """Count the rows that use each entry."""
        ones = tf.ones_like(self.entry)
        return tf.math.unsorted_segment_sum(ones, self.entry, entries)


def _compact(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return for each entry its number among the chosen ones, and how many these are."""
    ones = tf.cast(chosen, tf.int32)
    return tf.cumsum(ones) - ones, tf.reduce_sum(ones)


def _dense(
    left: _Entries, right: _Entries, chosen: tf.Tensor, n1: tf.Tensor, n2: tf.Tensor
) -> tf.Tensor:
    """Multiply entries that many rows use as `(n, entries x q)` matrices: `(n C, n' C)`."""
    number, size = _compact(chosen)

    def matrix(entries: _Entries, n: tf.Tensor) -> tf.Tensor:
        count, q = entries.g.shape[1:]
        kept = tf.where(tf.gather(chosen, entries.entry))[:, 0]
        place = tf.gather(entries.row, kept) * size
        place += tf.gather(number, tf.gather(entries.entry, kept))
        rows = tf.math.unsorted_segment_sum(tf.gather(entries.g, kept), place, n * size)
        rows = tf.reshape(rows, tf.stack([n, size, count, q]))
        return tf.reshape(tf.transpose(rows, (0, 2, 1, 3)), tf.stack([n * count, size * q]))

    count = left.g.shape[1]
    both = tf.matmul(matrix(left, n1), matrix(right, n2), transpose_b=True)
    both = tf.reshape(both, tf.stack([n1, count, n2, count]))
    return tf.transpose(both, (0, 2, 1, 3))


def _grouped(
    left: _Entries,
    right: _Entries,
    chosen: tf.Tensor,
    width: int,
    n1: tf.Tensor,
    n2: tf.Tensor,
) -> tf.Tensor:
    """Multiply entries that at most `width` rows use, one by one: `(n n', C C)`."""
    number, size = _compact(chosen)

    def padded(entries: _Entries, n: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count, q = entries.g.shape[1:]
        kept = tf.where(tf.gather(chosen, entries.entry))[:, 0]
        entry = tf.gather(entries.entry, kept)
        # Entries are sorted: a row's place in its entry is its distance from the first.
        index = tf.range(tf.size(entry))
        first = tf.math.segment_min(index, entry)
        place = tf.gather(number, entry) * width + index - tf.gather(first, entry)
        g = tf.math.unsorted_segment_sum(tf.gather(entries.g, kept), place, size * width)
        row = tf.tensor_scatter_nd_update(
            tf.fill([size * width], n), place[:, None], tf.gather(entries.row, kept)
        )
        g = tf.reshape(g, tf.stack([size, width * count, q]))
        return g, tf.reshape(row, tf.stack([size, width]))

    count = left.g.shape[1]
    g1, row1 = padded(left, n1)
    g2, row2 = padded(right, n2)
    products = tf.matmul(g1, g2, transpose_b=True)
    products = tf.reshape(products, tf.stack([size, width, count, width, count]))
    products = tf.reshape(tf.transpose(products, (0, 1, 3, 2, 4)), (-1, count * count))
    outside = (row1[:, :, None] >= n1) | (row2[:, None, :] >= n2)
    # A negative place is left out of a segment sum.
    place = tf.where(outside, -1, row1[:, :, None] * n2 + row2[:, None, :])
    return tf.math.unsorted_segment_sum(products, tf.reshape(place, [-1]), n1 * n2)
