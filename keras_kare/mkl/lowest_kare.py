"""Weights of masking kernels that minimise KARE, by descent on their logarithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_kare import risk
from keras_kare.mkl.masks import MaskedRows

WINDOW = 10
"""Steps over which a descent must gain something."""

GAIN = 1e-3
"""Share of the first KARE that so many steps must gain."""

ARMIJO = 0.1


@dataclass(frozen=True)
class Descent:
    """Where a descent went.

    Args:
        weights: The last, which have the lowest KARE, `(p,)`.
        values: KARE before the first step, and after each.
        converged: Whether it ended because steps gained little.
    """

    weights: np.ndarray
    values: list[float]
    converged: bool


def lowest_kare(
    rows: MaskedRows, y: np.ndarray, ridge: float, start: np.ndarray, max_iterations: int
) -> Descent:
    """Return positive weights whose kernel has a low KARE, not below that of the start.

    KARE is not convex in the weights: where the descent ends depends on where it starts.

    Args:
        rows: `X` and the masks.
        y: `(n, c)`.
        ridge: `z`, in the units of `K/n`.
        start: Positive weights, `(p,)`.
        max_iterations: Steps after which to stop.
    """
    logs = np.log(start)
    value, gradient = _kare(rows, y, ridge, logs)
    values, length = [value], 1.0 / max(float(np.linalg.norm(gradient)), 1e-30)
    while len(values) <= max_iterations:
        square = float(np.sum(gradient**2))
        moved = logs - length * gradient
        reached, slope = _kare(rows, y, ridge, moved)
        while reached > value - ARMIJO * length * square:
            length *= 0.25
            if length * square <= 1e-15 * value:
                return Descent(np.exp(logs), values, True)
            moved = logs - length * gradient
            reached, slope = _kare(rows, y, ridge, moved)
        logs, value, gradient = moved, reached, slope
        values.append(value)
        length *= 2.0
        if len(values) > WINDOW and values[-1 - WINDOW] - value <= GAIN * values[0]:
            return Descent(np.exp(logs), values, True)
    return Descent(np.exp(logs), values, False)


def _kare(
    rows: MaskedRows, y: np.ndarray, ridge: float, logs: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return KARE of weights, and its gradient by their logarithms.

    `∂KARE/∂log η_i = η_i m_iᵀ (G ∘ X Xᵀ) m_i`, where `G` is its gradient by `K`.
    """
    weights = np.exp(logs)
    gram = tf.constant(rows.kernel(weights))
    with tf.GradientTape() as tape:
        tape.watch(gram)
        value = risk.kare(y, gram, ridge)
    of_gram = tape.gradient(value, gram).numpy() * rows.products
    return float(value), weights * np.sum((rows.masks @ of_gram) * rows.masks, axis=1)
