"""Cross-fitting: every row is predicted by machines that have not seen it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kare.recipes.mixtures import (
    Kernels,
    Predicted,
    kernels,
    rough_predictions,
    smooth_predictions,
)
from keras_kare.recipes.recipe import Key, Recipe, Start
from keras_kare.recipes.workbench import Workbench

CHUNK = 20
"""Steps between two looks at the clock."""

DOUBT = 2.0
"""Standard errors by which a machine may be worse than the best, to be averaged with it."""

Losses = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From predictions, `(m, c)`, and the numbers of their rows to a loss of each, `(m,)`."""


@dataclass(frozen=True)
class Evidence:
    """What machines that had not seen a row predicted for it.

    Attributes:
        rows: Numbers of the rows, `(m,)`.
        errors: Mean loss by key, of all that could have been chosen.
        predictions: Means of the chosen machines' predictions, `(m, c)`.
        variances: Means of their variances, in units of `s²`, noise included, `(m,)`.
        late: Whether time ran out while machines were chosen.
    """

    rows: np.ndarray
    errors: dict[Key, float]
    predictions: np.ndarray
    variances: np.ndarray
    late: bool = False


def checkpoints(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    start: Start,
    deadline: float | None = None,
    weights: np.ndarray | None = None,
) -> Iterator[int]:
    """Train, and stop for a look after each of the recipe's numbers of steps.

    Args:
        bench: The network, with the weights of that moment while it is looked at.
        recipe: Settings.
        x: `(n, d)`.
        y: `(n, c)`.
        start: Where the network starts.
        deadline: On the clock `time.perf_counter`: no number of steps comes after it.
            Defaults to none.
        weights: How often each row counts, `(n,)`. Defaults to once.

    Yields:
        The number of steps; none after one whose loss was not finite.
    """
    bench.start(start.weights)
    batches = -(-len(x) // recipe.batch_size)
    before = 0
    for steps in recipe.steps:
        while before < steps:
            count = steps - before if deadline is None else min(CHUNK, steps - before)
            losses = bench.train(
                x, y, recipe.learning_rate, count, batches, start.seed, weights
            )
            before += count
            if is_late(deadline) or not np.all(np.isfinite(losses)):
                return
        yield steps


def trained_kernels(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    start: Start,
    deadline: float | None = None,
    weights: np.ndarray | None = None,
) -> dict[int, Kernels]:
    """Return the network's kernels by number of steps, as long as they are finite.

    Args:
        bench, recipe, x, y, start, deadline, weights: As for `checkpoints`.
        x_test: Other rows, `(m, d)`.
    """
    found = {}
    for steps in checkpoints(bench, recipe, x, y, start, deadline, weights):
        kernel = kernels(bench, x, x_test)
        if kernel is None:
            break
        found[steps] = kernel
    return found


def cross_fit(
    bench: Workbench,
    recipe: Recipe,
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    fold_of: np.ndarray,
    starts: list[Start],
    deadline: float | None,
    weights: np.ndarray | None = None,
    losses: Losses | None = None,
) -> tuple[list[Key], Evidence]:
    """Choose machines by their predictions of rows that they have not seen.

    Args:
        bench, recipe, x, y, weights: As for `checkpoints`.
        deadline: As there; each fold has as much of the time before it, of which Laplace
            kernels may take half.
        rows: Numbers of the rows that take part, `(m,)`.
        fold_of: The fold of each of them, `(m,)`.
        starts: One a fold.
        losses: What machines are chosen by. Defaults to squared errors.

    Returns:
        The keys of the machines, the best first, and the evidence.
    """
    found: dict[Key, list[Predicted]] = {}
    begun = time.perf_counter()
    for fold, start in enumerate(starts):
        soon, until = (
            deadline and begun + (deadline - begun) * (fold + part) / len(starts)
            for part in (0.5, 1.0)
        )
        rest, held = rows[fold_of != fold], rows[fold_of == fold]
        counts = None if weights is None else weights[rest]
        table = x[rest], y[rest], x[held]
        each = rough_predictions(recipe, *table, counts)
        every = {**next(each, {})}
        while not is_late(soon) and (more := next(each, None)) is not None:
            every |= more
        trained: dict[int, Kernels] = {}
        if not every or not is_late(until):
            trained = trained_kernels(bench, recipe, *table, start, until, counts)
        for more in smooth_predictions(recipe, trained, y[rest], counts):
            every |= more
        for key, predicted in every.items():
            found.setdefault(key, []).append(predicted)
    # what some fold did not get to is out
    whole = {
        key: Predicted(*(np.concatenate(parts) for parts in zip(*folds, strict=True)))
        for key, folds in found.items()
        if len(folds) == len(starts)
    }
    seen = np.concatenate([rows[fold_of == fold] for fold in range(len(starts))])
    counts = np.ones(len(seen)) if weights is None else weights[seen]
    if losses is None:
        losses = squared_errors(y)
    lost = {key: losses(values, seen) for key, (values, _) in whole.items()}
    errors = {key: float(np.average(loss, weights=counts)) for key, loss in lost.items()}
    ranked = best(errors, len(errors))
    keys = [key for key in ranked if not is_worse(lost[key], lost[ranked[0]], counts)]
    keys = keys[: recipe.machines]
    values, variances = (
        np.mean([whole[key][part] for key in keys], axis=0) for part in (0, 1)
    )
    return keys, Evidence(seen, errors, values, variances, is_late(deadline))


def squared_errors(y: np.ndarray) -> Losses:
    """Return the squared errors of targets, `(n, c)`, as losses."""
    return lambda values, rows: np.mean((values - y[rows]) ** 2, axis=1)


def is_worse(losses: np.ndarray, least: np.ndarray, counts: np.ndarray) -> bool:
    """Tell whether a machine is worse than the best by more than chance.

    Args:
        losses: Of each row, `(m,)`.
        least: Those of the best machine, on the same rows.
        counts: How often each row counts, `(m,)`.
    """
    more = losses - least
    mean = np.average(more, weights=counts)
    variance = np.average((more - mean) ** 2, weights=counts)
    return bool(mean > DOUBT * np.sqrt(variance / np.sum(counts)))


def is_late(deadline: float | None) -> bool:
    """Tell whether a moment on the clock `time.perf_counter` has passed; `None` never."""
    return deadline is not None and time.perf_counter() >= deadline


def mean_square(errors: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the mean of squares of `(m, c)`, in which a row counts by its weight."""
    if weights is None:
        return float(np.mean(errors**2))
    return float(np.average(np.mean(errors**2, axis=1), weights=weights))


def best(errors: Mapping[Key, float], machines: int) -> list[Key]:
    """Choose the best ridge of each kernel, of those machines the best few."""
    kernels: dict[Any, Key] = {}
    for key in sorted(errors, key=errors.__getitem__):
        kernels.setdefault(key.kernel, key)
    return list(kernels.values())[:machines]


def folds_of(
    order: np.ndarray, folds: int, rng: np.random.RandomState | np.random.Generator
) -> np.ndarray:
    """Return the fold of each row, `(n,)`: the values of `order` are spread evenly."""
    shuffled = rng.permutation(len(order))
    ranked = shuffled[np.argsort(order[shuffled], kind="stable")]
    fold_of = np.empty(len(order), int)
    fold_of[ranked] = np.arange(len(order)) % folds
    return fold_of
