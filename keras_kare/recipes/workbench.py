"""A small network's kernel, trained again and again from other starts."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import NTK
from keras_kare.losses import GramLoss
from keras_kare.recipes.descent import Descent, copy_of


class Workbench:
    """A network, its kernel, and its training, traced once for any rows and any start.

    Cross-fitting and experiments train hundreds of networks of one shape. Tracing takes
    longer than training one of them, so that all go through the same graph, with other
    weights.

    Args:
        network: With an input of one array. Rows of fewer columns get columns of zeros:
            these change no kernel value, and no gradient.
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

    def train(
        self,
        x: np.ndarray,
        y: np.ndarray,
        learning_rate: float,
        steps: int,
        batches: int,
        seed: int,
        weights: np.ndarray | None,
    ) -> np.ndarray:
        """Take steps from where the weights are; return losses, as `Descent.run`."""
        rows = self._rows(x)
        return self.descent.run(rows, y, learning_rate, steps, batches, seed, weights)

    def weights(self) -> list[np.ndarray]:
        """Return the network's weights of this moment."""
        return list(map(copy_of, self.network.weights))

    def gram(self, x: np.ndarray) -> np.ndarray:
        """Return `K(X, X)` in float64, `(n, n)`."""
        return self._values("gram", x)

    def cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Return `K(x, X)` in float64, `(m, n)`."""
        return self._values("cross", x1, x2)

    def narrow_cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Return `K(x, X)`, `(m, n)`, in the type of the network."""
        return self._values("cross", x1, x2, dtype=None)

    def diag(self, x: np.ndarray) -> np.ndarray:
        """Return `K(x, x)` of each row in float64, `(m,)`."""
        return self._values("diag", x)

    def vjp(self, x: np.ndarray, v: np.ndarray) -> list[tf.Tensor]:
        """Return `Jᵀ v` for `v`, `(n, c)`, in float64, as `NTK.vjp`."""
        work = functools.partial(self.kernel.vjp, dtype="float64")
        spec = tf.TensorSpec((None, None), tf.float64)
        return list(self._trace("vjp", work, spec)(self._rows(x), tf.constant(v)))

    def jvp(self, x: np.ndarray, w: list[tf.Tensor]) -> np.ndarray:
        """Return `J w`, `(m, c)`, for `w` of `vjp`: in forward mode, without its rows."""
        specs = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in w]
        graph = self._trace("jvp", lambda x, *w: self.kernel.jvp(x, list(w)), *specs)
        return np.asarray(graph(self._rows(x), *w))

    def slopes(self, x: np.ndarray, w: list[tf.Tensor]) -> np.ndarray:
        """Return how `J w` changes with the inputs, `(m, d, c)`, for `w` of `vjp`."""
        specs = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in w]

        def work(x: tf.Tensor, *w: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                total = tf.reduce_sum(self.kernel.jvp(x, list(w)))
            return tape.gradient(total, x)  # rows do not depend on each other

        graph, rows = self._trace("slopes", work, *specs), self._rows(x)
        columns = [[part[i : i + 1] for part in w] for i in range(len(w[0]))]
        found = np.stack([graph(rows, *column) for column in columns], axis=2)
        return found[:, : x.shape[1]]

    def _values(
        self, verb: str, *rows: np.ndarray, dtype: str | None = "float64"
    ) -> np.ndarray:
        """Return what the kernel says of rows, of any number by the same trace."""
        work = functools.partial(getattr(self.kernel, verb), dtype=dtype)
        more = [self.descent.rows] * (len(rows) - 1)
        graph = self._trace(f"{verb} {dtype}", work, *more)
        return np.asarray(graph(*map(self._rows, rows)))

    def _trace(self, name: str, work: Any, *specs: tf.TensorSpec) -> Any:
        """Return the graph of that name, traced when first asked for."""
        if name not in self._traced:
            graph = tf.function(lambda *given: work(*given), autograph=False)
            self._traced[name] = graph.get_concrete_function(self.descent.rows, *specs)
        return self._traced[name]

    def _rows(self, x: np.ndarray) -> tf.Tensor:
        rows = self.descent.rows
        missing = [[0, 0], [0, rows.shape[1] - x.shape[1]]] if x.ndim == 2 else None
        x = tf.cast(x, rows.dtype)
        return x if missing is None else tf.pad(x, missing)
