"""Figure 1: a function of one direction, learnt from 800 rows."""

from __future__ import annotations

from collections.abc import Sequence

from keras_kare import datasets
from keras_kare.experiments import settings
from keras_kare.experiments.comparison import compare
from keras_kare.experiments.lab import lab
from keras_kare.experiments.store import Job, Row


def jobs(seeds: Sequence[int], initializations: Sequence[str]) -> list[Job]:
    """Return a job a panel, a seed, and an initialisation."""
    return [
        {
            "experiment": "simulation",
            "initialization": initialization,
            "gamma": gamma,
            "sigma": sigma,
            "seed": seed,
        }
        for initialization in initializations
        for seed in seeds
        for gamma in settings.GAMMAS
        for sigma in settings.SIGMAS
    ]


def work(job: Job) -> list[Row]:
    """Train by KARE and by squared error from the same start; test errors of all."""
    data = datasets.simulation(gamma=job["gamma"], sigma=job["sigma"], seed=job["seed"])
    station = lab(data.x.shape[1], 1, settings.SIMULATION_NETWORK)
    return compare(
        station,
        data,
        job["initialization"],
        job["seed"],
        settings.SIMULATION_KARE,
        settings.SIMULATION_MSE,
        settings.SIMULATION_RIDGES,
    )
