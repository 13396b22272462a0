"""The command line: which jobs, where results go, and what is drawn from them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from keras_kare.experiments import images, runner, settings, simulation, uci
from keras_kare.experiments.store import Job, Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    store = Store(options.out / options.name)
    todo = _jobs(options)
    work = {"simulation": simulation.work, "uci": uci.work}.get(options.name, images.work)
    try:
        left = runner.run(todo, work, store, options.workers, options.budget)
    finally:
        store.collect(options.name)
    print(
        f"{len(todo) - left} of {len(todo)} jobs are done; "
        f"{store.folder / options.name}.csv has their results."
        + (" The same command goes on." if left else "")
    )


def _jobs(options: argparse.Namespace) -> list[Job]:
    seeds = settings.SEEDS[: options.seeds]
    if options.name == "simulation":
        return simulation.jobs(seeds, options.initialization)
    if options.name == "uci":
        return [
            job
            for protocol in options.protocol
            for job in uci.jobs(protocol, options.datasets, options.methods)
        ]
    names = images.HIGGS if options.name == "higgs" else ("mnist",)
    return images.jobs(names, seeds, options.initialization)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_kare.experiments",
        description="The experiments of arXiv:2505.11347, and ours. Results are kept job "
        "by job: the same command goes on after a kill.",
    )
    parser.add_argument("name", choices=["simulation", "mnist", "higgs", "uci"])
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of results (results)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (one a core)"
    )
    parser.add_argument(
        "--budget", type=float, help="minutes after which no further job starts (no end)"
    )
    parser.add_argument(
        "--seeds", type=int, default=len(settings.SEEDS), help="how many (10)"
    )
    parser.add_argument(
        "--initialization",
        nargs="+",
        choices=settings.INITIALIZATIONS,
        default=list(settings.INITIALIZATIONS),
        help="starts of the networks (both)",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=["paper", "honest"],
        default=["paper", "honest"],
        help="of uci: paper (which makes the choices of customary, too), honest (both)",
    )
    parser.add_argument("--datasets", nargs="+", help="of uci (all up to 2,000 rows)")
    parser.add_argument("--methods", nargs="+", help="families of uci (all)")
    return parser
