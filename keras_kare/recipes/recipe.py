"""A recipe: what is trained, for how long, and which machines may be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_kare.recipes.defaults import DEFAULTS

RIDGES = tuple(10.0 ** (i / 2) for i in range(-12, 7))
"""Relative ridges to choose from."""


class Rough(NamedTuple):
    """A Laplace kernel beside the networks': see `keras_kare.recipes.rough`.

    Attributes:
        distance: `"l2"` or `"l1"`.
        bandwidth: Its scale, in median distances of training rows.
        rounds: How often its metric was learnt.
    """

    distance: str = "l2"
    bandwidth: float = 1.0
    rounds: int = 0


ROUGH = Rough()

ROUGHS = (
    *(Rough(rounds=count) for count in range(4)),
    *(Rough("l1", bandwidth) for bandwidth in (0.5, 1.0, 2.0, 4.0)),
)
"""The Laplace kernels to choose from on small tables."""

SHARES = (0.0, 0.5, 1.0)
"""Shares of a Laplace kernel to choose from on tables of many rows."""


class Key(NamedTuple):
    """What is chosen of a machine.

    Attributes:
        steps: Of training, of the networks whose kernel it has.
        share: Of a Laplace kernel in its kernel: 1 for that one alone.
        ridge: Relative to `tr(K)/n²`.
        rough: Which Laplace kernel.
    """

    steps: int
    share: float
    ridge: float
    rough: Rough = ROUGH

    @property
    def kernel(self) -> tuple[int, float, Rough]:
        """All but the ridge."""
        return self.steps, self.share, self.rough


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
        shares: Shares of a Laplace kernel in the sum with a network's, to choose from on
            tables of many rows.
        rough: Laplace kernels to choose from on others.
        ridges: Relative ridges to choose from.
        machines: Most machines that are averaged.
    """

    learning_rate: float = DEFAULTS.learning_rate
    steps: tuple[int, ...] = checkpoints_to(DEFAULTS.epochs)
    batch_size: int = DEFAULTS.batch_size
    shares: tuple[float, ...] = SHARES
    rough: tuple[Rough, ...] = ROUGHS
    ridges: tuple[float, ...] = RIDGES
    machines: int = DEFAULTS.machines
