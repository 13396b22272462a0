"""Averaged kernel machines as arrays: what a fitted estimator keeps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels import DenseOperator
from keras_kare.machine.posterior import Posterior
from keras_kare.recipes.cross_fitting import checkpoints, is_late
from keras_kare.recipes.mixtures import Kernels, mean_kernels, mix, unit_of
from keras_kare.recipes.recipe import Key, Recipe, Rough, Start
from keras_kare.recipes.rough import RoughKernel, rough_kernels
from keras_kare.recipes.workbench import Workbench
from keras_kare.solvers import Cholesky, System

CHUNK = 4096
"""Most rows that are predicted at a time."""

CHUNK_VALUES = 2**23
"""Most kernel values that are formed at a time."""

DUAL_ROWS = 1000
"""Anchors up to which predictions are sums over them, and not of the primal form."""

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
        rough: The Laplace kernels.
        states: Networks by number of steps.
        machines: The machines.
        weights: How often each anchor counts, `(n,)`. Defaults to once.
    """

    def __init__(
        self,
        anchors: np.ndarray,
        rough: dict[Rough, RoughKernel],
        states: dict[int, list[Trained]],
        machines: list[Averaged],
        weights: np.ndarray | None = None,
    ):
        self.anchors, self.rough = anchors, rough
        self.states, self.machines = states, machines
        self.weights = weights
        self._primal: list[tuple[list[np.ndarray], list[np.ndarray]]] | None = None

    @property
    def keys(self) -> list[Key]:
        """What the machines are of."""
        return [key for key, _ in self.machines]

    def predict(self, bench: Workbench, x: np.ndarray) -> np.ndarray:
        """Return the mean of the machines' predictions, `(m, c)`.

        Up to `DUAL_ROWS` anchors they are sums over them. Of more, they are of the primal
        form, in which networks cost the same for any number of anchors.
        """
        if len(self.anchors) > DUAL_ROWS:
            return self._predict_primal(bench, x)
        parts = []
        for rows in self._slices(x):
            found = self.kernels(bench, rows, self.keys)
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
        for key, _ in self.machines:
            gram = self.kernels(bench, self.anchors, [key])[key].cross
            system = System(DenseOperator(gram), y, self.weights)
            posteriors[key] = Posterior(system, key.ridge * system.unit)
        parts = []
        for rows in self._slices(x):
            found = self.kernels(bench, rows, self.keys)
            variances = [
                posterior.unit_variance(found[key].prior, found[key].cross)
                + posterior.unit_noise
                for key, posterior in posteriors.items()
            ]
            parts.append(np.mean(variances, axis=0))
        return np.concatenate(parts)

    def _slices(self, x: np.ndarray) -> Iterator[np.ndarray]:
        step = max(1, min(CHUNK, CHUNK_VALUES // len(self.anchors)))
        yield from _rows.slices(x, step)

    def kernels(
        self, bench: Workbench, x: np.ndarray, keys: list[Key]
    ) -> dict[Key, Kernels]:
        """Return `K(x, X)` and `K(x, x)` of some machines."""
        needed = {key.steps for key in keys if key.share < 1.0}
        smooth = {steps: self._smooth(bench, steps, x) for steps in sorted(needed)}
        kinds = sorted({key.rough for key in keys if key.share > 0.0})
        rough = {kind: self._rough(kind, x) for kind in kinds}
        return {
            key: mix(smooth.get(key.steps), rough.get(key.rough), key.share) for key in keys
        }

    def _rough(self, kind: Rough, x: np.ndarray) -> Kernels:
        """Return one of the Laplace kernels."""
        cross = self.rough[kind].cross(x, self.anchors)
        return Kernels(NO_GRAM, cross, np.ones(len(x)))

    def _smooth(self, bench: Workbench, steps: int, x: np.ndarray) -> Kernels:
        """Return the networks' mean kernel."""
        found = []
        for weights, unit in self.states[steps]:
            bench.network.set_weights(weights)
            cross, prior = bench.cross(x, self.anchors) / unit, bench.diag(x) / unit
            found.append(Kernels(NO_GRAM, cross, prior))
        return mean_kernels(found)

    def slopes(self, bench: Workbench, x: np.ndarray) -> np.ndarray:
        """Return how the machines' mean prediction changes with `x`, `(m, d, c)`."""
        total = np.zeros((*x.shape, self.machines[0].dual.shape[1]))
        for w in self._primal_form(bench):
            total += bench.slopes(x, w)
        for kernel, v in self._rough_sums():
            total += kernel.slopes(x, self.anchors, v)
        return total

    def _primal_form(self, bench: Workbench) -> Iterator[list[tf.Tensor]]:
        """Yield each network's `w`, while the bench has its weights."""
        if self._primal is None:
            self._primal = list(self._primal_of(bench))
        for weights, w in self._primal:
            bench.network.set_weights(weights)
            yield [tf.constant(part) for part in w]

    def _predict_primal(self, bench: Workbench, x: np.ndarray) -> np.ndarray:
        """Return `Σ J(x) w` of the networks, and the Laplace kernel's sum over anchors."""
        outputs = np.zeros((len(x), self.machines[0].dual.shape[1]))
        for w in self._primal_form(bench):
            begin = 0
            for rows in _rows.slices(x, CHUNK):
                outputs[begin : begin + len(rows)] += bench.jvp(rows, w)
                begin += len(rows)
        for kernel, v in self._rough_sums():
            begin = 0
            for rows in self._slices(x):
                cross = kernel.cross(rows, self.anchors)
                outputs[begin : begin + len(rows)] += cross @ v
                begin += len(rows)
        return outputs

    def _rough_sums(self) -> Iterator[tuple[RoughKernel, np.ndarray]]:
        """Yield each Laplace kernel, and `(n, c)`: its `v` in the machines' mean."""
        for kind in sorted({key.rough for key in self.keys if key.share > 0.0}):
            shares = [key.share * (key.rough == kind) for key in self.keys]
            yield self.rough[kind], self._dual_sum(shares)

    def _primal_of(
        self, bench: Workbench
    ) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Yield each network's weights, and its `w = J(X)ᵀ v` in the machines' mean."""
        for steps, networks in self.states.items():
            v = self._dual_sum(
                [(key.steps == steps) * (1.0 - key.share) for key in self.keys]
            )
            for weights, unit in networks:
                bench.network.set_weights(weights)
                w = bench.vjp(self.anchors, v / (unit * len(networks)))
                yield weights, [np.asarray(part) for part in w]

    def _dual_sum(self, shares: list[float]) -> np.ndarray:
        """Return `(n, c)`: `α/n`, averaged over machines by their shares of a kernel."""
        pairs = zip(shares, self.machines, strict=True)
        parts = [share * machine.dual for share, machine in pairs]
        return np.asarray(np.mean(parts, axis=0) / len(self.anchors))


def refit(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    keys: list[Key],
    starts: list[Start],
    deadline: float | None,
    weights: np.ndarray | None,
    seen: np.ndarray,
) -> Ensemble:
    """Train on all rows, for as many steps as were chosen, and solve the machines.

    Args:
        bench, recipe, x, y, weights: As for `checkpoints`.
        keys: What was chosen, one a machine.
        starts: One a network.
        deadline: On the clock `time.perf_counter`: after it no further network starts.
        seen: Numbers of the rows that metrics are learnt from: those that chose.
    """
    needed = sorted({key.steps for key in keys if key.share < 1.0})
    states: dict[int, list[Trained]] = {steps: [] for steps in needed}
    grams: dict[int, np.ndarray] = {}
    shorter = Recipe(recipe.learning_rate, tuple(needed), recipe.batch_size)
    for number, start in enumerate(starts if needed else ()):
        if number and is_late(deadline):
            break
        for steps in checkpoints(bench, shorter, x, y, start, weights=weights):
            gram = bench.gram(x)
            unit = unit_of(gram)
            if unit is None:
                break
            states[steps].append(Trained(bench.weights(), unit))
            gram = gram / unit
            if steps in grams:
                grams[steps] += gram
            else:
                grams[steps] = gram
    keys = _without(keys, [steps for steps in needed if not states[steps]])
    duals = {
        key: _solved(grams[key.steps] / len(states[key.steps]), key.ridge, y, weights)
        for key in keys
        if key.share < 1.0
    }
    grams.clear()
    kinds = {key.rough: key for key in keys if key.share > 0.0}
    rough: dict[Rough, RoughKernel] = {}
    counts = None if weights is None else weights[seen]
    for kind, found in rough_kernels(x[seen], y[seen], [*kinds], recipe.ridges, counts):
        rough[kind], key = found.kernel, kinds[kind]
        gram = found.gram if len(seen) == len(x) else found.kernel.gram(x)
        duals[key] = _solved(gram, key.ridge, y, weights)
    kept = {steps: states[steps] for steps in needed if states[steps]}
    return Ensemble(x, rough, kept, [Averaged(key, duals[key]) for key in keys], weights)


def _solved(
    gram: np.ndarray, ridge: float, y: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Return the dual solution of one machine, `(n, c)`."""
    system = System(DenseOperator(gram), y, weights)
    prepared = Cholesky().prepare(system)
    return system.predictor(prepared.solve(ridge * system.unit))


def _without(keys: list[Key], lost: list[int]) -> list[Key]:
    """Return the keys whose steps training got to, and say so where there are others."""
    if not lost:
        return keys
    warnings.warn(
        f"Training on all rows failed before steps {lost}, so machines without it take "
        "their place. A smaller `learning_rate` may help.",
        RuntimeWarning,
        stacklevel=5,
    )
    keys = [key for key in keys if key.steps not in lost or key.share == 1.0]
    return keys or [Key(0, 1.0, 1.0)]
