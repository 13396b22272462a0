"""Where the numbers of an outer product lie: in positions, and in their variable."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from keras_kare.kernels.factors.factor import length


@dataclass(frozen=True)
class Layout:
    """The place of the entry `(g, p, q)` of an outer product in its variable.

    Attributes:
        split: Sizes of the axes of `(g, p, q)`, each of the three split as needed.
        order: The order of these axes in the variable.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]

    def to_variable(self, w: tf.Tensor) -> tf.Tensor:
        """Bring `(m, C, G, p, q)` to `(m, C) + the axes of the variable`."""
        w = tf.reshape(w, (length(w), length(w, 1), *self.split))
        return tf.transpose(w, (0, 1, *(2 + i for i in self.order)))

    def from_variable(self, w: tf.Tensor) -> tf.Tensor:
        """Bring `(m, C) + the axes of the variable` back to `(m, C) + split`."""
        moved = [self.split[i] for i in self.order]
        w = tf.reshape(w, (length(w), length(w, 1), *moved))
        back = [self.order.index(i) for i in range(len(self.order))]
        return tf.transpose(w, (0, 1, *(2 + i for i in back)))


def positions(x: tf.Tensor, lead: int = 1, groups: int = 1) -> tf.Tensor:
    """Flatten the axes between rows and features to `T` positions.

    Args:
        x: `(n, ..., d)`, or `(n, C, ..., d)` with `lead=2`.
        lead: Number of axes before the positions.
        groups: Number `G` of groups of features.

    Returns:
        `(n, G, T, d / G)`, or `(n, G, T, C, d / G)`.
    """
    inner = x.shape[lead:-1]
    count = inner.num_elements() if inner.is_fully_defined() else -1
    features = x.shape[-1] // groups
    rows = length(x) if count == -1 else -1
    if lead == 1 and groups == 1:
        return tf.reshape(x, (rows, 1, count, features))
    if lead == 1:
        return tf.transpose(tf.reshape(x, (rows, count, groups, features)), (0, 2, 1, 3))
    outputs = x.shape[1]
    if groups == outputs == 1:
        return tf.reshape(x, (rows, 1, count, 1, features))
    x = tf.reshape(x, (rows, outputs, count, groups, features))
    return tf.transpose(x, (0, 3, 2, 1, 4))
