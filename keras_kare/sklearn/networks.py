"""The network of an estimator: dense layers, one output, weights from a given seed."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np


def make_network(
    inputs: int,
    hidden_sizes: Sequence[int],
    activation: str,
    dtype: str,
    rng: np.random.RandomState,
) -> keras.Model:
    """A multilayer perceptron that draws from `rng` and from no global generator.

    One output serves any number of targets: they share its kernel.
    """

    def dense(units: int, activation: str | None) -> keras.layers.Layer:
        seed = int(rng.randint(2**31 - 1))
        initializer = keras.initializers.GlorotUniform(seed=seed)
        return keras.layers.Dense(
            units, activation, kernel_initializer=initializer, dtype=dtype
        )

    hidden = [dense(int(size), activation) for size in hidden_sizes]
    return keras.Sequential([keras.Input((inputs,)), *hidden, dense(1, None)])
