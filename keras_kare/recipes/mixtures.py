"""Kernels of networks, mixed with a Laplace kernel, and what their machines predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kare.kernels import DenseOperator, Laplace
from keras_kare.machine.outer_product import slopes
from keras_kare.recipes.recipe import Key, Recipe
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers import Spectral, System

LAPLACE_BYTES = 2**30
"""Bytes that values of the Laplace kernel hold while they are computed."""


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


def laplace(scale: float | str = "median") -> Laplace:
    """Return the kernel of rough targets, in float64."""
    return Laplace(scale, memory_limit=LAPLACE_BYTES, dtype="float64")


def laplace_cross(x1: np.ndarray, x2: np.ndarray, scale: float) -> np.ndarray:
    """Return `exp(-‖x - x'‖/s)`, `(m, n)`."""
    return np.asarray(laplace(scale).cross(x1, x2))


def laplace_slopes(
    x1: np.ndarray, x2: np.ndarray, scale: float, v: np.ndarray
) -> np.ndarray:
    """Return `∂/∂x Σ_j exp(-‖x - x'_j‖/s) v_j`, `(m, d, c)`; a kink counts as flat.

    Args:
        x1: `(m, d)`.
        x2: `(n, d)`.
        scale: `s`.
        v: `(n, c)`.
    """

    def sums(rows: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matmul(laplace(scale).cross(rows, x2), tf.constant(v))

    return np.stack(slopes(sums, tf.constant(x1)), axis=2)


def laplace_scale(x: np.ndarray, bandwidth: float) -> float:
    """Return `s`: a multiple of the median distance of different rows."""
    kernel = laplace()
    kernel.adapt(x)
    return bandwidth * float(np.exp(kernel.log_scale.numpy()))


def rough_kernels(x: np.ndarray, x_test: np.ndarray, bandwidth: float) -> Kernels:
    """Return the Laplace kernel; its scale is a multiple of the median distance in `x`."""
    scale = laplace_scale(x, bandwidth)
    gram = np.asarray(laplace(scale).gram(x))
    return Kernels(gram, laplace_cross(x_test, x, scale), np.ones(len(x_test)))


def mix(smooth: Kernels, rough: Kernels, share: float) -> Kernels:
    """Add two kernels, the second with a share."""
    pairs = zip(smooth, rough, strict=True)
    return Kernels(*((1.0 - share) * a + share * b for a, b in pairs))


def path(
    mixed: Kernels,
    y: np.ndarray,
    ridges: Sequence[float],
    weights: np.ndarray | None = None,
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
    """
    system = System(DenseOperator(mixed.gram), np.asarray(y, "float64"), weights)
    spectral, n = Spectral().prepare(system), system.count
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


def predictions(
    recipe: Recipe,
    trained: Mapping[int, Kernels],
    rough: Kernels,
    y: np.ndarray,
    weights: np.ndarray | None = None,
) -> dict[Key, Predicted]:
    """Predict by every machine that may be chosen.

    Args:
        recipe: Settings.
        trained: Kernels by number of steps.
        rough: The Laplace kernel.
        y: Targets of the rows `X`, `(n, c)`.
        weights: How often each row counts, `(n,)`. Defaults to once.

    Returns:
        Predictions by key. The Laplace kernel alone is that of 0 steps.
    """
    return {
        Key(steps, share, ridge): predicted
        for steps, smooth in trained.items()
        for share in recipe.shares
        if share != 1.0 or steps == 0  # alone it is the same for all steps
        for ridge, predicted in path(
            mix(smooth, rough, share), y, recipe.ridges, weights
        ).items()
    }
