"""The command line: which jobs, where results go, and what is drawn from them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_kare.datasets import uci_names
from keras_kare.experiments import (
    convergence_jobs,
    drift_jobs,
    equivalence_jobs,
    fooled_jobs,
    guarded_jobs,
    image_jobs,
    regression_jobs,
    report,
    runner,
    settings,
    simulation_jobs,
    uci_jobs,
)
from keras_kare.experiments.families import families
from keras_kare.experiments.regression_tables import TABLES
from keras_kare.experiments.store import Job, Store
from keras_kare.experiments.variants import VARIANTS

TAKEN_BY = {"datasets": ("uci", "guarded", "regression"), "methods": ("uci",)}
"""Which experiments some options are for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.reference is not None and not options.reference.is_dir():
        parser.error(f"argument --reference: no folder: {options.reference}")
    if options.name == "report":
        print(report.write(options.out, options.reference))
        return
    _check(parser, options)
    experiment = EXPERIMENTS[options.name]
    try:
        todo = experiment.jobs(options)
    except guarded_jobs.MissingChoicesError as error:
        parser.error(str(error))
    store = Store(options.out / options.name)
    try:
        left = runner.run(todo, experiment.work, store, options.workers, options.budget)
    finally:
        store.collect(options.name, experiment.current)
    print(
        f"{len(todo) - left} of {len(todo)} jobs are done; "
        f"{store.folder / options.name}.csv has their results."
        + (" The same command goes on." if left else "")
    )


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what would otherwise be left out in silence."""
    for option, those in TAKEN_BY.items():
        if getattr(options, option) is not None and options.name not in those:
            parser.error(f"argument --{option}: {options.name} takes none")
    if options.workers is not None and options.workers < 0:
        parser.error(f"argument --workers: at least 0. Received: {options.workers}")
    known = {name for protocol in options.protocol for name in families(protocol)}
    if options.half == "confirm":
        known -= {*VARIANTS}
    for name in options.methods or ():
        if name not in known:
            parser.error(
                f"argument --methods: invalid choice: {name!r} (choose from "
                f"{', '.join(sorted(known))})"
            )
    for name in (options.datasets or ()) if options.name == "regression" else ():
        if name not in TABLES:
            parser.error(f"argument --datasets: no such table: {name!r}")
    for name in (options.datasets or ()) if options.name == "uci" else ():
        if name not in uci_names():
            parser.error(f"argument --datasets: no such data set: {name!r}")
        if all(uci_jobs.rows_of(name) > uci_jobs.most_rows(p) for p in options.protocol):
            parser.error(
                f"argument --datasets: {name!r} has {uci_jobs.rows_of(name)} rows, too "
                f"many for the protocols asked for: {', '.join(options.protocol)}"
            )
        if not any(name in uci_jobs.data_sets(p, options.half) for p in options.protocol):
            parser.error(
                f"argument --datasets: {name!r} is not in the half asked for: --half "
                f"{options.half}"
            )
    if not 1 <= options.seeds <= len(settings.SEEDS):
        parser.error(
            f"argument --seeds: from 1 to {len(settings.SEEDS)}. Received: {options.seeds}"
        )


class Experiment(NamedTuple):
    """What to do, how, and which results still count."""

    jobs: Callable[[argparse.Namespace], list[Job]]
    work: runner.Work
    current: Callable[[Job], bool] = lambda job: True


def _simulation(options: argparse.Namespace) -> list[Job]:
    return simulation_jobs.jobs(settings.SEEDS[: options.seeds], options.initialization)


def _drift(options: argparse.Namespace) -> list[Job]:
    return drift_jobs.jobs(settings.SEEDS[: options.seeds])


def _equivalence(options: argparse.Namespace) -> list[Job]:
    return equivalence_jobs.jobs(settings.SEEDS[: options.seeds])


def _convergence(options: argparse.Namespace) -> list[Job]:
    return convergence_jobs.jobs(settings.SEEDS[: options.seeds])


def _images(*names: str) -> Callable[[argparse.Namespace], list[Job]]:
    def jobs(options: argparse.Namespace) -> list[Job]:
        return image_jobs.jobs(
            names, settings.SEEDS[: options.seeds], options.initialization
        )

    return jobs


def _uci(options: argparse.Namespace) -> list[Job]:
    return [
        job
        for protocol in options.protocol
        for job in uci_jobs.jobs(protocol, options.datasets, options.methods, options.half)
    ]


def _guarded(options: argparse.Namespace) -> list[Job]:
    return guarded_jobs.jobs(options.out, options.datasets)


def _fooled(options: argparse.Namespace) -> list[Job]:
    return fooled_jobs.jobs(settings.SEEDS[: options.seeds])


def _regression(options: argparse.Namespace) -> list[Job]:
    return regression_jobs.jobs(options.datasets or tuple(TABLES))


EXPERIMENTS = {
    "simulation": Experiment(_simulation, simulation_jobs.work),
    "mnist": Experiment(_images("mnist"), image_jobs.work),
    "higgs": Experiment(_images(*image_jobs.HIGGS), image_jobs.work),
    "drift": Experiment(_drift, drift_jobs.work),
    "equivalence": Experiment(_equivalence, equivalence_jobs.work),
    "convergence": Experiment(_convergence, convergence_jobs.work),
    "fooled": Experiment(_fooled, fooled_jobs.work),
    "regression": Experiment(_regression, regression_jobs.work, regression_jobs.current),
    "uci": Experiment(_uci, uci_jobs.work, uci_jobs.current),
    "guarded": Experiment(_guarded, guarded_jobs.work, guarded_jobs.current),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_kare.experiments",
        description="The experiments of arXiv:2505.11347, and ours. Results are kept job "
        "by job: the same command goes on after a kill.",
    )
    parser.add_argument("name", choices=[*EXPERIMENTS, "report"])
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
        choices=uci_jobs.PROTOCOLS,
        default=["paper", "honest"],
        help="of uci: paper (which makes the choices of customary, too), honest, repeated "
        "(with the recipe) (paper and honest)",
    )
    parser.add_argument(
        "--half",
        choices=uci_jobs.HALVES,
        default="screen",
        help="of uci, repeated: data sets to choose the recipe on, or those that confirm "
        "it, which are for one look (screen)",
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        help="of uci (all up to 2,000 rows), guarded (all of which uci made the choices) "
        "and regression (all)",
    )
    parser.add_argument("--methods", nargs="+", help="families of uci (all)")
    parser.add_argument(
        "--reference",
        type=lambda text: Path(text) if text else None,
        help="of report: folder of published values (none)",
    )
    return parser
