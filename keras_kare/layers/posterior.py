"""How sure a kernel machine is: it is the mean of a Gaussian process."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare._linalg import inverse_cholesky
from keras_kare.kernels.kernel import Kernel
from keras_kare.layers.machine import chunks
from keras_kare.solvers import System


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
        unit_noise: `n λ`; a row that counts `w` times has it divided by `w`.

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
        self.unit_noise = system.count * ridge

    @property
    def noise(self) -> np.ndarray:
        """`s² n λ`, `(c,)`: the variance of the noise."""
        return self.scale * self.unit_noise

    def unit_variance(self, prior: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """`var f(x)/s²` of rows, `(m,)`, from `K(x, x)` and `K(x, X)`, `(m, n)`."""
        seen = (cross * self._system.root) @ self._factor.T
        known = np.sum(seen**2, axis=1) / self._system.count
        # Rounding may leave less than nothing at rows that are well known.
        return np.maximum(prior - known, 0.0)

    def unit_variance_at(self, kernel: Kernel, x: Any, anchors: Any) -> np.ndarray:
        """The same for rows `x`, a few at a time."""
        parts = [
            self.unit_variance(
                kernel.diag(rows, dtype="float64").numpy(),
                kernel.cross(rows, anchors, dtype="float64").numpy(),
            )
            for rows in chunks(x)
        ]
        return np.concatenate(parts)
