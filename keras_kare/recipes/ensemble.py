"""Averaged kernel machines as arrays: what a fitted estimator keeps."""

from __future__ import annotations

import time
import warnings
from typing import NamedTuple

import numpy as np

from keras_kare import _rows
from keras_kare.kernels import DenseOperator
from keras_kare.machine.posterior import Posterior
from keras_kare.recipes.cross_fitting import checkpoints
from keras_kare.recipes.mixtures import (
    Kernels,
    laplace,
    laplace_scale,
    mean_kernels,
    mix,
    unit_of,
)
from keras_kare.recipes.recipe import Key, Recipe, Start
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers import Cholesky, System

CHUNK = 4096
"""Rows that are predicted at a time."""

NO_GRAM = np.empty((0, 0))
"""The Gram matrix of kernels of which only other rows are looked at."""


class Trained(NamedTuple):
    """A network that has trained: its weights, and what its kernel is divided by."""

    weights: list[np.ndarray]
    unit: float


class Averaged(NamedTuple):
    """One of the averaged machines: what it is of, and its dual solution, `(n, c)`."""

    key: Key
    dual: np.ndarray


class Ensemble:
    """Kernel machines on the same rows, whose predictions are averaged.

    Args:
        anchors: Rows that they were solved on, `(n, d)`.
        scale: That of the Laplace kernel.
        states: Networks by number of steps.
        machines: The machines.
    """

    def __init__(
        self,
        anchors: np.ndarray,
        scale: float,
        states: dict[int, list[Trained]],
        machines: list[Averaged],
    ):
        self.anchors, self.scale = anchors, scale
        self.states, self.machines = states, machines

    def predict(self, bench: Workbench, x: np.ndarray) -> np.ndarray:
        """Return the mean of the machines' predictions, `(m, c)`."""
        parts = []
        for rows in _rows.slices(x, CHUNK):
            found = self._kernels(bench, rows)
            each = [found[key].cross @ dual / len(dual) for key, dual in self.machines]
            parts.append(np.mean(each, axis=0))
        return np.concatenate(parts)

    def unit_variance(self, bench: Workbench, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the mean of the machines' variances with noise, in units of `s²`, `(m,)`.

        Args:
            bench: The network.
            x: `(m, d)`.
            y: Targets of the anchors, `(n, c)`.
        """
        posteriors = {}
        for key, kernels in self._kernels(bench, self.anchors).items():
            system = System(DenseOperator(kernels.cross), y)
            posteriors[key] = Posterior(system, key.ridge * system.unit)
        parts = []
        for rows in _rows.slices(x, CHUNK):
            found = self._kernels(bench, rows)
            variances = [
                posterior.unit_variance(found[key].prior, found[key].cross)
                + posterior.unit_noise
                for key, posterior in posteriors.items()
            ]
            parts.append(np.mean(variances, axis=0))
        return np.concatenate(parts)

    def _kernels(self, bench: Workbench, x: np.ndarray) -> dict[Key, Kernels]:
        """Return each machine's `K(x, X)` and `K(x, x)`."""
        smooth = {steps: self._smooth(bench, steps, x) for steps in self.states}
        cross = laplace(x, self.anchors, self.scale)
        rough = Kernels(NO_GRAM, cross, np.ones(len(x)))
        return {
            key: mix(smooth.get(key.steps, rough), rough, key.share)
            for key, _ in self.machines
        }

    def _smooth(self, bench: Workbench, steps: int, x: np.ndarray) -> Kernels:
        """Return the networks' mean kernel."""
        found = []
        for weights, unit in self.states[steps]:
            bench.network.set_weights(weights)
            cross, prior = bench.cross(x, self.anchors) / unit, bench.diag(x) / unit
            found.append(Kernels(NO_GRAM, cross, prior))
        return mean_kernels(found)


def refit(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    keys: list[Key],
    starts: list[Start],
    deadline: float | None,
) -> Ensemble:
    """Train on all rows, for as many steps as were chosen, and solve the machines.

    Args:
        bench, recipe, x, y: As for `checkpoints`.
        keys: What was chosen, one a machine.
        starts: One a network.
        deadline: On the clock `time.perf_counter`: after it no further network starts.
    """
    needed = sorted({key.steps for key in keys if key.share < 1.0})
    states: dict[int, list[Trained]] = {steps: [] for steps in needed}
    grams: dict[int, list[np.ndarray]] = {steps: [] for steps in needed}
    shorter = Recipe(recipe.learning_rate, tuple(needed), recipe.batch_size)
    for number, start in enumerate(starts if needed else ()):
        if number and deadline is not None and time.perf_counter() >= deadline:
            break
        for steps in checkpoints(bench, shorter, x, y, start):
            gram = bench.gram(x)
            unit = unit_of(gram)
            if unit is None:
                break
            states[steps].append(Trained(bench.network.get_weights(), unit))
            grams[steps].append(gram / unit)
    lost = [steps for steps in needed if not states[steps]]
    if lost:
        warnings.warn(
            f"Training on all rows failed before steps {lost}, so machines without it take "
            "their place. A smaller `learning_rate` may help.",
            RuntimeWarning,
            stacklevel=4,
        )
        keys = [key for key in keys if key.steps not in lost or key.share == 1.0]
        keys = keys or [Key(0, 1.0, 1.0)]
    scale = laplace_scale(x, recipe.bandwidth)
    rough = laplace(x, x, scale)
    machines = []
    for key in keys:
        gram = key.share * rough
        if key.share < 1.0:
            gram = gram + (1.0 - key.share) * np.mean(grams[key.steps], axis=0)
        prepared = Cholesky().prepare(System(DenseOperator(gram), y))
        dual = prepared.solve(key.ridge * prepared.unit).dual
        assert dual is not None
        machines.append(Averaged(key, dual))
    kept = {steps: states[steps] for steps in needed if states[steps]}
    return Ensemble(x, scale, kept, machines)
