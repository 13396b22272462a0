"""How sure a kernel machine is: it is the mean of a Gaussian process."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._linalg import inverse_cholesky
from keras_kare.kernels.kernel import Kernel
from keras_kare.layers.machine import System, chunks


class Posterior:
    """The Gaussian process whose mean is the kernel machine `(K/n + λI) α = y`.

    Its kernel is `s² K`, and its targets carry noise of variance `s² n λ`, which leaves
    the mean as it is for any `s`. With `A = K/n + λI` the variance of the function is

        var f(x) = s² (K(x, x) − (1/n) K(x, X) A⁻¹ K(X, x)).

    `s²` is chosen for each target so that leave-one-out errors are as large as they are
    said to be: the mean over rows of `e_i² / v_i` is one, where `e_i = a_i/(A⁻¹)_ii` is
    the error and `v_i = s² n/(A⁻¹)_ii` its variance, noise included.

    Args:
        system: What was solved.
        ridge: The `λ` it was solved at.

    Attributes:
        scale: `s²`, `(c,)`.
        noise: `s² n λ`, `(c,)`: the variance of the noise; a row that counts `w` times
            has it divided by `w`.

    References:
        - Rasmussen, Williams, "Gaussian Processes for Machine Learning", equations 2.26
          and 5.10 to 5.12.
    """

    def __init__(self, system: System, ridge: float):
        self._system, rows = system, len(system.gram)
        matrix = system.gram / rows
        matrix[np.diag_indices(rows)] += ridge
        factor, _ = inverse_cholesky(tf.constant(matrix))
        self._factor = factor.numpy()
        a = self._factor.T @ (self._factor @ system.y)
        diagonal = np.sum(self._factor**2, axis=0)[:, None]
        self.scale = np.mean(a**2 / diagonal, axis=0) / system.count
        self.noise = self.scale * system.count * ridge

    def variance(self, kernel: Kernel, x: Any) -> np.ndarray:
        """`var f(x)` for each row and target, `(m, c)` float64."""
        parts = []
        for rows in chunks(x):
            cross = kernel.cross(rows, self._system.x, dtype="float64").numpy()
            seen = (cross * self._system.root) @ self._factor.T
            known = np.sum(seen**2, axis=1) / self._system.count
            prior = kernel.diag(rows, dtype="float64").numpy()
            # Rounding may leave less than nothing at rows that are well known.
            parts.append(np.maximum(prior - known, 0.0))
        return np.concatenate(parts)[:, None] * self.scale
