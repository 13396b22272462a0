"""A network that trains by itself, and the kernel machines that are to be like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import NTK

RATE = 0.25
"""Of the descent, times the largest eigenvalue of `K/n` at the start."""

JITTER = 1e-10
"""What is added to a Gram matrix's diagonal, in units of its mean."""


Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Of outputs and targets, `(n, c)`."""


def gradient_descent(
    network: keras.Model, x: Any, y: tf.Tensor, loss: Loss, rate: float
) -> Callable[[tf.Tensor], Any]:
    """Return a function that takes so many steps of plain gradient descent on all rows.

    Args:
        network: Whose weights move.
        x: `(n, ...)`.
        y: `(n, c)`.
        loss: What falls.
        rate: Of the descent.
    """
    variables = [v.value for v in network.trainable_variables]

    def step(i: tf.Tensor) -> tuple[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = loss(network(x), y)
        gradients = tape.gradient(value, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            if gradient is not None:
                variable.assign_sub(rate * gradient)
        return (i + 1,)

    def descend(steps: tf.Tensor) -> Any:
        return tf.while_loop(lambda i: i < steps, step, (tf.constant(0),))

    return tf.function(descend, autograph=False)


class SelfTraining:
    """Gradient descent on half the mean squared error of all rows, from now.

    Args:
        network: With `c` outputs; its weights move.
        x: `(n, ...)`.
        y: `(n, c)`.
        x_test: Other rows, `(m, ...)`.

    Each output of each row counts as a row: all are as of `n c` rows and one output.

    Attributes:
        kernel: Its NTK.
        gram, cross: `K(X, X)`, `(n c, n c)`, and `K(x, X)` at the start, float64.
        y: The targets, `(n c, 1)`.
        outputs: Of the rows at the start, `(n c, 1)` and `(m c, 1)`.
        rate: Of the descent.
    """

    def __init__(self, network: keras.Model, x: Any, y: np.ndarray, x_test: Any):
        self.network, self._shape = network, y.shape
        self.kernel = NTK(network, "sum" if y.shape[1] == 1 else "full")
        self.x, self.x_test, self.y = x, x_test, in_a_column(y)
        self.gram, self.cross = self.kernels()
        self.outputs = self.predict()
        self.rate = RATE * len(self.gram) / np.linalg.eigvalsh(self.gram)[-1]

    def kernels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `K(X, X)` and `K(x, X)` at the present weights."""
        wide = {"dtype": "float64"}
        gram = self.kernel.gram(self.x, **wide)
        cross = self.kernel.cross(self.x_test, self.x, **wide)
        return _of_outputs(np.array(gram)), _of_outputs(np.array(cross))

    def predict(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the network's outputs for the rows, and for the others, in columns."""
        rows, others = (self.network(x) for x in (self.x, self.x_test))
        return in_a_column(rows), in_a_column(others)

    def run(self, steps: int) -> None:
        """Take some steps."""
        y = tf.constant(self.y.reshape(self._shape), self.network.compute_dtype)
        step = gradient_descent(self.network, self.x, y, _half_squares, self.rate)
        step(tf.constant(steps))

    def linearised(self, steps: int) -> np.ndarray:
        """Return what the network that is linear in its weights predicts after steps.

        `f_0(x) + K(x, X) K⁻¹ (I − (I − ηK/n)^t) (y − f_0(X))`, of the NTK at the start.
        """
        values, vectors = np.linalg.eigh(self.gram)
        n, left = len(values), self.y - self.outputs[0]
        kept = np.power(1.0 - self.rate * values / n, steps)
        done = np.divide(
            1.0 - kept, values, np.full(n, steps * self.rate / n), where=values > 0
        )
        dual = vectors @ (done[:, None] * (vectors.T @ left))
        found: np.ndarray = self.outputs[1] + self.cross @ dual
        return found


def regression(gram: np.ndarray, cross: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the predictions of kernel regression without a ridge, `(m, c)`."""
    n = len(gram)
    jitter = JITTER * np.trace(gram) / n
    found: np.ndarray = cross @ np.linalg.solve(gram + jitter * np.eye(n), y)
    return found


def in_a_column(values: Any) -> np.ndarray:
    """Return values of outputs of rows, `(n, c)`, in one column: `(n c, 1)` float64."""
    return np.asarray(values, "float64").reshape(-1, 1)


def _of_outputs(kernel: np.ndarray) -> np.ndarray:
    """Return kernel values between outputs of rows, `(n1 c, n2 c)`, of all blocks."""
    if kernel.ndim == 2:
        return kernel
    n1, n2, c, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * c, n2 * c)


def _half_squares(outputs: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.reduce_mean(tf.square(outputs - y))
