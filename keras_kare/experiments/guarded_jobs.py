"""Table 1's customary protocol for NTK-KARE with a guard against divergence.

The guard is ours; the paper has none. What is best on one split is trained by constant
steps, which may diverge on other rows. Here such a training starts again, from the same
weights, at a tenth of the rate. All else is as in the customary protocol, the choices, too.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_kare.datasets import load_uci
from keras_kare.experiments import families, protocols, task
from keras_kare.experiments.protocols import Chosen, Family
from keras_kare.experiments.store import Job, Row

METHOD = "ntk_kare_guarded"

RESTARTS = 3
"""How often a training starts again, before it is given up."""

SLOWER = 10.0
"""What the rate is divided by, each time."""


class MissingChoicesError(ValueError):
    """The results that choices are taken from are not there."""


def jobs(results: Path, names: Sequence[str] | None = None) -> list[Job]:
    """Return a job a data set, each with the choice that it refits.

    Args:
        results: Folder of results; `uci/uci.csv` in it has the choices.
        names: Data sets. Defaults to all that have one.
    """
    table = results / "uci" / "uci.csv"
    found = choices(table) if table.exists() else {}
    missing = [name for name in names or () if name not in found]
    if missing or not found:
        of = f" for {', '.join(missing)}" if missing else ""
        raise MissingChoicesError(
            f"no choices of NTK-KARE under the customary protocol{of} in {table}. For sets "
            "of up to 2,000 rows they are made by: python -m keras_kare.experiments uci "
            f"--protocol paper --methods kare --out {results}"
        )
    return [
        {
            "experiment": "guarded",
            "protocol": "customary",
            "dataset": name,
            "family": "kare",
            "grid": _family().digest(),
            "chosen": found[name],
        }
        for name in names or found
    ]


def choices(table: Path) -> dict[str, str]:
    """Return what was chosen from today's grid, by data set."""
    of = {"protocol": "customary", "method": "ntk_kare", "grid": _family().digest()}
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if of.items() <= row.items()]
    return {row["dataset"]: row["chosen"] for row in rows}


def current(job: Job) -> bool:
    """Tell whether a job's choice is from today's grid."""
    return bool(job["grid"] == _family().digest())


def work(job: Job) -> list[Row]:
    """Return accuracies on the four folds, and how training went there."""
    family, data = _family(), load_uci(job["dataset"])
    choice = Chosen.described(job["chosen"], family)
    rows: list[Row] = []
    for fold, (train, test) in enumerate(data.folds):
        given = protocols.task_of(family, data, train, test)
        found = guarded(family.configurations[choice.configuration], given)
        scores = choice.of(found.path)
        if scores is None:
            scores = protocols.most_frequent(data, train, test)
        accuracy = protocols.accuracy_of(scores, data.labels[test])
        ended = {"rate": found.rate, "restarts": found.restarts}
        row = {"method": METHOD, "fold": fold, "accuracy": round(accuracy, 6)}
        rows.append({**row, **ended})
    return rows


class Guarded(NamedTuple):
    """How a training with the guard ended.

    Attributes:
        path: Scores by ridge, as those of `predict_kare`; none where training was given up.
        rate: The rate of the last training; `None` where it was given up.
        restarts: How often training started again.
    """

    path: task.Path
    rate: float | None
    restarts: int


def guarded(configuration: task.Configuration, given: task.Task) -> Guarded:
    """Predict as `families.predict_kare`, after a training that does not diverge."""
    (epochs,) = configuration["epochs"]
    for restarts in range(RESTARTS + 1):
        rate = configuration["rate"] / SLOWER**restarts
        station, y = families.kare_start(configuration, given)
        training = families.kare_training(rate, epochs, len(given.x))
        if not diverged(station.kare_losses(given.x, y, training)):
            path = families.kare_path(f"epochs={epochs} ", station, y, given)
            return Guarded(path, rate, restarts)
    return Guarded({}, None, RESTARTS)


def diverged(losses: np.ndarray) -> bool:
    """Tell whether a loss is not finite, or the last above the first."""
    return not np.all(np.isfinite(losses)) or bool(losses[-1] > losses[0])


def _family() -> Family:
    return families.families("paper")["kare"]
