"""Laplace kernels beside the networks': of L1 and L2 distances, and of learnt metrics.

They serve targets that are rougher than networks are. The L1 distance adds columns up one
by one, as trees split them. The metric of the L2 distance is learnt in rounds, as in
recursive feature machines: a machine is solved, and distances grow along the directions in
which its predictions change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_kare import _rows
from keras_kare.kernels import DenseOperator, Laplace
from keras_kare.recipes.recipe import ROUGH, Rough
from keras_kare.solvers import Spectral, System
from keras_kare.solvers.solution import Solution
from keras_kare.solvers.spectral import SpectralPrepared

VALUES_BYTES = 2**30
"""Bytes that values of a kernel hold while they are computed."""

MOST_COLUMNS = 500
"""Most columns whose metric is learnt: its cost grows with their cube."""

SLOPES = 2**22
"""Most derivatives that are held at a time."""


@dataclass(frozen=True)
class RoughKernel:
    """`exp(-‖(x - x') F‖/s)`, of arrays in float64.

    Attributes:
        distance: `"l1"` or `"l2"`.
        scale: `s`.
        factor: `F`, `(d, d)`; `None` for none.
    """

    distance: str
    scale: float
    factor: np.ndarray | None = None

    def cross(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Return values between rows, `(m, n)`."""
        kernel = _laplace(self.scale, distance=self.distance)
        return np.asarray(kernel.cross(self._mapped(x1), self._mapped(x2)))

    def gram(self, x: np.ndarray) -> np.ndarray:
        """Return values between all rows, `(n, n)`."""
        kernel = _laplace(self.scale, distance=self.distance)
        return np.asarray(kernel.gram(self._mapped(x)))

    def slopes(self, x1: np.ndarray, x2: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return `∂/∂x Σ_j k(x, x'_j) v_j`, `(m, d, c)`; a kink counts as flat.

        Args:
            x1: `(m, d)`.
            x2: `(n, d)`.
            v: `(n, c)`.
        """
        return self.slopes_of(self.cross(x1, x2), x1, x2, v)

    def slopes_of(
        self, values: np.ndarray, x1: np.ndarray, x2: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        """Return `slopes`, of what `cross` returned.

        Of `z = x F` and `r = ‖z - z'‖`, the derivative by `z` is `-(k/(s r)) (z - z')`, and
        of the L1 distance `-(k/s) sign(z - z')`.
        """
        a, b = self._mapped(x1), self._mapped(x2)
        found = np.empty((*a.shape, v.shape[1]))
        if self.distance == "l1":
            for i in range(a.shape[1]):
                signs = np.sign(a[:, i, None] - b[:, i])
                found[:, i] = -(values * signs) @ v / self.scale
        else:
            with np.errstate(divide="ignore"):
                distances = -self.scale * np.log(values)
            steep = np.where(
                values < 1.0, values / np.where(distances > 0.0, distances, 1.0), 0.0
            )
            pulled = steep @ (b[:, :, None] * v[:, None]).reshape(len(b), -1)
            away = a[:, :, None] * (steep @ v)[:, None]
            found[:] = (pulled.reshape(found.shape) - away) / self.scale
        if self.factor is None:
            return found
        return np.asarray(np.einsum("de,mec->mdc", self.factor, found))

    def _mapped(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, "float64")
        return x if self.factor is None else x @ self.factor


class Solvable(NamedTuple):
    """A kernel, its Gram matrix, `(n, n)`, and the eigenproblem of that matrix."""

    kernel: RoughKernel
    gram: np.ndarray
    spectral: SpectralPrepared


def _laplace(
    scale: float | str = "median", metric: str = "isotropic", distance: str = "l2"
) -> Laplace:
    return Laplace(scale, metric, distance, memory_limit=VALUES_BYTES, dtype="float64")


def rough_kernel(x: np.ndarray, rough: Rough = ROUGH) -> RoughKernel:
    """Return a kernel without a learnt metric; its scale is by the median distance."""
    kernel = _laplace(distance=rough.distance)
    kernel.adapt(np.asarray(x, "float64"))
    scale = rough.bandwidth * float(np.exp(kernel.log_scale.numpy()))
    return RoughKernel(rough.distance, scale)


def rough_kernels(
    x: np.ndarray,
    y: np.ndarray,
    kinds: Sequence[Rough],
    ridges: Sequence[float],
    weights: np.ndarray | None = None,
) -> Iterator[tuple[Rough, Solvable]]:
    """Yield kernels on rows, each with its eigenproblem, which is solved when asked for.

    Args:
        x: `(n, d)`.
        y: Targets, `(n, c)`, from which metrics are learnt.
        kinds: Which kernels. Those of more than `MOST_COLUMNS` columns learn no metric.
        ridges: Relative ridges, of which the machines that metrics are learnt from have the
            best by leave-one-out error.
        weights: How often each row counts, `(n,)`. Defaults to once.
    """
    learnt = {kind.rounds: kind for kind in kinds if kind.rounds}
    if x.shape[1] > MOST_COLUMNS:
        learnt = {}
    for distance in ("l2", "l1"):
        wanted = [kind for kind in kinds if kind.distance == distance and not kind.rounds]
        rounds = max(learnt, default=0) if distance == "l2" else 0
        if not wanted and not rounds:
            continue
        kernel = rough_kernel(x, Rough(distance))
        gram = kernel.gram(x)
        solvable = Solvable(kernel, gram, eigenproblem(gram, y, weights))
        for kind in wanted:
            if kind.bandwidth == 1.0:
                yield kind, solvable
                continue
            wider = gram ** (1.0 / kind.bandwidth)
            scaled = RoughKernel(distance, kind.bandwidth * kernel.scale)
            yield kind, Solvable(scaled, wider, eigenproblem(wider, y, weights))
        for count in range(1, rounds + 1):
            solvable = _learnt(x, y, solvable, ridges, weights)
            if count in learnt:
                yield learnt[count], solvable


def _learnt(
    x: np.ndarray,
    y: np.ndarray,
    before: Solvable,
    ridges: Sequence[float],
    weights: np.ndarray | None,
) -> Solvable:
    """Return the kernel whose metric is the average gradient outer product of another's."""
    system = before.spectral.system
    grid = before.spectral.solve_grid([ridge * system.unit for ridge in ridges])
    v = system.predictor(min(grid, key=_left_out)) / len(x)
    matrix = np.zeros((x.shape[1], x.shape[1]))
    for columns in _rows.cuts(v.shape[1], max(1, SLOPES // x.size)):
        slopes = before.kernel.slopes_of(before.gram, x, x, v[:, columns])
        if weights is not None:
            slopes *= np.sqrt(weights)[:, None, None]
        by_input = slopes.transpose(1, 0, 2).reshape(x.shape[1], -1)
        matrix += by_input @ by_input.T
    if not np.trace(matrix) > 0.0:  # constant predictions
        return before
    x = np.asarray(x, "float64")
    metric = _laplace(metric="full")
    metric.build(x.shape)
    metric.set_metric(matrix)
    metric.adapt(x)
    kernel = RoughKernel(
        "l2", float(np.exp(metric.log_scale.numpy())), np.asarray(metric.factor)
    )
    gram = kernel.gram(x)
    return Solvable(kernel, gram, eigenproblem(gram, y, weights))


def _left_out(solution: Solution) -> float:
    error = solution.leave_one_out_mse
    return np.inf if error is None else error


def eigenproblem(
    gram: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> SpectralPrepared:
    """Return what solves machines of a Gram matrix at any ridge, prepared when asked for.

    Args:
        gram: `(n, n)`.
        y: Targets, `(n, c)`.
        weights: How often each row counts, `(n,)`, or `None` for once.
    """
    system = System(DenseOperator(gram), np.asarray(y, "float64"), weights)
    return Spectral().prepare(system)
