"""Do trained networks predict as their kernels do? Over depth and width, on two data sets.

"Issues with neural tangent kernel approach to neural networks", arXiv:2501.10929: see
`keras_kare.diagnostics.equivalence`.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_kare import datasets
from keras_kare.diagnostics import equivalence
from keras_kare.experiments.store import Job, Row

DEPTHS = (1, 2, 4)
WIDTHS = (32, 128, 512)
TRAIN, TEST = 100, 400
"""Rows to train and to test on."""

STEPS = 3000


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Return a job a data set, depth, width and seed; the longest first."""
    return [
        {
            "experiment": "equivalence",
            "dataset": dataset,
            "depth": depth,
            "width": width,
            "seed": seed,
        }
        for width in sorted(WIDTHS, reverse=True)
        for depth in sorted(DEPTHS, reverse=True)
        for seed in seeds
        for dataset in ("mnist", "simulation")
    ]


def work(job: Job, steps: int = STEPS) -> list[Row]:
    """Train one ReLU network, and compare it with its kernels."""
    x, y = data(job["dataset"], job["seed"])
    keras.utils.set_random_seed(job["seed"])
    hidden = [
        keras.layers.Dense(job["width"], "relu", kernel_initializer="he_normal")
        for _ in range(job["depth"])
    ]
    network = keras.Sequential([keras.Input(x.shape[1:]), *hidden, keras.layers.Dense(1)])
    found = equivalence(network, x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], steps)
    names = ("learner", "error", "gap", "train_error", "drift")
    return [{name: row[name] for name in names} for row in found.rows]


def data(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows `(n, d)`, and targets, `(n, 1)`: those to train on come first.

    Args:
        name: `"mnist"`: digits of length one, even against odd, in -1 and 1;
            `"simulation"`: the paper's function of one direction, with noise.
        seed: Chooses the rows.
    """
    if name == "simulation":
        split = datasets.simulation(gamma=1.0, sigma=0.1, seed=seed)
        x, y = split.x[: TRAIN + TEST], split.y[: TRAIN + TEST]
    else:
        split = datasets.mnist_digits()
        rows = np.random.default_rng(seed).permutation(len(split.x))[: TRAIN + TEST]
        x = split.x[rows].reshape(len(rows), -1)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = np.where(np.argmax(split.y[rows], axis=1) % 2 == 0, 1.0, -1.0)[:, None]
    return x.astype("float32"), y.astype("float32")
