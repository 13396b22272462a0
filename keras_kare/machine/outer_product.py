"""How predictions change with the inputs: the average gradient outer product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.machine.machine import Machine

ROWS = 1024
"""Rows at a time."""


def agop(machine: Machine, x: Any) -> np.ndarray:
    """Return the mean over rows of `Σ_c ∇f_c(x) ∇f_c(x)ᵀ`, `(d, d)`, float64.

    Args:
        machine: What predicts `f`; solved.
        x: Rows of numbers, `(n, d)`.

    Raises:
        ValueError: If rows are something else.
    """
    x = _validation.check_rows("x", x)
    if not (tf.is_tensor(x) and x.shape.rank == 2 and x.dtype.is_floating):
        raise ValueError(
            "`x` must be one array of rows of floats, `(n, d)`: predictions are "
            "differentiated by them. Received: x that is something else"
        )
    total = np.zeros((x.shape[1], x.shape[1]))
    for rows in _rows.slices(x, ROWS):
        for found in slopes(machine, rows):
            wide = np.asarray(found, "float64")
            total += wide.T @ wide
    return total / len(x)


def slopes(outputs: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor) -> list[tf.Tensor]:
    """Return the derivative of each output by each row's inputs, `c` times `(n, d)`.

    Args:
        outputs: From rows, which stand alone, to `(n, c)`.
        rows: `(n, d)`.
    """
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(rows)
        totals = tf.unstack(tf.reduce_sum(outputs(rows), axis=0))
    zero = tf.UnconnectedGradients.ZERO
    return [tape.gradient(each, rows, unconnected_gradients=zero) for each in totals]
