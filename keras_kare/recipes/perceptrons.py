"""The network of an estimator: dense layers, one output, any start from a seed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import keras
import numpy as np

from keras_kare.losses import KARE
from keras_kare.recipes.workbench import Workbench

LOCK = threading.RLock()
"""Held while a workbench has an estimator's weights: threads share the workbenches."""


LEAST, MOST = 8, 512
"""Inputs of the smallest network, and up to which they are powers of two."""


def wider(inputs: int) -> int:
    """Return the number of inputs of a network for so many columns.

    Tables of other widths then share its traces, which take longer than training it.
    """
    if inputs > MOST:
        return -(-inputs // MOST) * MOST
    return max(LEAST, 2 ** (inputs - 1).bit_length())


@functools.lru_cache(maxsize=8)
def workbench(
    inputs: int,
    hidden_sizes: tuple[int, ...],
    activation: str,
    dtype: str,
    kare_ridge: float,
) -> Workbench:
    """Return a multilayer perceptron and its training by Adam, shared by all of its shape.

    One output serves any number of targets: they share its kernel.
    """
    network = make_network(inputs, hidden_sizes, 1, activation, dtype)
    loss = KARE(ridge=kare_ridge, relative=True)
    return Workbench(network, loss, keras.optimizers.Adam())


def make_network(
    inputs: int, hidden_sizes: Sequence[int], outputs: int, activation: str, dtype: str
) -> keras.Model:
    """Make a multilayer perceptron, linear at its end; `draw_weights` gives it a start."""

    def dense(units: int, activation: str | None) -> keras.layers.Layer:
        # without a seed, old versions of Keras draw one from Python's generator
        initializer = keras.initializers.GlorotUniform(seed=0)
        return keras.layers.Dense(
            units, activation, kernel_initializer=initializer, dtype=dtype
        )

    hidden = [dense(size, activation) for size in hidden_sizes]
    return keras.Sequential([keras.Input((inputs,)), *hidden, dense(outputs, None)])


def draw_weights(
    network: keras.Model,
    rng: np.random.RandomState | np.random.Generator,
    gain: float = 1.0,
    inputs: int | None = None,
) -> list[np.ndarray]:
    """Draw weights to start from, in the order of `network.get_weights()`.

    Args:
        network: Made of dense layers: kernels and biases in turn.
        rng: Kernels are uniform in ±gain/√n_in, biases in ±1/√n_in.
        gain: Defaults to `1.0`, as in PyTorch's `Linear`.
        inputs: Of how many inputs rows have values: weights of the others are zero.
            Defaults to all.
    """
    start: list[np.ndarray] = []
    for kernel, bias in zip(*[iter(network.weights)] * 2, strict=True):
        drawn = inputs if inputs is not None and not start else kernel.shape[0]
        bound = 1.0 / np.sqrt(drawn)
        values = np.zeros(kernel.shape)
        values[:drawn] = rng.uniform(-gain * bound, gain * bound, (drawn, kernel.shape[1]))
        start.append(values)
        start.append(rng.uniform(-bound, bound, bias.shape))
    return start
