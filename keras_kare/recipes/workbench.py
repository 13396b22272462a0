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
        self._traced: dict[str, Any] = {}

    def start(self, weights: list[np.ndarray]) -> None:
        """Set the network's weights, and the optimizer to its start."""
        self.network.set_weights(weights)
        self.descent.restart()

    def gram(self, x: np.ndarray) -> np.ndarray:
        """Return `K(X, X)` in float64, `(n, n)`."""
        return self._values("gram", x)

    def cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Return `K(x, X)` in float64, `(m, n)`."""
        return self._values("cross", x1, x2)

    def diag(self, x: np.ndarray) -> np.ndarray:
        """Return `K(x, x)` of each row in float64, `(m,)`."""
        return self._values("diag", x)

    def _values(self, verb: str, *rows: np.ndarray) -> np.ndarray:
        """Return what the kernel says of rows, of any number by the same trace."""
        first = self.network.inputs[0]
        if verb not in self._traced:
            work = functools.partial(getattr(self.kernel, verb), dtype="float64")
            spec = tf.TensorSpec((None, *first.shape[1:]), first.dtype)
            graph = tf.function(lambda *x: work(*x), autograph=False)
            self._traced[verb] = graph.get_concrete_function(*[spec] * len(rows))
        return np.asarray(self._traced[verb](*(tf.cast(x, first.dtype) for x in rows)))
