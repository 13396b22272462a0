"""Table 1: accuracy on the UCI sets of Fernández-Delgado et al. (2014)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from keras_kare.datasets import load_uci, uci_names
from keras_kare.experiments import protocols
from keras_kare.experiments.families import families
from keras_kare.experiments.store import Job, Row
from keras_kare.experiments.variants import VARIANTS

PROTOCOLS = ("paper", "honest", "repeated")

MOST_ROWS = 2000
"""Rows of the largest sets that all protocols run on."""

MOST_ROWS_PAPER = 5000
"""Rows of the largest sets on which the paper's methods run under its protocol alone."""

HALVES = ("screen", "confirm")
"""Data sets of the repeated protocol: the recipe and its variants are chosen on the first
half, and the recipe is confirmed on the second."""

LOOKS = "once with the recipe before this one, and once with this one"
"""How often accuracies on the second half have been looked at; who does so, counts here."""

PAPER_FAMILIES = ("kare", "mse")
"""Families with the methods of the paper."""

rows_of = functools.lru_cache(maxsize=None)(lambda name: len(load_uci(name).x))
"""Rows of a data set."""


def jobs(
    protocol: str,
    names: Iterable[str] | None = None,
    methods: Sequence[str] | None = None,
    half: str = "screen",
) -> list[Job]:
    """Return a job a data set and a family; large data sets first.

    Args:
        protocol: `"paper"` (with `"customary"`, which makes the same choices), `"honest"`,
            or `"repeated"`.
        names: Data sets. Defaults to all that the protocol runs on; others are left out.
        methods: Families. Defaults to all whose library is installed.
        half: Which data sets the repeated protocol runs on, as `HALVES` calls them.
    """
    every = data_sets(protocol, half)
    chosen = [name for name in names or every if name in every]
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
        if half == "screen" or family not in VARIANTS
    ]


def data_sets(protocol: str, half: str = "screen") -> list[str]:
    """Return the names of the data sets that a protocol runs on.

    Args:
        protocol, half: As for `jobs`.
    """
    names = uci_names()
    if protocol == "repeated":
        names = half_of(names, half)
    return [name for name in names if rows_of(name) <= most_rows(protocol)]


def half_of(names: Sequence[str], half: str) -> list[str]:
    """Return one of the `HALVES` of all data sets."""
    first = screened(names)
    return first if half == "screen" else sorted(set(names) - set(first))


def is_large(name: str) -> bool:
    """Tell whether a data set is among those that only the paper's methods run on."""
    return rows_of(name) > MOST_ROWS


def most_rows(protocol: str) -> int:
    """Return the rows of the largest data sets that a protocol runs on."""
    return MOST_ROWS_PAPER if protocol == "paper" else MOST_ROWS


def screened(names: Sequence[str]) -> list[str]:
    """Return every other data set: those that the recipe was chosen on.

    The others confirm it.
    """
    return sorted(names)[::2]


def current(job: Job) -> bool:
    """Tell whether a job's grid is that of today: results of others are no longer shown."""
    if job["protocol"] not in PROTOCOLS:
        return False
    known = families(job["protocol"], is_large(job["dataset"]))
    family = known.get(job["family"])
    return family is not None and job.get("grid") == family.digest()


def work(job: Job) -> list[Row]:
    """Return the accuracies of a family's methods on one data set."""
    large = is_large(job["dataset"])
    family = families(job["protocol"], large)[job["family"]]
    data = load_uci(job["dataset"])
    if job["protocol"] == "repeated":
        return protocols.repeated(family, data)
    if job["protocol"] == "honest":
        return protocols.honest(family, data)
    return protocols.published(family, data, customary=not large)
