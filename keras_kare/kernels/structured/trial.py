"""A traced network at other weights: the numbers behind a plan's proof.

The graph proves by which roads variables reach the outputs. That a rule's formula is
right, and that rows do not interact, is tried: on made-up rows, at *perturbed* weights, so
that zero initialisation hides nothing. The function is given variables of its own for that;
the network's are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Trial:
    """The values of a traced function for `ROWS` rows, at perturbed weights.

    Args:
        traced: A concrete function of inputs and of one number a row, which returns a
            dictionary of tensors. It has the perturbed weights from here on.
        variables: The network's trainable variables.
        seed: Of the perturbation.
    """

    def __init__(self, traced: Any, variables: Sequence[keras.Variable], seed: int):
        rng = np.random.default_rng(seed)
        self._scratch = {
            id(v.value.handle): tf.Variable(perturbed(v, rng), trainable=False)
            for v in variables
        }
        self._traced = traced
        traced.set_external_captures([self._captured(t) for t in traced.captured_inputs])

    def _captured(self, tensor: tf.Tensor) -> tf.Tensor:
        own = self._scratch.get(id(tensor))
        return tensor if own is None else own.handle

    def run(self, x: Any, v: np.ndarray) -> dict[str, np.ndarray]:
        """Return the function's values, for rows `(ROWS, ...)` and one number a row."""
        dtype = self._traced.inputs[len(keras.tree.flatten(x))].dtype
        found = self._traced(x, tf.constant(v, dtype))
        return {name: np.asarray(t, "float64") for name, t in found.items()}


def perturbed(variable: keras.Variable, rng: np.random.Generator) -> tf.Tensor:
    """Return a value beside the variable's, in which no entry is zero."""
    value = np.asarray(tf.convert_to_tensor(variable.value), "float64")
    fan_in = max(1, math.prod(variable.shape[:-1]))
    scale = max(0.5 * float(np.sqrt(np.mean(value**2))), 0.1 / math.sqrt(fan_in))
    noisy = value + scale * rng.normal(size=value.shape)
    return tf.constant(noisy.astype(tf.as_dtype(variable.dtype).as_numpy_dtype))


def tolerance_of(layers: Sequence[keras.layers.Layer]) -> float:
    """Return the relative error that rounding may cause in one pass."""
    kinds = {layer.compute_dtype for layer in layers}
    kinds |= {str(v.dtype) for layer in layers for v in layer.trainable_variables}
    if kinds & {"float16", "bfloat16"}:
        return 0.1
    return 1e-3 if "float32" in kinds else 1e-9


def tolerance_of_rules(tolerance: float, layers: Sequence[keras.layers.Layer]) -> float:
    """Return the error of what rules compute in another order: bfloat16 loses more."""
    coarse = any("bfloat16" in layer.compute_dtype for layer in layers)
    return max(tolerance, 0.3) if coarse else tolerance


def size(values: np.ndarray | None) -> float:
    """Return the largest absolute value; 0 for none."""
    return 0.0 if values is None else float(np.max(np.abs(values), initial=0.0))


def agree(
    plain: np.ndarray | None,
    ruled: np.ndarray | None,
    tolerance: float,
    least: float,
) -> bool | None:
    """Tell whether two gradients agree; `None` where both are zero, which tells nothing.

    Those below `least` count as if of that size: some gradients are zero but for
    rounding, such as that of attention's key bias.
    """
    if plain is None or ruled is None:
        return False
    if not (np.all(np.isfinite(plain)) and np.all(np.isfinite(ruled))):
        return None
    if size(plain) == 0.0 and size(ruled) == 0.0:
        return None
    return size(ruled - plain) <= tolerance * max(size(plain), least)
