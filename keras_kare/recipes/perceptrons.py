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
) -> list[np.ndarray]:
    """Draw weights to start from, in the order of `network.get_weights()`.

    Args:
        network: Made of dense layers: kernels and biases in turn.
        rng: Kernels are uniform in ±gain/√n_in, biases in ±1/√n_in.
        gain: Defaults to `1.0`, as in PyTorch's `Linear`.
    """
    start = []
    for kernel, bias in zip(*[iter(network.weights)] * 2, strict=True):
        bound = 1.0 / np.sqrt(kernel.shape[0])
        start.append(rng.uniform(-gain * bound, gain * bound, kernel.shape))
        start.append(rng.uniform(-bound, bound, bias.shape))
    return start
