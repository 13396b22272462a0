"""How far the NTK moves while networks train: under squared loss, and cross-entropy.

"Divergence of empirical neural tangent kernel in classification problems",
arXiv:2504.11130: under squared loss the kernel of a wide network stays near its start
however long it trains; under cross-entropy, once rows are separated, outputs and weights
grow for ever, and the kernel leaves its start at any width.

Gradient descent on all rows, at a rate of a quarter over the largest eigenvalue of `K/n` at
the start, so that networks of all widths take the same steps in function space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import datasets
from keras_kare.callbacks import spectrum
from keras_kare.diagnostics.self_training import RATE, gradient_descent
from keras_kare.experiments.store import Job, Row
from keras_kare.kernels import NTK

WIDTHS = (32, 128, 512)
LOSSES = ("squared", "cross-entropy")
STEPS = (0, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of steps after which the kernel is looked at."""

ROWS = 48
"""Digits of MNIST parity; the circle has 20 points."""


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Return a job a data set, architecture, width, loss and seed; the longest first."""
    return [
        {
            "experiment": "drift",
            "dataset": dataset,
            "architecture": architecture,
            "width": width,
            "loss": loss,
            "seed": seed,
        }
        for width in sorted(WIDTHS, reverse=True)
        for seed in seeds
        for dataset in ("parity", "circle")
        for architecture in ("residual", "dense")
        for loss in LOSSES
    ]


def work(job: Job, steps: Sequence[int] = STEPS) -> list[Row]:
    """Train, and look at the kernel on the training rows after some numbers of steps."""
    keras.utils.set_random_seed(job["seed"])
    x, y = data(job["dataset"], job["seed"])
    network = NETWORKS[job["architecture"]](x.shape[1], job["width"])
    kernel = NTK(network)
    start = kernel.gram(x, dtype="float64").numpy()
    rate = RATE * len(x) / np.linalg.eigvalsh(start)[-1]
    given = network, tf.constant(x), tf.constant(y)
    train = gradient_descent(*given, LOSS[job["loss"]], float(rate))
    rows, before = [], 0
    for step in steps:
        train(tf.constant(step - before))
        before = step
        gram, outputs = kernel.gram(x, dtype="float64").numpy(), network(x).numpy()
        rows.append(
            {
                "steps": step,
                "drift": spectrum.drift(gram, start),
                "smallest_eigenvalue": np.linalg.eigvalsh(gram / len(x))[0],
                "weights_norm": spectrum.norm(network.get_weights()),
                "loss_value": float(LOSS[job["loss"]](outputs, y)),
                "accuracy": float(np.mean(np.sign(outputs) == y)),
            }
        )
    return rows


def data(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows `(n, d)` of length one, and targets in -1 and 1, `(n, 1)`.

    Args:
        name: `"circle"`: 20 points, of which each fifth of the round has the other sign;
            `"parity"`: digits of MNIST, even against odd.
        seed: Chooses the digits.
    """
    if name == "circle":
        angles = 2.0 * np.pi * (np.arange(20) + 0.5) / 20
        x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        y = np.where(np.arange(20) // 4 % 2 == 0, 1.0, -1.0)
    else:
        split = datasets.mnist_digits()
        rows = np.random.default_rng(seed).permutation(len(split.x))[:ROWS]
        x = split.x[rows].reshape(ROWS, -1)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = np.where(np.argmax(split.y[rows], axis=1) % 2 == 0, 1.0, -1.0)
    return x.astype("float32"), y.astype("float32")[:, None]


def _dense(columns: int, width: int) -> keras.Model:
    """Make a network of two hidden layers of ReLU."""
    inputs = keras.Input((columns,))
    h = inputs
    for _ in range(2):
        h = keras.layers.Dense(width, "relu", kernel_initializer="he_normal")(h)
    return keras.Model(inputs, _last(h))


def _residual(columns: int, width: int) -> keras.Model:
    """Make a network of two residual blocks."""
    inputs = keras.Input((columns,))
    h = keras.layers.Dense(width, kernel_initializer="he_normal")(inputs)
    for _ in range(2):
        inner = keras.layers.Dense(width, "relu", kernel_initializer="he_normal")(h)
        h = keras.layers.Add()([h, inner])
    return keras.Model(inputs, _last(h))


def _last(h: Any) -> Any:
    return keras.layers.Dense(1, kernel_initializer="lecun_normal")(h)


NETWORKS = {"dense": _dense, "residual": _residual}

LOSS = {
    "squared": lambda f, y: 0.5 * tf.reduce_mean(tf.square(f - y)),
    "cross-entropy": lambda f, y: tf.reduce_mean(tf.nn.softplus(-y * f)),
}
"""Losses of outputs for targets in -1 and 1."""
