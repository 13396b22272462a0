"""Spectral measures of kernels: what frequencies of random features are drawn from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Spectrum = Callable[[np.random.Generator, int, int], np.ndarray]
"""Takes a generator, `d` and `count`, and draws frequencies, `(d, count)`."""


def normal(rng: np.random.Generator, columns: int, count: int) -> np.ndarray:
    """Draw those of `exp(−‖x‖²/2)`: independent normal numbers."""
    return rng.normal(size=(columns, count))


def student(degrees: float) -> Spectrum:
    """Return what draws those of Matérn's kernel of `ν = degrees/2`.

    Multivariate t of so many degrees of freedom: normal frequencies over one size each.
    One degree, Cauchy's, is of `exp(−‖x‖)`.
    """

    def draw(rng: np.random.Generator, columns: int, count: int) -> np.ndarray:
        sizes = np.sqrt(rng.chisquare(degrees, size=count) / degrees)
        return normal(rng, columns, count) / sizes

    return draw


def cauchy(rng: np.random.Generator, columns: int, count: int) -> np.ndarray:
    """Draw those of `exp(−Σ_k |x_k|)`: independent Cauchy numbers."""
    return rng.standard_cauchy(size=(columns, count))
