"""The network of an estimator: dense layers, one output, any start from a seed."""

from __future__ import annotations

import functools
import threading

import keras
import numpy as np

from keras_kare.losses import KARE
from keras_kare.models.workbench import Workbench

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
    """A multilayer perceptron and its training by Adam, shared by all of its shape.

    One output serves any number of targets: they share its kernel.
    """

    def dense(units: int, activation: str | None) -> keras.layers.Layer:
        # without a seed, old versions of Keras draw one from Python's generator
        initializer = keras.initializers.GlorotUniform(seed=0)
        return keras.layers.Dense(
            units, activation, kernel_initializer=initializer, dtype=dtype
        )

    hidden = [dense(size, activation) for size in hidden_sizes]
    network = keras.Sequential([keras.Input((inputs,)), *hidden, dense(1, None)])
    loss = KARE(ridge=kare_ridge, relative=True)
    return Workbench(network, loss, keras.optimizers.Adam())


def initial_weights(bench: Workbench, rng: np.random.RandomState) -> list[np.ndarray]:
    """Kernels and biases uniform in ±1/√n_in, in the order of `get_weights()`."""
    start = []
    for kernel, bias in zip(*[iter(bench.network.get_weights())] * 2, strict=True):
        bound = 1.0 / np.sqrt(kernel.shape[0])
        start += [rng.uniform(-bound, bound, part.shape) for part in (kernel, bias)]
    return start
