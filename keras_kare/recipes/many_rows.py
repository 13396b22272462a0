"""Tables of many rows: kernels trained on batches, machines on some rows as centres.

One split stands in for cross-fitting: a tenth of many rows tell machines apart. So:

1. **Choice.** A network trains on batches of the other rows. After several numbers of steps
   a small machine predicts the rows held out, with more or less of a Laplace kernel.
   Training ends when none is better than before. Machines that are nearly as good as the
   best, after as many steps, are averaged.
2. **More networks** train for as many steps. Their kernels are averaged.
3. **Solution.** Of all functions that the centres span, each machine is the one that
   minimises the penalised squared error of the rows not held out (`recipes/centres.py`).
   The rows held out choose its ridge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from keras_kare import _rows
from keras_kare.recipes.centres import CentredEnsemble, Sums, whitened
from keras_kare.recipes.cross_fitting import (
    CHUNK,
    Evidence,
    best,
    folds_of,
    is_late,
    mean_square,
)
from keras_kare.recipes.ensemble import Averaged, Trained
from keras_kare.recipes.recipe import ROUGH, Key, Recipe, Start
from keras_kare.recipes.rough import RoughKernel, rough_kernel
from keras_kare.recipes.workbench import Workbench

STEPS_PER_EPOCH = 30
"""How many times as many steps as on small tables may be chosen."""

LOOKS = (0, 30, 100, 300, 1000, 3000, 10_000, 30_000)
"""Numbers of steps after which the rows held out are predicted."""

HELD, MOST_HELD = 10, 5000
"""One row of so many is held out, and at most so many."""

LOOK_CENTRES, LOOK_ROWS = 1000, 10_000
"""Most centres and rows of the machines that choose how long to train."""

NEARLY = 1.05
"""How many times the least error a machine may have to be averaged with the best."""


@dataclass(frozen=True)
class Table:
    """Rows, and what each is for.

    Attributes:
        x: Inputs, `(n, d)`.
        y: Targets, `(n, c)`.
        weights: How often each row counts, `(n,)`, or `None` for once.
        held: Numbers of the rows held out.
        rest: Numbers of the others.
        centres: Numbers of those of them that are centres.
    """

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    held: np.ndarray
    rest: np.ndarray
    centres: np.ndarray

    def counts(self, rows: np.ndarray) -> np.ndarray | None:
        """Return how often some rows count; `None` for once."""
        return None if self.weights is None else self.weights[rows]


def divided(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    order: np.ndarray,
    centres: int,
    rng: np.random.RandomState,
) -> Table:
    """Hold rows out and draw centres, both spread evenly over the values of `order`."""
    parts = max(HELD, -(-len(x) // MOST_HELD))
    fold_of = folds_of(order, parts, rng)
    held, rest = np.flatnonzero(fold_of == 0), np.flatnonzero(fold_of != 0)
    drawn = rest[folds_of(order[rest], -(-len(rest) // centres), rng) == 0]
    return Table(x, y, weights, held, rest, drawn)


def fit_many(
    bench: Workbench,
    recipe: Recipe,
    table: Table,
    starts: list[Start],
    half: float | None,
    end: float | None,
) -> tuple[CentredEnsemble, Evidence]:
    """Choose, train, and solve on many rows.

    Args:
        bench: The network.
        recipe: Settings.
        table: The rows.
        starts: One a network.
        half: On the clock `time.perf_counter`: until when to choose; `None` for any time.
        end: After it no further network starts.

    Returns:
        The machines, and what they predict for the rows held out.
    """
    most = STEPS_PER_EPOCH * recipe.steps[-1]
    looks = tuple(steps for steps in LOOKS if steps < most) + ((most,) if most else (0,))
    recipe = replace(recipe, steps=looks)
    kernel = rough_kernel(table.x[table.centres])
    errors, first = _watched(bench, recipe, table, starts[0], kernel, half)
    late = is_late(half)
    keys = _chosen(errors, recipe.machines)
    needed = tuple(sorted({key.steps for key in keys if key.share < 1.0}))
    states = {steps: [first[steps]] for steps in needed}
    for start in starts[1:] if any(needed) else ():
        if is_late(end):
            break
        for steps in _trained(bench, replace(recipe, steps=needed), table, start):
            if (found := _state(bench, table)) is None:
                break
            states[steps].append(found)
    ensemble, evidence = _solved(bench, recipe, table, keys, states, kernel)
    return ensemble, replace(evidence, errors=errors, late=late)


def _chosen(errors: dict[Key, float], machines: int) -> list[Key]:
    """Return the best machine, and those after as many steps that are nearly as good."""
    (top,) = best(errors, 1)
    near = {
        key: error
        for key, error in errors.items()
        if error <= NEARLY * errors[top] and (key.steps == top.steps or key.share == 1.0)
    }
    return best(near, machines)


def _trained(
    bench: Workbench,
    recipe: Recipe,
    table: Table,
    start: Start,
    deadline: float | None = None,
) -> Iterator[int]:
    """Train on batches, and stop for a look after each of the recipe's numbers of steps.

    A run of a few steps is on as many batches, drawn at random: rows are not shuffled as a
    whole at each step.
    """
    bench.start(start.weights)
    rng, rest = np.random.RandomState(start.seed), table.rest
    size, before = min(recipe.batch_size, len(rest)), 0
    for steps in recipe.steps:
        while before < steps:
            count = min(CHUNK, steps - before, max(1, len(rest) // size))
            rows = rng.choice(rest, count * size, replace=False)
            losses = bench.train(
                table.x[rows],
                table.y[rows],
                recipe.learning_rate,
                count,
                count,
                int(rng.randint(2**31 - 1)),
                table.counts(rows),
            )
            before += count
            if is_late(deadline) or not np.all(np.isfinite(losses)):
                return
        yield steps


def _state(bench: Workbench, table: Table) -> Trained | None:
    """Return the network of this moment; `None` where its kernel is not finite, or zero."""
    unit = float(np.mean(bench.diag(table.x[table.centres])))
    if not np.isfinite(unit) or unit <= 0.0:
        return None
    return Trained(bench.weights(), unit)


def _watched(
    bench: Workbench,
    recipe: Recipe,
    table: Table,
    start: Start,
    kernel: RoughKernel,
    deadline: float | None,
) -> tuple[dict[Key, float], dict[int, Trained]]:
    """Train one network; return errors of small machines, and the network at each look."""
    every = max(1, -(-len(table.centres) // LOOK_CENTRES))
    anchors = table.x[table.centres[::every]]
    every = max(1, -(-len(table.rest) // LOOK_ROWS))
    few = replace(table, rest=table.rest[::every])
    parts = [table.x[few.rest], table.x[few.held], anchors]
    rough = [kernel.cross(part, anchors) for part in parts]
    errors: dict[Key, float] = {}
    states: dict[int, Trained] = {}
    least = np.inf
    for steps in _trained(bench, recipe, table, start, deadline):
        if (found := _state(bench, table)) is None:
            break
        states[steps] = found
        smooth = [bench.narrow_cross(part, anchors) / found.unit for part in parts]
        for share in recipe.shares:
            if share != 1.0 or steps == 0:
                mixed = [
                    (1.0 - share) * a + share * b
                    for a, b in zip(smooth, rough, strict=True)
                ]
                for ridge, error in _errors(recipe, few, mixed).items():
                    errors[Key(steps, share, ridge)] = error
        now = min(error for key, error in errors.items() if key.steps == steps)
        if now >= least:
            break
        least = now
    return errors, states


def _errors(recipe: Recipe, table: Table, mixed: list[np.ndarray]) -> dict[float, float]:
    """Return errors in rows held out by ridge, of `K` of the rest, held, and centres."""
    rest, held, gram = mixed
    sums = Sums(len(gram), table.y.shape[1])
    counts = table.counts(table.rest)
    sums.add(rest, table.y[table.rest], counts, np.ones(len(rest)))
    solved = whitened(gram, sums)
    y, counts = table.y[table.held], table.counts(table.held)
    phi = held @ solved.transform
    return {
        ridge: mean_square(phi @ solved.coefficients(ridge) - y, counts)
        for ridge in recipe.ridges
    }


def _solved(
    bench: Workbench,
    recipe: Recipe,
    table: Table,
    keys: list[Key],
    states: dict[int, list[Trained]],
    kernel: RoughKernel,
) -> tuple[CentredEnsemble, Evidence]:
    """Solve machines on the rows not held out, and choose ridges on those that are."""
    anchors = table.x[table.centres]
    ensemble = CentredEnsemble(anchors, {ROUGH: kernel}, states, [])
    columns = table.y.shape[1]
    sums = {key: Sums(len(anchors), columns) for key in keys}
    for rows in _rows.cuts(len(table.rest), ensemble.chunk):
        chosen = table.rest[rows]
        found = ensemble.kernels(bench, table.x[chosen], keys)
        for key, (_, cross, prior) in found.items():
            sums[key].add(cross, table.y[chosen], table.counts(chosen), prior)
    grams = ensemble.kernels(bench, anchors, keys)
    solved = {key: whitened(grams[key].cross, sums[key]) for key in keys}
    seen = ensemble.kernels(bench, table.x[table.held], keys)
    y, counts = table.y[table.held], table.counts(table.held)
    machines, values, variances = [], [], []
    for key in keys:
        phi = seen[key].cross @ solved[key].transform
        ridge = min(
            recipe.ridges,
            key=lambda r: mean_square(phi @ solved[key].coefficients(r) - y, counts),
        )
        machines.append(Averaged(key._replace(ridge=ridge), solved[key].dual(ridge)))
        values.append(phi @ solved[key].coefficients(ridge))
        variances.append(solved[key].variance(phi, seen[key].prior, ridge))
    ensemble.machines, ensemble.solved = machines, list(solved.values())
    means = np.mean(values, axis=0), np.mean(variances, axis=0)
    return ensemble, Evidence(table.held, {}, *means)
