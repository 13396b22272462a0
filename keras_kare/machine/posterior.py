"""How sure a kernel machine is: it is the mean of a Gaussian process."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare._linalg import inverse_cholesky
from keras_kare.kernels.kernel import Kernel
from keras_kare.solvers import System

CHUNK = 4096
"""Rows whose variance is computed at a time."""


class Posterior:
    """The Gaussian process whose mean is the kernel machine `(K/n + λI) α = y`.

    Its kernel is `s² K`, and its targets carry noise of variance `s² n λ`, which leaves
    the mean as it is for any `s`. With `A = K/n + λI` the variance of the function is

        var f(x) = s² (K(x, x) − (1/n) K(x, X) A⁻¹ K(X, x)).

    An intercept is a constant of which nothing is known beforehand: with `u = A⁻¹1` it adds
    `s² n (1 − (1/n) K(x, X) u)²/(1ᵀu)`, and `P = A⁻¹ − u uᵀ/(1ᵀu)` takes the place of
    `A⁻¹` below.

    `s²` is chosen for each target so that leave-one-out errors are as large as they are
    said to be: the mean over rows of `e_i² / v_i` is one, where `e_i = a_i/(A⁻¹)_ii` is
    the error and `v_i = s² n/(A⁻¹)_ii` its variance, noise included.

    Rows that count `w_i` times are as many rows: what is left out is one of them, while
    the others stay. With `a` and `d = diag(A⁻¹)` of the system of `keras_kare.risk`, a copy
    has `e²/v` of `(a_i²/w_i)/(d_i/w_i + (1 − 1/w_i)/λ)` in units of `1/(s² N)`, and there
    are `w_i` of them. Where `w_i < 1` all of the row is left out. A row that counts zero
    times is not there.

    Args:
        system: What was solved.
        ridge: The `λ` it was solved at.

    Attributes:
        scale: `s²`, `(c,)`.
        unit_noise: `n λ`; a row that counts `w` times has it divided by `w`.

    References:
        - Rasmussen, Williams, "Gaussian Processes for Machine Learning", equations 2.26,
          2.42 (the constant) and 5.10 to 5.12.
    """

    def __init__(self, system: System, ridge: float):
        self._system, rows = system, system.rows
        matrix = system.scaled.dense() / rows
        matrix[np.diag_indices(rows)] += ridge
        factor, _ = inverse_cholesky(tf.constant(matrix))
        self._factor = factor.numpy()
        half = self._factor @ system.y
        diagonal = np.sum(self._factor**2, axis=0)
        self._constant: np.ndarray | None = None
        if system.intercept:
            root = self._factor @ system.root
            self._constant = root / np.linalg.norm(root)
            self._constant_norm = float(np.linalg.norm(root))
            half -= np.outer(self._constant, self._constant @ half)
            diagonal = diagonal - (self._constant @ self._factor) ** 2
        a = self._factor.T @ half
        self.scale = _scale(a, diagonal, system.root**2, ridge) / system.count**2
        self.unit_noise = system.count * ridge

    @property
    def noise(self) -> np.ndarray:
        """`s² n λ`, `(c,)`: the variance of the noise."""
        return self.scale * self.unit_noise

    def unit_variance(self, prior: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """Return `var f(x)/s²` of rows, `(m,)`, from `K(x, x)` and `K(x, X)`, `(m, n)`."""
        count = self._system.count
        seen = (cross * self._system.root) @ self._factor.T
        # Rounding may leave less than nothing at rows that are well known.
        variance = np.maximum(prior - np.sum(seen**2, axis=1) / count, 0.0)
        if self._constant is None:
            return variance
        unseen = 1.0 / self._constant_norm - seen @ self._constant / count
        return variance + count * unseen**2

    def unit_variance_at(self, kernel: Kernel, x: Any, anchors: Any) -> np.ndarray:
        """Return `var f(x)/s²` of the rows `x`, `(m,)`, a few at a time."""
        parts = [
            self.unit_variance(
                kernel.diag(rows, dtype="float64").numpy(),
                kernel.cross(rows, anchors, dtype="float64").numpy(),
            )
            for rows in _rows.slices(x, CHUNK)
        ]
        return np.concatenate(parts)


def _scale(
    a: np.ndarray, diagonal: np.ndarray, weights: np.ndarray, ridge: float
) -> np.ndarray:
    """Return the sum over rows of `e²/v` in units of `1/(s² N)`, one copy out, `(c,)`."""
    copies = np.maximum(weights, 1.0)
    of_copy = diagonal / copies + (1.0 - 1.0 / copies) / ridge
    times = np.minimum(weights, 1.0)  # w (a²/w) = a² for copies
    return np.sum(times[:, None] * a**2 / of_copy[:, None], axis=0)
