"""Probabilities from scores: temperature scaling.

One number is fitted, by which scores are multiplied before a sigmoid (two classes) or a
softmax, so that the most likely class stays the same (Guo, Pleiss, Sun, Weinberger, "On
calibration of modern neural networks", arXiv:1706.04599). Labels are smoothed as by
Platt ("Probabilistic outputs for support vector machines", 1999), which keeps the number
finite where scores separate the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._traced_once import TracedOnce

LOG_RANGE = (-5.0, 5.0)
"""Natural logarithms of the smallest and the largest inverse temperature."""

HALVINGS = 40
"""Of that range, until it is narrower than rounding errors matter."""


@dataclass(frozen=True)
class Evidence:
    """What a machine said of rows that it had not seen.

    Attributes:
        scores: `(m, c)`.
        targets: Their classes in -1 and 1, `(m, c)`.
        weights: How often each row counts, `(m,)`; `None` for once.
        by: Where the rows come from, for the head's report.
    """

    scores: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    by: str

    def inverse_temperature(self) -> float:
        """Return the factor that makes probabilities of these scores fit best."""
        weights = np.ones(len(self.scores)) if self.weights is None else self.weights
        return float(inverse_temperature(self.scores, self.targets, weights))


def inverse_temperature(scores: Any, targets: Any, weights: Any) -> tf.Tensor:
    """Return the factor of scores with the least cross-entropy, a scalar in float64.

    The cross-entropy is convex in the factor: its derivative is followed to zero by
    halving, inside `LOG_RANGE`.

    Args:
        scores: Of rows that did not train, `(m, 1)` for two classes, else `(m, c)`.
        targets: Their classes, in -1 and 1, `(m, c)`.
        weights: How often each row counts, `(m,)`.
    """
    parts = (tf.cast(part, tf.float64) for part in (scores, targets, weights))
    found: tf.Tensor = _fitted(*parts)
    return found


@TracedOnce
def _fitted(scores: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    single = tf.shape(scores)[1] == 1
    # a column of zeros beside a single one: the first of two classes
    logits = tf.pad(scores, [[0, 0], [tf.cast(single, tf.int32), 0]])
    signs = tf.cast(targets[:, 0] > 0.0, tf.int64)
    codes = tf.where(single, signs, tf.argmax(targets, axis=1))
    own = tf.one_hot(codes, tf.shape(logits)[1], dtype=tf.float64)
    wanted = smoothed(own, weights)

    def halved(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = 0.5 * (low + high)
        shares = tf.nn.softmax(tf.exp(middle) * logits)
        slope = tf.reduce_sum(weights[:, None] * (shares - wanted) * logits)
        rises = slope > 0.0
        return i + 1, tf.where(rises, low, middle), tf.where(rises, middle, high)

    low, high = (tf.constant(end, tf.float64) for end in LOG_RANGE)
    _, low, high = tf.while_loop(
        lambda i, low, high: i < HALVINGS, halved, (tf.constant(0), low, high)
    )
    return tf.exp(0.5 * (low + high))


def smoothed(own: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return probabilities `(m, c)`: `(N_k + 1) / (N_k + 2)` for a row's class `k`.

    That is Platt's, of one more row of the class and one that is of another; here the
    others share it.

    Args:
        own: 1 for each row's class and 0 elsewhere, `(m, c)`.
        weights: How often each row counts, `(m,)`.
    """
    counts = tf.linalg.matvec(own, tf.linalg.matvec(own, weights, transpose_a=True))
    counts, classes = counts[:, None], tf.cast(tf.shape(own)[1], own.dtype)
    other = (1.0 - own) / ((counts + 2.0) * (classes - 1.0))
    return own * (counts + 1.0) / (counts + 2.0) + other


def probabilities(scores: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return `(m, 2)` for scores `(m, 1)`, else `(m, c)`; rows sum to one.

    Args:
        scores: `(m, c)`.
        factor: What they are multiplied by: the inverse temperature.
    """
    scores = tf.cast(factor, scores.dtype) * scores
    if scores.shape[1] == 1:
        return tf.concat([tf.sigmoid(-scores), tf.sigmoid(scores)], axis=1)
    return tf.nn.softmax(scores)
