"""Averaged kernel machines as arrays: what a fitted estimator keeps."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_kare import _rows
from keras_kare.kernels import DenseOperator
from keras_kare.machine.posterior import CHUNK, Posterior
from keras_kare.recipes import recipe as recipes
from keras_kare.recipes.recipe import Kernels, Key, Predicted, Recipe, Start
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers import Cholesky, System


class State(NamedTuple):
    """A network that has trained: its weights, and what its kernel is divided by."""

    weights: list[np.ndarray]
    unit: float


class Machine(NamedTuple):
    """One of the averaged machines: what it is of, and its dual solution, `(n, c)`."""

    key: Key
    dual: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What machines that had not seen a row predicted for it.

    Attributes:
        rows: Numbers of the rows, `(m,)`.
        errors: Mean squared error by key, of all that could have been chosen.
        predictions: Of the averaged machines, `(m, c)`.
        variances: In units of `s²`, noise included, `(m,)`.
    """

    rows: np.ndarray
    errors: dict[Key, float]
    predictions: np.ndarray
    variances: np.ndarray


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
        states: dict[int, list[State]],
        machines: list[Machine],
    ):
        self.anchors, self.scale = anchors, scale
        self.states, self.machines = states, machines

    def predict(self, bench: Workbench, x: np.ndarray) -> np.ndarray:
        """The mean of the machines' predictions, `(m, c)`."""
        parts = [
            np.mean(
                [
                    kernels[machine.key].cross @ machine.dual / len(self.anchors)
                    for machine in self.machines
                ],
                axis=0,
            )
            for kernels in (self._kernels(bench, rows) for rows in _rows.slices(x, CHUNK))
        ]
        return np.concatenate(parts)

    def unit_variance(self, bench: Workbench, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The mean of the machines' variances, noise included, in units of `s²`, `(m,)`.

        Args:
            bench: The network.
            x: `(m, d)`.
            y: Of the anchors, `(n, c)`.
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
        """Each machine's `K(x, X)` and `K(x, x)`."""
        smooth = {steps: self._smooth(bench, steps, x) for steps in self.states}
        rough = Kernels(
            np.empty((0, 0)),
            recipes.laplace(x, self.anchors, self.scale),
            np.ones(len(x)),
        )
        return {
            key: recipes.mix(smooth.get(key.steps, rough), rough, key.share)
            for key, _ in self.machines
        }

    def _smooth(self, bench: Workbench, steps: int, x: np.ndarray) -> Kernels:
        """The networks' mean kernel."""
        found = []
        for weights, unit in self.states[steps]:
            bench.network.set_weights(weights)
            cross, prior = bench.cross(x, self.anchors) / unit, bench.diag(x) / unit
            found.append(Kernels(np.empty((0, 0)), cross, prior))
        return recipes.mean_kernels(found)


def cross_fit(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    fold_of: np.ndarray,
    starts: list[Start],
    deadline: float | None,
) -> tuple[list[Key], Evidence]:
    """Choose machines by their predictions of rows that they have not seen.

    Args:
        bench: The network.
        recipe: Settings.
        x: `(n, d)`.
        y: `(n, c)`.
        rows: Numbers of the rows that take part, `(m,)`.
        fold_of: The fold of each of them, `(m,)`.
        starts: One a fold.
        deadline: On the clock `time.perf_counter`: no training goes on after it.

    Returns:
        The keys of the machines, the best first, and the evidence.
    """
    found: dict[Key, list[Predicted]] = {}
    order = []
    for fold, start in enumerate(starts):
        rest, held = rows[fold_of != fold], rows[fold_of == fold]
        trained = {}
        for steps in recipes.checkpoints(bench, recipe, x[rest], y[rest], start, deadline):
            kernels = recipes.kernels(bench, x[rest], x[held])
            if kernels is None:
                break
            trained[steps] = kernels
        rough = recipes.rough_kernels(x[rest], x[held], recipe.bandwidth)
        for key, part in recipes.predictions(recipe, trained, rough, y[rest]).items():
            found.setdefault(key, []).append(part)
        order.append(held)
    # what some fold did not get to is out
    whole = {
        key: Predicted(*(np.concatenate(parts) for parts in zip(*folds, strict=True)))
        for key, folds in found.items()
        if len(folds) == len(starts)
    }
    seen = np.concatenate(order)
    errors = {
        key: float(np.mean((values - y[seen]) ** 2)) for key, (values, _) in whole.items()
    }
    keys = recipes.best(errors, recipe.machines)
    predictions, variances = (
        np.mean([whole[key][part] for key in keys], axis=0) for part in (0, 1)
    )
    return keys, Evidence(seen, errors, predictions, variances)


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
        bench: The network.
        recipe: Settings.
        x: `(n, d)`.
        y: `(n, c)`.
        keys: Of the machines.
        starts: One a network.
        deadline: On the clock `time.perf_counter`: after it no further network starts.
    """
    needed = sorted({key.steps for key in keys if key.share < 1.0})
    states: dict[int, list[State]] = {steps: [] for steps in needed}
    grams: dict[int, list[np.ndarray]] = {steps: [] for steps in needed}
    shorter = Recipe(recipe.learning_rate, tuple(needed), recipe.batch_size)
    for number, start in enumerate(starts if needed else ()):
        if number and deadline is not None and time.perf_counter() >= deadline:
            break
        for steps in recipes.checkpoints(bench, shorter, x, y, start):
            gram = bench.gram(x)
            unit = float(np.mean(np.diag(gram)))
            if not np.all(np.isfinite(gram)) or unit <= 0.0:
                break
            states[steps].append(State(bench.network.get_weights(), unit))
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
    scale = recipes.laplace_scale(x, recipe.bandwidth)
    rough = recipes.laplace(x, x, scale)
    machines = []
    for key in keys:
        gram = key.share * rough
        if key.share < 1.0:
            gram = gram + (1.0 - key.share) * np.mean(grams[key.steps], axis=0)
        prepared = Cholesky().prepare(System(DenseOperator(gram), y))
        dual = prepared.solve(key.ridge * prepared.unit).dual
        assert dual is not None
        machines.append(Machine(key, dual))
    kept = {steps: states[steps] for steps in needed if states[steps]}
    return Ensemble(x, scale, kept, machines)
