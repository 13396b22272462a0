"""Kernels of networks and Laplace kernels, and what their machines predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_kare.recipes.recipe import Key, Recipe
from keras_kare.recipes.rough import eigenproblem, rough_kernels
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers.spectral import SpectralPrepared


class Kernels(NamedTuple):
    """Values `K(X, X)`, `(n, n)`; `K(x, X)`, `(m, n)`; `K(x, x)`, `(m,)`; of rows `x`."""

    gram: np.ndarray
    cross: np.ndarray
    prior: np.ndarray


class Predicted(NamedTuple):
    """Predictions `(m, c)` and their variances `(m,)`, in units of `s²`, with noise."""

    values: np.ndarray
    variances: np.ndarray


def unit_of(gram: np.ndarray, rows: int | None = None) -> float | None:
    """Return the mean diagonal of the first rows; `None` where not finite, or zero."""
    unit = float(np.mean(np.diag(gram)[:rows]))
    return unit if np.all(np.isfinite(gram)) and unit > 0.0 else None


def kernels(bench: Workbench, x: np.ndarray, x_test: np.ndarray) -> Kernels | None:
    """Return a network's kernel, divided by the mean of `K(X, X)`'s diagonal.

    All are parts of one Gram matrix, so that one function of the network is traced.

    Args:
        bench: The network.
        x: `(n, d)`.
        x_test: `(m, d)`.

    Returns:
        The kernel values; `None` where they are not finite, or zero.
    """
    n, every = len(x), bench.gram(np.concatenate([x, x_test]))
    unit = unit_of(every, n)
    if unit is None:
        return None
    every = every / unit
    return Kernels(every[:n, :n], every[n:, :n], np.diag(every)[n:])


def mean_kernels(found: Sequence[Kernels]) -> Kernels:
    """Average the kernels of several networks."""
    return Kernels(*(np.mean(parts, axis=0) for parts in zip(*found, strict=True)))


def mix(smooth: Kernels | None, rough: Kernels | None, share: float) -> Kernels:
    """Add two kernels, the second with a share; one alone may stand for itself."""
    if rough is None or smooth is None:
        (alone,) = (each for each in (smooth, rough) if each is not None)
        return alone
    pairs = zip(smooth, rough, strict=True)
    return Kernels(*((1.0 - share) * a + share * b for a, b in pairs))


def path(
    mixed: Kernels,
    y: np.ndarray,
    ridges: Sequence[float],
    weights: np.ndarray | None = None,
    spectral: SpectralPrepared | None = None,
) -> dict[float, Predicted]:
    """Predict for each relative ridge `λ̃`, `λ = λ̃ tr(K)/n²`, by one eigenproblem.

    With `K/n = Q diag(e) Qᵀ` and `S = K(x, X) Q/n`, the mean is `S (Qᵀ y)/(e + λ)` and the
    variance of a new observation `K(x, x) − n S²/(e + λ) + nλ`. With weights `W½ K W½/N`,
    `K(x, X) W½` and `W½ y` stand in for `K/n`, `K(x, X)` and `y`, and `N = Σ w` for `n`.

    Args:
        mixed: The kernel.
        y: Targets, `(n, c)`.
        ridges: Relative ridges.
        weights: How often each row counts, `(n,)`. Defaults to once.
        spectral: The eigenproblem, where it is at hand.
    """
    if spectral is None:
        spectral = eigenproblem(mixed.gram, y, weights)
    system = spectral.system
    n = system.count
    cross = mixed.cross if weights is None else mixed.cross * system.root
    rotated, seen = spectral.vectors.T @ system.y, cross @ spectral.vectors / n
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


def rough_predictions(
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    weights: np.ndarray | None = None,
) -> Iterator[dict[Key, Predicted]]:
    """Predict by machines of Laplace kernels, those of one kernel at a time.

    Args:
        recipe: Settings.
        x: The rows `X`, `(n, d)`.
        y: Their targets, `(n, c)`.
        x_test: The rows to predict, `(m, d)`.
        weights: How often each row counts, `(n,)`. Defaults to once.
    """
    for kind, (kernel, gram, spectral) in rough_kernels(
        x, y, recipe.rough, recipe.ridges, weights
    ):
        rough = Kernels(gram, kernel.cross(x_test, x), np.ones(len(x_test)))
        found = path(rough, y, recipe.ridges, weights, spectral)
        yield {Key(0, 1.0, ridge, kind): each for ridge, each in found.items()}


def smooth_predictions(
    recipe: Recipe,
    trained: Mapping[int, Kernels],
    y: np.ndarray,
    weights: np.ndarray | None = None,
) -> Iterator[dict[Key, Predicted]]:
    """Predict by machines of networks' kernels, those of one kernel at a time.

    Args:
        recipe: Settings.
        trained: Networks' kernels by number of steps.
        y: Targets of the rows `X`, `(n, c)`.
        weights: How often each row counts, `(n,)`. Defaults to once.
    """
    for steps, kernel in trained.items():
        found = path(kernel, y, recipe.ridges, weights)
        yield {Key(steps, 0.0, ridge): each for ridge, each in found.items()}
