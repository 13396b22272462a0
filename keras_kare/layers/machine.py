"""From a kernel and rows to the arrays of a kernel machine."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.jacobian import outputs_of
from keras_kare.kernels.kernel import Kernel

CHUNK = 4096
"""Rows at a time in sums over rows."""


def gram_of(kernel: Kernel, x: Any) -> np.ndarray:
    """The Gram matrix in float64, `(n, n)`, finite and not zero."""
    gram = kernel.gram(x, dtype="float64").numpy()
    if gram.ndim != 2:
        raise ValueError(
            'A head needs a kernel with one value a pair of rows, and `outputs="full"` '
            'has a block. Use `outputs="sum"` or `outputs="trace"`.'
        )
    if not np.all(np.isfinite(gram)):
        raise ValueError(
            "The Gram matrix overflows: the network's gradients on `x` are too "
            "large. Scale the inputs or the weights down."
        )
    if not np.trace(gram) > 0.0:
        raise ValueError(
            "The kernel is zero on all rows of `x`: the network's outputs do not "
            "react to its weights there (dead or saturated units)."
        )
    return gram


def machine_targets(kernel: Kernel, x: Any, y: np.ndarray, residual: bool) -> np.ndarray:
    """What the kernel machine fits: `y`, or what the network leaves of it."""
    y = np.asarray(y, "float64")
    if not residual:
        return y
    f = np.asarray(network_outputs(kernel, x), "float64")
    if f.shape != y.shape:
        raise ValueError(
            "`residual=True` needs as many targets as the network has outputs. "
            f"Received: targets of shape {y.shape}, outputs of shape {f.shape}"
        )
    return y - f


def network_outputs(kernel: Kernel, x: Any) -> tf.Tensor:
    """The outputs of the network that the kernel belongs to, `(n, c)`."""
    network = getattr(kernel, "network", None)
    if network is None:
        raise ValueError(
            "`residual=True` corrects a network, and this kernel has none. Received: "
            f"kernel of type {type(kernel).__name__}"
        )
    return outputs_of(network, x)


def primal_weights(kernel: Kernel, x: Any, dual: np.ndarray) -> list[tf.Tensor]:
    """`w = (1/n) J(X)ᵀ α`, summed in float64 over chunks of rows."""
    n, total = len(dual), None
    for begin in range(0, n, CHUNK):
        rows = slice(begin, begin + CHUNK)
        part = keras.tree.map_structure(lambda t, rows=rows: t[rows], x)
        w = kernel.vjp(part, dual[rows] / n, dtype="float64")
        total = w if total is None else [a + b for a, b in zip(total, w, strict=True)]
    assert total is not None
    return [
        tf.cast(w, v.dtype) for w, v in zip(total, kernel.trainable_variables, strict=True)
    ]
