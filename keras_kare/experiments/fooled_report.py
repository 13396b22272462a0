"""The page's section on why KARE is fooled, and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kare.experiments.fooled_jobs import (
    BASE,
    FACTORS,
    KINDS,
    PROBES,
    REMEDIES,
    STARTS,
)
from keras_kare.experiments.tables import markdown_table

if TYPE_CHECKING:
    import pandas as pd

EARLY = 30
"""Steps at which settings are compared: later, all KARE is about zero."""

_COST = {"starts": float(STARTS)}
"""Of remedies, in trainings; of the others at most one."""


def sections(rows: pd.DataFrame) -> Iterator[str]:
    """Write the section below its heading.

    Args:
        rows: Those of `fooled.csv`.
    """
    yield (
        "A kernel that was trained has seen the targets, which KARE does not know of. "
        "Machines of 200 rows, trained by Adam on KARE with a relative ridge `z̃`, unless "
        "a line says otherwise (`keras_kare/experiments/fooled_jobs.py`); means over data "
        f"sets and {rows.seed.nunique()} seeds are geometric. *Directions* are what the "
        "trace of `∂ŷ/∂y`, through training and machine, has more than that of the machine "
        "alone, the `d` of KARE (Ye, JASA 1998), measured by "
        f"repeating trainings on targets that are moved a little in {PROBES} random "
        "directions; *corrected* is KARE with all, where they leave any to residuals.\n"
    )
    yield f"### What makes the gap, after {EARLY} steps\n"
    yield markdown_table(
        factors(rows),
        {"test / KARE": ".2f", "test / start": ".2f", "directions": ".1f", "d": ".1f"}
        | {"cross-fitted / test": ".2f", "corrected / test": ".2f"},
    )
    yield "### What closes it\n"
    yield (
        "Test errors at the ridge that is best on the test rows, in units of the untrained "
        "kernel's: at the end, and at the number of steps that predicts rows best which "
        "neither kernel nor machine saw (four folds: three more trainings), or of which "
        "KARE with all degrees of freedom is least. *Cost* in trainings, without folds.\n"
    )
    table = remedies(rows)
    yield markdown_table(table, dict.fromkeys(table.columns[2:], ".2f"))


def base(rows: pd.DataFrame) -> pd.DataFrame:
    """Return those of the setting that others are compared with."""
    return _where(rows, remedy="none", **BASE)


def factors(rows: pd.DataFrame, steps: int = EARLY) -> pd.DataFrame:
    """Compare settings, one factor at a time, after some steps.

    Args:
        rows: Those of `fooled.csv`.
        steps: How many. Defaults to `EARLY`.

    Returns:
        A row a setting; ratios are geometric means over data sets and seeds.
    """
    import pandas as pd

    rows = _where(_with_start(rows), remedy="none", steps=steps)
    found = []
    for factor in FACTORS:
        for value in _values(factor, rows):
            here = _where(rows, **{**BASE, factor: value})
            found.append(
                {
                    "factor": factor,
                    "value": f"{value:g}" if isinstance(value, float) else str(value),
                    "test / KARE": _geometric(here.test / here.kare),
                    "test / start": _geometric(here.best_test / here.start),
                    "directions": here.directions.mean(),
                    "d": here.freedom.mean(),
                    "cross-fitted / test": _geometric(here.cross_fitted / here.test),
                    "corrected / test": _geometric(here.corrected / here.test),
                }
            )
    return pd.DataFrame(found)


def remedies(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare remedies at the end, and where training is stopped.

    Returns:
        A row a kernel and a remedy; columns of data sets.
    """
    import pandas as pd

    rows, found = _with_start(rows), []
    for kind in KINDS:
        for name in REMEDIES:
            here = _where(rows, **{**BASE, "kind": kind}, remedy=name)
            if len(here):
                found += _lines(here, kind, name)
        for ridge in (10.0, 100.0) if kind == "ntk" else ():
            here = _where(rows, **{**BASE, "ridge": ridge}, remedy="none")
            if len(here):
                found += _lines(here, kind, f"z̃ = {ridge:g}")
    return pd.DataFrame(found)


def _lines(here: pd.DataFrame, kind: str, name: str) -> list[dict[str, Any]]:
    """Return the line of a remedy; of none also where the corrected estimate stops."""
    line = {"kernel": kind, "remedy": name, "cost": _COST.get(name, 1.0)}
    stopped = None
    if name == "none":
        stopped = {**line, "remedy": "none, all degrees of freedom"}
        stopped["cost"] = 1.0 + 2.0 * PROBES
    for dataset, part in here.groupby("dataset", sort=False):
        ratio = part.best_test / part.start
        line[f"{dataset}, end"] = _geometric(ratio[part.steps == part.steps.max()])
        line[f"{dataset}, stopped"] = _stopped(part, "cross_fitted")
        if stopped is not None:
            stopped[f"{dataset}, end"] = np.nan
            stopped[f"{dataset}, stopped"] = _stopped(part, "corrected")
    return [line] if stopped is None else [line, stopped]


def _stopped(part: pd.DataFrame, estimate: str) -> float:
    """Return the test error where an estimate of each seed's steps is least."""
    at = part.loc[part.groupby("seed")[estimate].idxmin()]
    return _geometric(at.best_test / at.start)


def _with_start(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the untrained kernel's `best_test`, as `start`."""
    by = [*BASE, "dataset", "seed"]
    start = _where(rows, remedy="none", steps=0)[[*by, "best_test"]]
    return rows.merge(start.rename(columns={"best_test": "start"}), on=by)


def _values(factor: str, rows: pd.DataFrame) -> list[Any]:
    every = {*FACTORS[factor], BASE[factor]} & {*rows[factor]}
    return sorted(every) if factor != "kind" else [BASE["kind"], *FACTORS["kind"]]


def _where(rows: pd.DataFrame, /, **values: Any) -> pd.DataFrame:
    for name, value in values.items():
        rows = rows[rows[name] == value]
    return rows


def _geometric(values: Any) -> float:
    values = np.asarray(values, float)
    return float(np.exp(np.mean(np.log(values)))) if len(values) else float("nan")
