"""A recipe: what is trained, for how long, and which machines may be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_kare.recipes.defaults import DEFAULTS

RIDGES = tuple(10.0 ** (i / 2) for i in range(-8, 7))
"""Relative ridges to choose from."""

SHARES = (0.0, 0.5, 1.0)
"""Shares of the Laplace kernel to choose from."""


class Key(NamedTuple):
    """What is chosen: steps of training, share of the Laplace kernel, relative ridge."""

    steps: int
    share: float
    ridge: float


class Start(NamedTuple):
    """A network's first weights, and the seed of its batches."""

    weights: list[np.ndarray]
    seed: int


def checkpoints_to(most: int) -> tuple[int, ...]:
    """Return 0, 10, 30, 100, 300 … steps, and the most."""
    steps = [0]
    for exponent in range(1, 10):
        steps += [10**exponent, 3 * 10**exponent]
    return (*(count for count in steps if count < most), most) if most else (0,)


@dataclass(frozen=True)
class Recipe:
    """Settings of cross-fitting and of the refit.

    Attributes:
        learning_rate: That of the optimizer.
        steps: Numbers of steps to choose from, rising from 0.
        batch_size: Most rows of a step.
        shares: Shares of a Laplace kernel in the sum, to choose from.
        ridges: Relative ridges to choose from.
        machines: How many machines are averaged.
        bandwidth: Scale of the Laplace kernel, in median distances of training rows.
    """

    learning_rate: float = DEFAULTS.learning_rate
    steps: tuple[int, ...] = checkpoints_to(DEFAULTS.epochs)
    batch_size: int = DEFAULTS.batch_size
    shares: tuple[float, ...] = SHARES
    ridges: tuple[float, ...] = RIDGES
    machines: int = DEFAULTS.machines
    bandwidth: float = 1.0
