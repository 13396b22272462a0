"""How near the NTKs of random networks are to that of infinite width.

Jacot, Gabriel, Hongler, arXiv:1806.07572: where weights are drawn from `N(0, 1)` and
layers divide by the root of their inputs' number, the NTK of a network of width `m` comes
near the kernel of infinite width, off by about `m^(−1/2)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import numpy as np

from keras_kare.callbacks import spectrum
from keras_kare.experiments import equivalence_jobs
from keras_kare.experiments.store import Job, Row
from keras_kare.kernels import NTK, InfiniteWidth

ACTIVATIONS = ("relu", "gelu")
DEPTHS = (1, 3)
WIDTHS = (32, 128, 512, 2048)
ROWS = 50
"""Digits of MNIST, the same in all jobs: seeds draw networks."""

WEIGHT_STD = 2.0**0.5


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Return a job a seed."""
    return [{"experiment": "convergence", "seed": seed} for seed in seeds]


def work(job: Job) -> list[Row]:
    """Draw a network of each kind and width; compare NTKs with those of infinite width."""
    x, _ = equivalence_jobs.data("mnist", 0)
    x = x[:ROWS] * np.sqrt(x.shape[1], dtype="float32")
    keras.utils.set_random_seed(job["seed"])
    rows = []
    for activation, depth in itertools.product(ACTIVATIONS, DEPTHS):
        infinite = InfiniteWidth(depth, activation, weight_std=WEIGHT_STD)
        limit = np.array(infinite.gram(x, dtype="float64"))
        for width in WIDTHS:
            kernel = NTK(drawn(x.shape[1], depth, width, activation))
            error = spectrum.drift(np.array(kernel.gram(x, dtype="float64")), limit)
            kind = {"activation": activation, "depth": depth, "width": width}
            rows.append({**kind, "error": error})
    return rows


def drawn(columns: int, depth: int, width: int, activation: str) -> keras.Model:
    """Return a network whose weights are of `N(0, 1)`, and scaled where they are used."""
    normal = keras.initializers.RandomNormal  # one that is shared draws the same again
    layers: list[keras.layers.Layer] = []
    sizes = [columns, *[width] * depth, 1]
    for inputs, units in itertools.pairwise(sizes):
        layers += [
            keras.layers.Rescaling(WEIGHT_STD / inputs**0.5),
            keras.layers.Dense(
                units, activation, use_bias=False, kernel_initializer=normal(stddev=1.0)
            ),
        ]
    layers[-1].activation = keras.activations.linear
    return keras.Sequential([keras.Input((columns,)), *layers])
