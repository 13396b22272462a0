"""Regression: `KARERegressor` against Gaussian processes, trees and kernel ridge.

Each job fits one regressor on four folds of one table. A seed draws the rows, shuffles the
folds, and is the regressors' own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import KFold

from keras_kare.experiments.forecasts import scores
from keras_kare.experiments.regression_tables import TABLES, load_table
from keras_kare.experiments.regressors import REGRESSORS, available
from keras_kare.experiments.store import Job, Row

ROWS = 1000
"""Most rows of a table, three quarters of which train."""

FOLDS = 4

SEED = 0
"""Of rows, folds and regressors."""


def jobs(tables: Sequence[str] = tuple(TABLES)) -> list[Job]:
    """Return a job a table and regressor whose library is installed.

    Args:
        tables: Names. Defaults to all.
    """
    return [_job(table, method) for table in tables for method in available()]


def _job(table: str, method: str) -> Job:
    return {
        "experiment": "regression",
        "dataset": table,
        "method": method,
        "settings": REGRESSORS[method].settings,
        "rows": ROWS,
        "seed": SEED,
    }


def current(job: Job) -> bool:
    """Tell whether a job is one of today's, with or without its library."""
    known = job["dataset"] in TABLES and job["method"] in REGRESSORS
    return known and job == _job(job["dataset"], job["method"])


def work(job: Job) -> list[Row]:
    """Fit on each fold, and return how good forecasts of its test rows are.

    Errors are in units of the target's standard deviation over all rows of the table.
    `cpu_seconds`, those of a fit, are all that a second run does not repeat.
    """
    x, y = load_table(job["dataset"], job["rows"], job["seed"])
    scale = float(np.std(y))
    fit = REGRESSORS[job["method"]].fit
    rows = []
    folds = KFold(FOLDS, shuffle=True, random_state=job["seed"])
    for fold, (train, test) in enumerate(folds.split(x)):
        begun = time.process_time()
        predict = fit(x[train], y[train], job["seed"])
        seconds = time.process_time() - begun
        found = scores(predict(x[test]), y[test], scale)
        rows.append(
            {
                "fold": fold,
                "train_rows": len(train),
                "test_rows": len(test),
                "columns": x.shape[1],
                **{k: None if v is None else round(v, 6) for k, v in found.items()},
                "cpu_seconds": round(seconds, 2),
            }
        )
    return rows
