"""A small network's kernel, trained again and again from other starts."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import NTK
from keras_kare.losses import GramLoss
from keras_kare.recipes.descent import Descent


class Workbench:
    """A network, its kernel, and its training, traced once for any rows and any start.

    Cross-fitting and experiments train hundreds of networks of one shape. Tracing takes
    longer than training one of them, so that all go through the same graph, with other
    weights.

    Args:
        network: With an input of one array.
        loss: What trains the kernel.
        optimizer: A Keras optimizer.
        outputs: As in `NTK`. Defaults to `"sum"`.

    Attributes:
        network: As given.
        kernel: Its `NTK`.
        descent: The `Descent` of the two.
    """

    def __init__(
        self, network: keras.Model, loss: GramLoss, optimizer: Any, outputs: str = "sum"
    ):
        self.network = network
        self.kernel = NTK(network, outputs=outputs)
        self.descent = Descent(self.kernel, loss, optimizer)
        self._rows = tf.TensorSpec((None, *network.inputs[0].shape[1:]), self._dtype)

    @property
    def _dtype(self) -> Any:
        return self.network.inputs[0].dtype

    def _traced(self, function: Any, arguments: int) -> Any:
        """Trace a function of rows whose values are in float64."""
        graph = tf.function(lambda *rows: function(*rows, dtype="float64"), autograph=False)
        return graph.get_concrete_function(*[self._rows] * arguments)

    @functools.cached_property
    def _gram(self) -> Any:
        return self._traced(self.kernel.gram, 1)

    @functools.cached_property
    def _cross(self) -> Any:
        return self._traced(self.kernel.cross, 2)

    @functools.cached_property
    def _diag(self) -> Any:
        return self._traced(self.kernel.diag, 1)

    def start(self, weights: list[np.ndarray]) -> None:
        """Set the network's weights, and the optimizer to its start."""
        self.network.set_weights(weights)
        self.descent.restart()

    def gram(self, x: np.ndarray) -> np.ndarray:
        """Return `K(X, X)` in float64, `(n, n)`."""
        return np.asarray(self._gram(tf.cast(x, self._dtype)))

    def cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Return `K(x, X)` in float64, `(m, n)`."""
        return np.asarray(self._cross(tf.cast(x1, self._dtype), tf.cast(x2, self._dtype)))

    def diag(self, x: np.ndarray) -> np.ndarray:
        """Return `K(x, x)` of each row in float64, `(m,)`."""
        return np.asarray(self._diag(tf.cast(x, self._dtype)))
