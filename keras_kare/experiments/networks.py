"""The networks of the experiments, and the two ways in which they may start."""

from __future__ import annotations

import math

import keras
import numpy as np

from keras_kare import _validation
from keras_kare.experiments.settings import INITIALIZATIONS, Architecture
from keras_kare.recipes import perceptrons


def make_network(inputs: int, outputs: int, architecture: Architecture) -> keras.Model:
    """A multilayer perceptron; `initial_weights` gives it a start.

    Args:
        inputs: Features.
        outputs: Outputs, without an activation.
        architecture: Depth, width and activation of the hidden layers.
    """
    sizes = (architecture.width,) * architecture.depth
    return perceptrons.make_network(
        inputs, sizes, outputs, architecture.activation, "float32"
    )


def initial_weights(
    network: keras.Model, initialization: str, seed: int
) -> list[np.ndarray]:
    """Weights to start from, in the order of `network.get_weights()`.

    Args:
        network: Of dense layers: kernels and biases in turn.
        initialization: `"torch"` is the published code's: PyTorch's default for `Linear`,
            kernels and biases uniform in ±1/√n_in. `"paper"` is that of the paper's
            Table 2: kernels uniform in ±√(6/n_in) (He et al. 2015), the biases as before.
        seed: Of a generator of its own.
    """
    _validation.check_option("initialization", initialization, INITIALIZATIONS)
    gain = 1.0 if initialization == "torch" else math.sqrt(6.0)
    return perceptrons.draw_weights(network, np.random.default_rng(seed), gain)
