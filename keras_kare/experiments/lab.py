"""Networks trained by KARE and by squared error, and the machines of their kernels."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.experiments import settings
from keras_kare.experiments.settings import PAPER_OBJECTIVE, Architecture, Training
from keras_kare.losses import KARE
from keras_kare.recipes.mixtures import Kernels, kernels, path
from keras_kare.recipes.perceptrons import draw_weights, make_network
from keras_kare.recipes.workbench import Workbench


class Lab(Workbench):
    """One network, its kernel, and both trainings, each compiled once.

    Args:
        inputs: Features.
        outputs: Outputs of the network; its kernel is the NTK of their sum.
        architecture: Depth and width.
    """

    def __init__(self, inputs: int, outputs: int, architecture: Architecture):
        sizes = (architecture.width,) * architecture.depth
        super().__init__(
            make_network(inputs, sizes, outputs, architecture.activation, "float32"),
            KARE(PAPER_OBJECTIVE.ridge, PAPER_OBJECTIVE.relative),
            keras.optimizers.get(PAPER_OBJECTIVE.optimizer),
        )
        rows = tf.TensorSpec((None, inputs))
        self._all_rows = tf.function(self._mse_all_rows, autograph=False, jit_compile=True)
        number, targets = tf.TensorSpec((), tf.int32), tf.TensorSpec((None, outputs))
        self._batches = tf.function(
            self._mse_batches,
            autograph=False,
            input_signature=[rows, targets, tf.TensorSpec(()), *[number] * 3],
        )

    def draw(self, initialization: str, seed: int) -> None:
        """Start from the weights of a seed."""
        self.start(initial_weights(self.network, initialization, seed))

    def train_kare(self, x: np.ndarray, y: np.ndarray, training: Training) -> bool:
        """Descend on KARE, from where the weights are.

        Returns:
            Whether every loss was finite.
        """
        return bool(np.all(np.isfinite(self.kare_losses(x, y, training))))

    def kare_losses(self, x: np.ndarray, y: np.ndarray, training: Training) -> np.ndarray:
        """Descend on KARE, as `train_kare`; return losses, as `Descent.run`."""
        batches = batches_of(len(x), training.batch_size)
        steps = training.epochs * batches
        return self.descent.run(x, y, training.learning_rate, steps, batches)

    def train_mse(
        self, x: np.ndarray, y: np.ndarray, training: Training, seed: int
    ) -> None:
        """Descend on the network's squared error."""
        x, y = (tf.constant(a, "float32") for a in (x, y))
        rate, epochs = tf.constant(training.learning_rate), tf.constant(training.epochs)
        if training.batch_size is None or training.batch_size >= len(x):
            self._all_rows(x, y, rate, epochs)
        else:
            self._batches(x, y, rate, epochs, training.batch_size, seed)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Return the network's outputs, `(m, c)`."""
        return np.asarray(self.network(np.asarray(x, "float32")))

    def predictions(
        self, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, ridges: Any
    ) -> dict[float, np.ndarray]:
        """Predict by the kernel's machine for each relative ridge, `(m, c)` in float64.

        None at all where the kernel is not finite: training has diverged.
        """
        found = kernels(self, x, x_test)
        return {} if found is None else values(found, y, ridges)

    def _descend(self, x: tf.Tensor, y: tf.Tensor, rate: tf.Tensor) -> None:
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.network(x, training=True) - y))
        for variable, gradient in zip(
            variables, tape.gradient(loss, [v.value for v in variables]), strict=True
        ):
            variable.assign_sub(rate * gradient)

    def _mse_all_rows(
        self, x: tf.Tensor, y: tf.Tensor, rate: tf.Tensor, epochs: tf.Tensor
    ) -> tf.Tensor:
        def step(i: tf.Tensor) -> tuple[tf.Tensor]:
            self._descend(x, y, rate)
            return (i + 1,)

        return tf.while_loop(lambda i: i < epochs, step, (tf.constant(0),))[0]

    def _mse_batches(
        self, x: tf.Tensor, y: tf.Tensor, rate: Any, epochs: Any, size: Any, seed: Any
    ) -> tf.Tensor:
        """Descend by batches, in a new order each epoch; the last may be smaller."""
        n = tf.shape(x)[0]

        def epoch(i: tf.Tensor) -> tuple[tf.Tensor]:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(n), tf.stack([seed, i])
            )

            def batch(at: tf.Tensor) -> tuple[tf.Tensor]:
                rows = order[at : at + size]
                self._descend(tf.gather(x, rows), tf.gather(y, rows), rate)
                return (at + size,)

            tf.while_loop(lambda at: at < n, batch, (tf.constant(0),))
            return (i + 1,)

        return tf.while_loop(lambda i: i < epochs, epoch, (tf.constant(0),))[0]


@functools.lru_cache(maxsize=8)
def lab(inputs: int, outputs: int, architecture: Architecture) -> Lab:
    """Return the `Lab` of a shape, made once in each process."""
    return Lab(inputs, outputs, architecture)


def initial_weights(
    network: keras.Model, initialization: str, seed: int
) -> list[np.ndarray]:
    """Draw weights to start from, in the order of `network.get_weights()`.

    Args:
        network: Made of dense layers: kernels and biases in turn.
        initialization: `"torch"` is the published code's: PyTorch's default for `Linear`,
            kernels and biases uniform in ±1/√n_in. `"paper"` is that of the paper's
            Table 2: kernels uniform in ±√(6/n_in) (He et al. 2015), the biases as before.
        seed: Seed of a generator of its own.
    """
    _validation.check_option("initialization", initialization, settings.INITIALIZATIONS)
    gain = 1.0 if initialization == "torch" else math.sqrt(6.0)
    return draw_weights(network, np.random.default_rng(seed), gain)


def batches_of(rows: int, size: int | None) -> int:
    """Return into how many even batches rows are cut, for none to be larger than `size`."""
    return 1 if size is None else -(-rows // size)


def values(found: Kernels, y: np.ndarray, ridges: Any) -> dict[float, np.ndarray]:
    """Predict by a machine for each relative ridge, `(m, c)`."""
    return {ridge: predicted.values for ridge, predicted in path(found, y, ridges).items()}
