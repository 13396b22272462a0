"""Table 1: accuracy on the UCI sets of Fernández-Delgado et al. (2014)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from keras_kare.datasets import load_uci, uci_names
from keras_kare.experiments import protocols
from keras_kare.experiments.families import families
from keras_kare.experiments.store import Job, Row

MOST_ROWS = 2000
"""Of the sets that all protocols run on."""

MOST_ROWS_PAPER = 5000
"""Of those that the paper's protocol runs on."""

rows_of = functools.lru_cache(maxsize=None)(lambda name: len(load_uci(name).x))
"""Rows of a data set."""


def jobs(
    protocol: str, names: Iterable[str] | None = None, methods: Sequence[str] | None = None
) -> list[Job]:
    """A job a data set and a family; large data sets first.

    Args:
        protocol: `"paper"` (with `"customary"`, which makes the same choices), `"honest"`.
        names: Data sets. Defaults to all that are there, up to `MOST_ROWS`.
        methods: Families. Defaults to all whose library is installed.
    """
    chosen = [n for n in names or uci_names() if rows_of(n) <= MOST_ROWS]
    chosen.sort(key=rows_of, reverse=True)
    return [
        {"experiment": "uci", "protocol": protocol, "dataset": name, "family": family}
        for name in chosen
        for family in families(protocol)
        if methods is None or family in methods
    ]


def work(job: Job) -> list[Row]:
    """Accuracies of a family's methods on one data set."""
    family = families(job["protocol"])[job["family"]]
    data = load_uci(job["dataset"])
    if job["protocol"] == "honest":
        return protocols.honest(family, data)
    return protocols.published(family, data)
