"""Figure 2: handwritten 7 against 9, and Higgs boson events, from 1,000 rows."""

from __future__ import annotations

from collections.abc import Sequence

from keras_kare import datasets
from keras_kare.experiments import settings
from keras_kare.experiments.comparison import compare
from keras_kare.experiments.lab import lab
from keras_kare.experiments.store import Job, Row

HIGGS = ("higgs", "higgs_with_weight")
"""Without and with the column that gives the label away."""


def jobs(
    names: Sequence[str], seeds: Sequence[int], initializations: Sequence[str]
) -> list[Job]:
    """Return a job a data set, a network, a seed, and an initialisation."""
    return [
        {
            "dataset": name,
            "initialization": initialization,
            "depth": architecture.depth,
            "width": architecture.width,
            "seed": seed,
        }
        for initialization in initializations
        for seed in seeds
        for name in names
        for architecture in settings.IMAGE_NETWORKS
    ]


def load(name: str, seed: int) -> datasets.Split:
    """Load the rows of a seed; of Higgs they are the same for all, as the authors' are."""
    if name == "mnist":
        rows = settings.IMAGE_ROWS
        return datasets.mnist(rows=rows, test_rows=rows, seed=seed)
    return datasets.higgs(weight_column=name == "higgs_with_weight")


def work(job: Job) -> list[Row]:
    """Train by KARE and by squared error from the same start; test errors of all."""
    data = load(job["dataset"], job["seed"])
    architecture = settings.Architecture(job["depth"], job["width"])
    return compare(
        lab(data.x.shape[1], 1, architecture),
        data,
        job["initialization"],
        job["seed"],
        settings.IMAGE_KARE[architecture.depth],
        settings.IMAGE_MSE,
        settings.IMAGE_RIDGES,
    )
