"""Table 1: accuracy on the UCI sets of Fernández-Delgado et al. (2014)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from keras_kare.datasets import load_uci, uci_names
from keras_kare.experiments import protocols
from keras_kare.experiments.families import families
from keras_kare.experiments.store import Job, Row

MOST_ROWS = 2000
"""Rows of the largest sets that all protocols run on."""

MOST_ROWS_PAPER = 5000
"""Rows of the largest sets on which the paper's methods run under its protocol alone."""

MOST_ROWS_SCREEN = 700
SCREEN_FOLDS = (1,)
"""Sets and folds on which variants of the recipe are compared."""

PAPER_FAMILIES = ("kare", "mse")
"""Families with the methods of the paper."""

rows_of = functools.lru_cache(maxsize=None)(lambda name: len(load_uci(name).x))
"""Rows of a data set."""


def jobs(
    protocol: str, names: Iterable[str] | None = None, methods: Sequence[str] | None = None
) -> list[Job]:
    """Return a job a data set and a family; large data sets first.

    Args:
        protocol: `"paper"` (with `"customary"`, which makes the same choices), `"honest"`,
            or `"screen"`, honest, of variants of the recipe.
        names: Data sets. Defaults to all that are there, up to `MOST_ROWS` and, of the
            paper's protocol, `MOST_ROWS_PAPER`.
        methods: Families. Defaults to all whose library is installed.
    """
    most = most_rows(protocol)
    every = screened(uci_names()) if protocol == "screen" else uci_names()
    chosen = [n for n in names or every if rows_of(n) <= most]
    chosen.sort(key=rows_of, reverse=True)
    return [
        {
            "experiment": "uci",
            "protocol": protocol,
            "dataset": name,
            "family": family,
            "grid": grid.digest(),  # results of another grid are not taken for these
        }
        for name in chosen
        for family, grid in families(protocol, is_large(name)).items()
        if methods is None or family in methods
        if not is_large(name) or family in PAPER_FAMILIES
    ]


def is_large(name: str) -> bool:
    """Tell whether a data set is among those that only the paper's methods run on."""
    return rows_of(name) > MOST_ROWS


def most_rows(protocol: str) -> int:
    """Return the rows of the largest data sets that a protocol runs on."""
    return {"paper": MOST_ROWS_PAPER, "screen": MOST_ROWS_SCREEN}.get(protocol, MOST_ROWS)


def screened(names: Sequence[str]) -> list[str]:
    """Return every other data set: those that the recipe was chosen on.

    The others confirm it.
    """
    return sorted(names)[::2]


def current(job: Job) -> bool:
    """Tell whether a job's grid is that of today: results of others are no longer shown."""
    known = families(job["protocol"], is_large(job["dataset"]))
    family = known.get(job["family"])
    return family is not None and job.get("grid") == family.digest()


def work(job: Job) -> list[Row]:
    """Return the accuracies of a family's methods on one data set."""
    large = is_large(job["dataset"])
    family = families(job["protocol"], large)[job["family"]]
    data = load_uci(job["dataset"])
    if job["protocol"] == "screen":
        return protocols.honest(family, data, SCREEN_FOLDS, "screen")
    if job["protocol"] == "honest":
        return protocols.honest(family, data)
    return protocols.published(family, data, customary=not large)
