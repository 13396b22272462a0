"""The settings of a recipe, kernels and their mixtures, and what may be chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_kare.kernels import DenseOperator
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers import Spectral, System

RIDGES = tuple(10.0 ** (i / 2) for i in range(-8, 7))
"""Relative ridges to choose from."""

SHARES = (0.0, 0.5, 1.0)
"""Shares of the Laplace kernel to choose from."""

CHUNK = 20
"""Steps between two looks at the clock."""


class Key(NamedTuple):
    """What is chosen: steps of training, share of the Laplace kernel, relative ridge."""

    steps: int
    share: float
    ridge: float


class Kernels(NamedTuple):
    """`K(X, X)`, `(n, n)`; `K(x, X)`, `(m, n)`; `K(x, x)`, `(m,)`, of other rows `x`."""

    gram: np.ndarray
    cross: np.ndarray
    prior: np.ndarray


class Predicted(NamedTuple):
    """Of rows `x`: `(m, c)`, and the variance in units of `s²`, noise included, `(m,)`."""

    values: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """Settings.

    Attributes:
        learning_rate: Of the optimizer.
        steps: Numbers of steps to choose from, rising from 0.
        batch_size: Most rows of a step.
        shares: Of a Laplace kernel in the sum, to choose from.
        ridges: Relative, to choose from.
        machines: How many are averaged.
        bandwidth: Of the Laplace kernel, in median distances of training rows.
    """

    learning_rate: float = 3e-3
    steps: tuple[int, ...] = (0, 10, 30, 100)
    batch_size: int = 512
    shares: tuple[float, ...] = SHARES
    ridges: tuple[float, ...] = RIDGES
    machines: int = 3
    bandwidth: float = 1.0


class Start(NamedTuple):
    """A network's first weights, and the seed of its batches."""

    weights: list[np.ndarray]
    seed: int


def checkpoints(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    start: Start,
    deadline: float | None = None,
) -> Iterator[int]:
    """Train, and stop for a look after each of the recipe's numbers of steps.

    Args:
        bench: The network, with the weights of that moment while it is looked at.
        recipe: Settings.
        x: `(n, d)`.
        y: `(n, c)`.
        start: Where the network starts.
        deadline: On the clock `time.perf_counter`: no number of steps comes after it.

    Yields:
        The number of steps; none after one whose loss was not finite.
    """
    bench.start(start.weights)
    batches = -(-len(x) // recipe.batch_size)
    before = 0
    for steps in recipe.steps:
        while before < steps:
            count = steps - before if deadline is None else min(CHUNK, steps - before)
            losses = bench.descent.run(
                x, y, recipe.learning_rate, count, batches, start.seed
            )
            before += count
            late = deadline is not None and time.perf_counter() >= deadline
            if late or not np.all(np.isfinite(losses)):
                return
        yield steps


def kernels(bench: Workbench, x: np.ndarray, x_test: np.ndarray) -> Kernels | None:
    """Divided by the mean of `K(X, X)`'s diagonal; `None` where not finite, or zero.

    All are parts of one Gram matrix, so that one function of the network is traced.

    Args:
        bench: The network.
        x: `(n, d)`.
        x_test: `(m, d)`.
    """
    n, every = len(x), bench.gram(np.concatenate([x, x_test]))
    unit = float(np.mean(np.diag(every)[:n]))
    if not np.all(np.isfinite(every)) or unit <= 0.0:
        return None
    every = every / unit
    return Kernels(every[:n, :n], every[n:, :n], np.diag(every)[n:])


def mean_kernels(found: Sequence[Kernels]) -> Kernels:
    """Of several networks."""
    return Kernels(*(np.mean(parts, axis=0) for parts in zip(*found, strict=True)))


def laplace(x1: np.ndarray, x2: np.ndarray, scale: float) -> np.ndarray:
    """`exp(-‖x - x'‖/s)`, `(m, n)`."""
    from scipy.spatial.distance import cdist

    return np.exp(-cdist(x1, x2) / scale)


def laplace_scale(x: np.ndarray, bandwidth: float) -> float:
    """`s`: a multiple of the median distance of different rows."""
    from scipy.spatial.distance import pdist

    distances = pdist(x)
    apart = distances[distances > 0.0]
    return bandwidth * (float(np.median(apart)) if len(apart) else 1.0)


def rough_kernels(x: np.ndarray, x_test: np.ndarray, bandwidth: float) -> Kernels:
    """The Laplace kernel; its scale is a multiple of the median distance in `x`."""
    scale = laplace_scale(x, bandwidth)
    return Kernels(laplace(x, x, scale), laplace(x_test, x, scale), np.ones(len(x_test)))


def predictions(
    recipe: Recipe, trained: Mapping[int, Kernels], rough: Kernels, y: np.ndarray
) -> dict[Key, Predicted]:
    """Of every machine that may be chosen.

    Args:
        recipe: Settings.
        trained: By number of steps.
        rough: The Laplace kernel.
        y: Targets of the rows `X`, `(n, c)`.

    Returns:
        By key. The Laplace kernel alone is that of 0 steps.
    """
    found: dict[Key, Predicted] = {}
    for steps, smooth in trained.items():
        for share in recipe.shares:
            if share == 1.0 and steps != 0:
                continue  # the same for all steps
            mixed = mix(smooth, rough, share)
            for ridge, predicted in path(mixed, y, recipe.ridges).items():
                found[Key(steps, share, ridge)] = predicted
    return found


def mix(smooth: Kernels, rough: Kernels, share: float) -> Kernels:
    """The sum of two kernels, the second with a share."""
    pairs = zip(smooth, rough, strict=True)
    return Kernels(*((1.0 - share) * a + share * b for a, b in pairs))


def path(mixed: Kernels, y: np.ndarray, ridges: Sequence[float]) -> dict[float, Predicted]:
    """Predictions for each relative ridge `λ̃`, `λ = λ̃ tr(K)/n²`, by one eigenproblem.

    With `K/n = Q diag(e) Qᵀ` and `S = K(x, X) Q/n`, the mean is `S (Qᵀ y)/(e + λ)` and the
    variance of a new observation `K(x, x) − n S²/(e + λ) + nλ`.
    """
    n = len(y)
    system = System(DenseOperator(mixed.gram), np.asarray(y, "float64"))
    spectral = Spectral().prepare(system)
    rotated, seen = spectral.vectors.T @ system.y, mixed.cross @ spectral.vectors / n
    squared, found = seen**2, {}
    for ridge in ridges:
        absolute = ridge * system.unit
        shrunk = 1.0 / (spectral.eigenvalues + absolute)
        known = n * (squared @ shrunk)
        found[float(ridge)] = Predicted(
            seen @ (rotated * shrunk[:, None]),
            np.maximum(mixed.prior - known, 0.0) + n * absolute,
        )
    return found


def best(errors: Mapping[Key, float], machines: int) -> list[Key]:
    """The best ridge of each number of steps and share, and of those the best few."""
    groups: dict[tuple[int, float], Key] = {}
    for key in sorted(errors, key=errors.__getitem__):
        groups.setdefault((key.steps, key.share), key)
    return list(groups.values())[:machines]


def folds_of(
    order: np.ndarray, folds: int, rng: np.random.RandomState | np.random.Generator
) -> np.ndarray:
    """The fold of each row, `(n,)`: the values of `order` are spread evenly."""
    shuffled = rng.permutation(len(order))
    ranked = shuffled[np.argsort(order[shuffled], kind="stable")]
    fold_of = np.empty(len(order), int)
    fold_of[ranked] = np.arange(len(order)) % folds
    return fold_of
