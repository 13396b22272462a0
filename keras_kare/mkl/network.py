"""Gated ReLU networks in layers of Keras."""

from __future__ import annotations

import keras
import numpy as np


def gated_network(gates: np.ndarray, coefficients: np.ndarray, dtype: str) -> keras.Model:
    """Return `f(x) = Σ_i 1{x·g_i >= 0} x·w_i` as a network, `(n, d)` to `(n, c)`.

    Args:
        gates: `g_i`, `(p, d)`. They do not train.
        coefficients: `w_i`, `(p, d, c)`.
        dtype: What it computes in.
    """
    count, columns, targets = coefficients.shape
    inputs = keras.Input((columns,), dtype=dtype, name="inputs")
    gate = keras.layers.Dense(
        count, use_bias=False, trainable=False, dtype=dtype, name="gates"
    )
    unit = keras.layers.EinsumDense(
        "nd,dpc->npc", (count, targets), dtype=dtype, name="coefficients"
    )
    is_open = keras.ops.cast(gate(inputs) >= 0.0, dtype)
    outputs = keras.ops.einsum("np,npc->nc", is_open, unit(inputs))
    network = keras.Model(inputs, outputs, name="gated_relu")
    gate.set_weights([gates.T])
    unit.set_weights([np.swapaxes(coefficients, 0, 1)])
    return network
