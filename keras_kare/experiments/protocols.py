"""Four ways to report accuracy on the UCI sets, from optimistic to honest.

- **paper**: one split (`conxuntos.dat`); each method gets the configuration, epochs and
  ridge that are best *on the test rows*. Optimistic: with many choices and few rows, some
  choice is lucky.
- **customary** (Fernández-Delgado et al. 2014; Arora et al. 2020; Radhakrishnan et al.
  2024): the choice is made on that same split, then the mean accuracy over the four folds
  of `conxuntos_kfold.dat` is reported. Their test rows took part in the choice.
- **honest**: for each of the four folds, the choice is made inside its training rows, by
  cross-validation; the test rows are predicted once.
- **repeated**: the same, and data sets of few rows are divided several times: their
  accuracy on four folds says little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kare.datasets import UCIDataset, signed_one_hot
from keras_kare.experiments.task import Configuration, Path, Task, guesses
from keras_kare.recipes.cross_fitting import folds_of

Paths = dict[str, Path]
"""A path of scores by method."""

Inputs = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""From training inputs, test inputs, and the rows of the data set: both, scaled."""

INNER_FOLDS = 4
"""Folds of the honest protocol's cross-validation."""

FEW_ROWS = 300
REPEATS = 5
"""How often data sets of fewer rows are divided into folds."""


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
        chooses: Whether there is anything to choose.
        settings: What else `predict` depends on, for `digest`.
    """

    methods: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    predict: Callable[[Configuration, Task], Paths]
    inputs: Inputs
    criterion: str = "squared_error"
    chooses: bool = True
    settings: str = ""

    def digest(self) -> str:
        """Return eight hexadecimal digits of the grid and what else results depend on."""
        # `(0,)` and `{}` stand for what families once had: results on disk are still theirs
        choice = self.criterion, (0,), self.chooses, dict[str, int]()
        text = repr((self.methods, self.configurations, *choice, self.settings))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Chosen:
    """A configuration, by number, and a name along its path."""

    configuration: int
    name: str

    def describe(self, family: Family) -> str:
        """Return one line for a table."""
        words = [f"{k}={v}" for k, v in family.configurations[self.configuration].items()]
        return " ".join([*words, self.name]).strip()

    @classmethod
    def described(cls, text: str, family: Family) -> Chosen:
        """Return the choice of which `describe` says so."""
        for number in range(len(family.configurations)):
            begins = cls(number, "").describe(family) + " "
            if text.startswith(begins):
                return cls(number, text.removeprefix(begins))
        raise ValueError(f"`text` must be of the family's grid. Received: text={text!r}")

    def of(self, path: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the scores, or `None` where they are not there, or not finite."""
        values = path.get(self.name)
        return values if values is not None and np.all(np.isfinite(values)) else None


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
    scores = _all_scores(family, data, train, test)
    choices: dict[str, Chosen] = {}
    best: dict[str, float] = {}
    for method, choice, values in scores:
        accuracy = accuracy_of(values, data.labels[test])
        if accuracy > best.get(method, -1.0):
            best[method], choices[method] = accuracy, choice
    rows = [
        _row("paper", method, 0, best[method], choice.describe(family))
        for method, choice in choices.items()
    ]
    for fold, (train, test) in enumerate(data.folds if customary else ()):
        found = _reported(family, data, train, test, choices)
        rows += [_row("customary", fold=fold, **each) for each in found]
    return rows


def honest(
    family: Family, data: UCIDataset, folds: Iterable[int] = range(4)
) -> list[dict[str, Any]]:
    """Return rows of the honest protocol.

    Args:
        family: The methods.
        data: The data set.
        folds: Which of its folds. Defaults to all four.
    """
    return [
        _row("honest", fold=fold, **each)
        for fold in folds
        for each in _unseen(family, data, *data.folds[fold])
    ]


def repeated(family: Family, data: UCIDataset) -> list[dict[str, Any]]:
    """Return rows of the repeated protocol; folds are numbered on from those published.

    Args:
        family: The methods. Their seed is the number of the repeat.
        data: The data set.
    """
    repeats = REPEATS if len(data.x) < FEW_ROWS else 1
    return [
        _row("repeated", fold=len(data.folds) * repeat + fold, **each)
        for repeat in range(repeats)
        for fold, (train, test) in enumerate(divided(data, repeat))
        for each in _unseen(family, data, train, test, repeat)
    ]


def divided(data: UCIDataset, repeat: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return the published folds, or others with as many training rows in each.

    The others' test rows are spread evenly over the classes, and over the folds: a row is
    tested once, as nearly as the published numbers allow.

    Args:
        data: The data set.
        repeat: 0 for the published ones, else the seed.
    """
    if repeat == 0:
        return data.folds
    rng = np.random.default_rng(repeat)
    n, count = len(data.x), len(data.folds)
    shuffled = rng.permutation(n)
    ordered = shuffled[np.argsort(data.labels[shuffled], kind="stable")]
    found = []
    for fold, (_, published) in enumerate(data.folds):
        test = np.sort(ordered[(fold + count * np.arange(len(published))) % n])
        found.append((np.setdiff1d(np.arange(n), test), test))
    return tuple(found)


def _unseen(
    family: Family, data: UCIDataset, train: np.ndarray, test: np.ndarray, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Choose inside the training rows, and report on the test rows."""
    choices = cross_validate(family, data, train, seed)
    return _reported(family, data, train, test, choices, seed)


def _reported(
    family: Family,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    choices: dict[str, Chosen],
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Return each method's accuracy on the test rows as chosen."""
    for method, values, choice in _refit(family, data, train, test, choices, seed):
        yield {
            "method": method,
            "accuracy": accuracy_of(values, data.labels[test]),
            "chosen": choice.describe(family),
        }


def cross_validate(
    family: Family, data: UCIDataset, train: np.ndarray, seed: int = 0
) -> dict[str, Chosen]:
    """Choose for each method by rows of `train` that its fits have not seen."""
    if not family.chooses:
        return dict.fromkeys(family.methods, Chosen(0, ""))
    labels = data.labels[train]
    fold_of = folds_of(labels, INNER_FOLDS, np.random.default_rng(0))
    targets = signed_one_hot(labels, data.classes)
    losses: dict[tuple[str, Chosen], list[float]] = {}
    used = [f for f in range(INNER_FOLDS) if 0 < np.sum(fold_of == f) < len(train)]
    for fold in used:
        rest, held = train[fold_of != fold], train[fold_of == fold]
        aim = targets[fold_of == fold]
        scores = _all_scores(family, data, rest, held, seed)
        for method, choice, values in scores:
            if family.criterion == "accuracy":
                loss = (100.0 - accuracy_of(values, data.labels[held])) * len(held)
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
        found[method] = ranked[0][1] if ranked else Chosen(0, "none")
    return found


def _all_scores(
    family: Family,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    seed: int = 0,
) -> Iterator[tuple[str, Chosen, np.ndarray]]:
    """Return every method's finite scores of the test rows, for everything in the grid."""
    for number in range(len(family.configurations)):
        for method, path in _predict(family, number, data, train, test, seed).items():
            for name, values in path.items():
                if np.all(np.isfinite(values)):
                    yield method, Chosen(number, name), values


def _refit(
    family: Family,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    choices: dict[str, Chosen],
    seed: int,
) -> Iterator[tuple[str, np.ndarray, Chosen]]:
    """Return each method's scores of the test rows as chosen.

    What was chosen may not be finite on other rows, where training diverges. Such a method
    predicts the most frequent class: that is what its user would have.
    """
    for number in sorted({choice.configuration for choice in choices.values()}):
        found = _predict(family, number, data, train, test, seed)
        for method, choice in choices.items():
            if choice.configuration != number:
                continue
            values = choice.of(found.get(method, {}))
            if values is None:
                values = most_frequent(data, train, test)
            yield method, values, choice


def _predict(
    family: Family,
    number: int,
    data: UCIDataset,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
) -> Paths:
    task = task_of(family, data, train, test, seed)
    return family.predict(family.configurations[number], task)


def task_of(
    family: Family, data: UCIDataset, train: np.ndarray, test: np.ndarray, seed: int = 0
) -> Task:
    """Return what a family's fits get of a data set."""
    x, x_test = family.inputs(data.x[train], data.x[test], len(data.x))
    return Task(x, data.labels[train], data.classes, x_test, seed)


def most_frequent(data: UCIDataset, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return scores of the test rows by which all are of the most frequent class."""
    label = np.bincount(data.labels[train]).argmax()
    return signed_one_hot(np.full(len(test), label), data.classes)


def accuracy_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of right guesses."""
    return 100.0 * float(np.mean(guesses(scores) == labels))


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
