"""Three ways to report accuracy on the UCI sets, from optimistic to honest.

- **paper**: one split (`conxuntos.dat`); each method gets the configuration, epochs and
  ridge that are best *on the test rows*. Optimistic: with many choices and few rows, some
  choice is lucky.
- **customary** (Fernández-Delgado et al. 2014; Arora et al. 2020; Radhakrishnan et al.
  2024): the choice is made on that same split, then the mean accuracy over the four folds
  of `conxuntos_kfold.dat` is reported. Their test rows took part in the choice.
- **honest**: for each of the four folds, the choice is made inside its training rows, by
  cross-validation; the test rows are predicted once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_kare.datasets import UCIDataset, signed_one_hot
from keras_kare.experiments.task import Configuration, Path, Task
from keras_kare.recipes.cross_fitting import folds_of

Paths = dict[str, Path]
"""A path of scores by method."""

Inputs = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""From training inputs, test inputs, and the rows of the data set: both, scaled."""

INNER_FOLDS = 4
"""Folds of the honest protocol's cross-validation."""


@dataclass(frozen=True)
class Family:
    """Methods that share their fits.

    Attributes:
        methods: Their names.
        configurations: The grid.
        predict: From a configuration and a task to `Paths`.
        inputs: Scales features by the training rows.
        criterion: What cross-validation chooses by: `"accuracy"`, or `"squared_error"` of
            scores that are least-squares predictions of signed one-hot targets.
        seeds: One a fit that predicts test rows. Cross-validation uses the first.
        chooses: Whether there is anything to choose.
        blends: How many machines of a method are averaged, where it is more than one: the
            best of each group of names, which are alike up to the last word, the ridge.
        settings: What else `predict` depends on, for `digest`.
    """

    methods: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    predict: Callable[[Configuration, Task], Paths]
    inputs: Inputs
    criterion: str = "squared_error"
    seeds: tuple[int, ...] = (0,)
    chooses: bool = True
    blends: Mapping[str, int] = field(default_factory=dict)
    settings: str = ""

    def digest(self) -> str:
        """Return eight hexadecimal digits of the grid and what else results depend on."""
        parts = self.configurations, self.criterion, self.seeds, self.chooses, self.blends
        text = repr((self.methods, *parts, self.settings))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Chosen:
    """A configuration, by number, and names along its path, whose mean is taken."""

    configuration: int
    names: tuple[str, ...]

    def describe(self, family: Family) -> str:
        """Return one line for a table."""
        words = [f"{k}={v}" for k, v in family.configurations[self.configuration].items()]
        return " ".join([*words, " + ".join(self.names)]).strip()

    def of(self, path: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the scores, or `None` where they are not there, or not finite."""
        if not all(name in path for name in self.names):
            return None
        values = np.mean([path[name] for name in self.names], axis=0)
        return values if np.all(np.isfinite(values)) else None


def published(
    family: Family, data: UCIDataset, customary: bool = True
) -> list[dict[str, Any]]:
    """Return rows of the protocols `paper` and `customary`, which make the same choice.

    Args:
        family: The methods.
        data: The data set.
        customary: Whether to go on to the four folds. Defaults to `True`.
    """
    train, test = data.split
    scores = _all_scores(family, data, train, test, family.seeds)
    choices: dict[str, Chosen] = {}
    best: dict[str, float] = {}
    for method, choice, values in scores:
        accuracy = _accuracy(values, data.labels[test])
        if accuracy > best.get(method, -1.0):
            best[method], choices[method] = accuracy, choice
    rows = [
        _row("paper", method, 0, best[method], choice.describe(family))
        for method, choice in choices.items()
    ]
    for fold in range(len(data.folds)) if customary else ():
        rows += _reported("customary", family, data, fold, choices)
    return rows


def honest(
    family: Family, data: UCIDataset, folds: Sequence[int] = range(4), name: str = "honest"
) -> list[dict[str, Any]]:
    """Return rows of the honest protocol.

    Args:
        family: The methods.
        data: The data set.
        folds: Which of its folds. Defaults to all four.
        name: What the rows call the protocol.
    """
    rows = []
    for fold in folds:
        choices = cross_validate(family, data, data.folds[fold][0])
        rows += _reported(name, family, data, fold, choices)
    return rows


def _reported(
    protocol: str, family: Family, data: UCIDataset, fold: int, choices: dict[str, Chosen]
) -> list[dict[str, Any]]:
    """Return a row for each method: its accuracy on a fold's test rows as chosen."""
    train, test = data.folds[fold]
    rows = []
    for method, values, choice in _refit(family, data, train, test, choices):
        accuracy, chosen = _accuracy(values, data.labels[test]), choice.describe(family)
        rows.append(_row(protocol, method, fold, accuracy, chosen))
    return rows


def cross_validate(
    family: Family, data: UCIDataset, train: np.ndarray
) -> dict[str, Chosen]:
    """Choose for each method by rows of `train` that its fits have not seen."""
    if not family.chooses:
        return dict.fromkeys(family.methods, Chosen(0, ("",)))
    labels = data.labels[train]
    fold_of = folds_of(labels, INNER_FOLDS, np.random.default_rng(0))
    targets = signed_one_hot(labels, data.classes)
    losses: dict[tuple[str, Chosen], list[float]] = {}
    used = [f for f in range(INNER_FOLDS) if 0 < np.sum(fold_of == f) < len(train)]
    for fold in used:
        rest, held = train[fold_of != fold], train[fold_of == fold]
        aim = targets[fold_of == fold]
        scores = _all_scores(family, data, rest, held, family.seeds[:1])
        for method, choice, values in scores:
            if family.criterion == "accuracy":
                loss = (100.0 - _accuracy(values, data.labels[held])) * len(held)
            else:
                loss = float(np.sum((values - aim) ** 2))
            losses.setdefault((method, choice), []).append(loss)
    found = {}
    for method in family.methods:
        whole = [
            (sum(parts), choice)
            for (name, choice), parts in losses.items()
            if name == method and len(parts) == len(used)  # else it failed on a fold
        ]
        ranked = sorted(whole, key=lambda pair: pair[0])  # equals: in the grid's order
        # where all failed, so will the refit, which has an answer to that
        choices = [choice for _, choice in ranked] or [Chosen(0, ("none",))]
        found[method] = _blend(choices, family, method)
    return found


def _blend(ranked: list[Chosen], family: Family, method: str) -> Chosen:
    """Return the best choice, or the mean of the best groups of its configuration."""
    best = ranked[0]
    groups: dict[str, str] = {}
    for choice in ranked:
        if choice.configuration == best.configuration:
            (name,) = choice.names
            groups.setdefault(name.rpartition(" ")[0], name)
    names = tuple(groups.values())[: family.blends.get(method, 1)]
    return Chosen(best.configuration, names)


def _all_scores(
    family: Family,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    seeds: tuple[int, ...],
) -> Iterator[tuple[str, Chosen, np.ndarray]]:
    """Return every method's finite scores of the test rows, for everything in the grid."""
    for number in range(len(family.configurations)):
        for method, path in _predict(family, number, data, train, test, seeds).items():
            for name, values in path.items():
                if np.all(np.isfinite(values)):
                    yield method, Chosen(number, (name,)), values


def _refit(
    family: Family,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    choices: dict[str, Chosen],
) -> Iterator[tuple[str, np.ndarray, Chosen]]:
    """Return each method's scores of the test rows as chosen.

    What was chosen may not be finite on other rows, where training diverges. Such a method
    predicts the most frequent class: that is what its user would have.
    """
    for number in sorted({choice.configuration for choice in choices.values()}):
        found = _predict(family, number, data, train, test, family.seeds)
        for method, choice in choices.items():
            if choice.configuration != number:
                continue
            values = choice.of(found.get(method, {}))
            if values is None:
                values = _most_frequent(data, train, test)
            yield method, values, choice


def _predict(
    family: Family,
    number: int,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    seeds: tuple[int, ...],
) -> Paths:
    x, x_test = family.inputs(data.x[train], data.x[test], len(data.x))
    task = Task(x, data.labels[train], data.classes, x_test, seeds)
    return family.predict(family.configurations[number], task)


def _most_frequent(data: UCIDataset, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    label = np.bincount(data.labels[train]).argmax()
    return signed_one_hot(np.full(len(test), label), data.classes)


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of right guesses."""
    two = scores.shape[1] == 1
    guess = (scores[:, 0] > 0.0).astype(int) if two else scores.argmax(axis=1)
    return 100.0 * float(np.mean(guess == labels))


def _row(
    protocol: str, method: str, fold: int, accuracy: float, chosen: str
) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "method": method,
        "fold": fold,
        "accuracy": round(accuracy, 6),
        "chosen": chosen,
    }
