"""The page's section on regression: ranks, relative errors, ties, and every table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from keras_kare.experiments.names import in_text
from keras_kare.experiments.regression_tables import TABLES
from keras_kare.experiments.regressors import REGRESSORS
from keras_kare.experiments.tables import markdown_table

if TYPE_CHECKING:
    import pandas as pd

OURS = "kare_regressor"
UNTRAINED = "kare_untrained"
"""Ours without training, which is in no ranking."""

DIGITS = 3
"""Significant digits to which scores are equal in ranks."""

TIED = 2.0
"""Standard errors within which a difference is a tie."""

_FORMATS = {
    "rank": ".2f",
    "rank s.e.": ".2f",
    "of the best": ".3f",
    "of the best s.e.": ".3f",
    "over ours": "+.1%",
    "over ours s.e.": ".1%",
    "median fit": ".2f s",
    "log-likelihood": ".3f",
    "its rank": ".2f",
    "in 90 % intervals": ".1%",
}


def sections(rows: pd.DataFrame) -> Iterator[str]:
    """Write the section below its heading.

    Args:
        rows: Those of `regression.csv`.
    """
    yield _how(rows)
    real = rows[~rows.dataset.map(simulated)]
    for score, title in (("rmse", "RMSE"), ("crps", "CRPS")):
        found = means(real, score)
        if OURS not in found:
            continue
        yield f"### {title}, {len(found)} measured tables\n"
        yield _summary(real, score)
        if UNTRAINED in found:
            yield _training(real, score, title)
    for score, title in (("rmse", "RMSE"), ("crps", "CRPS")):
        yield f"### {title} of each table, means over folds\n"
        yield _every_table(rows, score)


def simulated(name: str) -> bool:
    """Tell whether a formula made a table's targets."""
    return name in TABLES and TABLES[name].simulated


def means(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return means over folds, table by method, where all methods have run.

    Methods that have not run on all tables that others have, or lack the score, are left
    out. A fold whose score is not a number makes the mean none.
    """
    rows = rows[rows.groupby("method")[score].transform("count") > 0]
    pivot = {"index": "dataset", "columns": "method", "values": score, "sort": False}
    folds = rows.assign(**{score: 1}).pivot_table(**pivot, aggfunc="sum")
    found = rows.pivot_table(**pivot, aggfunc=lambda s: s.mean(skipna=False), dropna=False)
    done = folds == folds.max().max()
    found = found[[name for name in done if done[name].sum() == done.sum().max()]]
    found = found[done[found.columns].all(axis=1)]
    order = [*REGRESSORS, *found.columns.difference(list(REGRESSORS))]
    return found[[name for name in order if name in found]]


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Return ranks within each table, 1 for the least; equal ones share their mean rank."""
    rounded = table.map(lambda value: float(f"{value:.{DIGITS}g}"))
    return rounded.rank(axis=1, na_option="bottom")


def verdict(mean: float, standard_error: float) -> str:
    """Return whether a loss over ours makes a method better, worse, or neither."""
    if not abs(mean) > TIED * standard_error:
        return "tie"
    return "worse" if mean > 0.0 else "better"


def duels(rows: pd.DataFrame, score: str, method: str) -> tuple[int, int, int]:
    """Return on how many tables ours is better, ties, and is worse than a method.

    A tie is a mean difference of folds within two of its standard errors.
    """
    chosen = rows[rows.method.isin([OURS, method])]
    folds = chosen.pivot_table(score, ["dataset", "fold"], "method")
    difference = (folds[method] - folds[OURS]).groupby("dataset")
    found = [
        verdict(mean, error)
        for mean, error in zip(difference.mean(), difference.sem(), strict=True)
    ]
    return found.count("worse"), found.count("tie"), found.count("better")


def _over_ours(table: pd.DataFrame, method: str) -> tuple[float, float]:
    """Return the mean ratio of losses less one, by logarithms, and its standard error."""
    ratio = np.log(table[method] / table[OURS])
    mean = float(np.exp(ratio.mean()))
    return mean - 1.0, mean * float(ratio.sem())


def _summary(rows: pd.DataFrame, score: str) -> str:
    import pandas as pd

    table = means(rows, score).drop(columns=UNTRAINED, errors="ignore")
    places, relative = ranks(table), table.div(table.min(axis=1), axis=0)
    lines = []
    for method in places.mean().sort_values(kind="stable").index:
        line = {
            "method": in_text(method),
            "rank": places[method].mean(),
            "rank s.e.": places[method].sem(),
            "of the best": relative[method].mean(),
            "of the best s.e.": relative[method].sem(),
        }
        if method == OURS:
            line |= dict.fromkeys(("over ours", "over ours s.e."), np.nan)
            line |= dict.fromkeys(("is", "ours better, tie, worse"), "")
        else:
            mean, error = _over_ours(table, method)
            line |= {"over ours": mean, "over ours s.e.": error}
            line["is"] = verdict(mean, error)
            line["ours better, tie, worse"] = ", ".join(
                map(str, duels(rows, score, method))
            )
        own = rows[rows.method == method]
        if score == "rmse":
            line["median fit"] = own.cpu_seconds.median()
        else:
            likelihood = means(rows, "log_likelihood")
            likelihood = likelihood.drop(columns=UNTRAINED, errors="ignore")
            line["log-likelihood"] = likelihood[method].median()
            line["its rank"] = ranks(-likelihood)[method].mean()
            line["in 90 % intervals"] = means(rows, "covered")[method].mean()
        lines.append(line)
    frame = pd.DataFrame(lines)
    texts = frame.copy()
    for name in frame.columns.intersection(list(_FORMATS)):
        spec, _, unit = _FORMATS[name].partition(" ")
        texts[name] = [
            "" if value != value else f"{value:{spec}} {unit}".strip()
            for value in frame[name]
        ]
    return markdown_table(texts)


def _training(rows: pd.DataFrame, score: str, title: str) -> str:
    """Say what training is worth."""
    mean, error = _over_ours(means(rows, score), UNTRAINED)
    better, ties, worse = duels(rows, score, UNTRAINED)
    return (
        f"Does training pay? Without it, `KARERegressor(epochs=0)`, {title} is "
        f"{mean:+.1%} of ours (standard error {error:.1%}: {verdict(mean, error)}); "
        f"training is better on {better} tables, ties on {ties}, and is worse on {worse}.\n"
    )


def _every_table(rows: pd.DataFrame, score: str) -> str:
    table = means(rows, score)
    sizes = rows.groupby("dataset")[["train_rows", "test_rows", "columns"]].first()
    sizes = sizes.loc[table.index]
    names = [
        f"{name.replace('_', ' ')}{' (simulated)' if simulated(name) else ''}"
        for name in table.index
    ]
    table.columns = [in_text(name) for name in table.columns]
    methods = list(table.columns)
    table.insert(0, "table", names)
    table.insert(1, "rows", sizes.train_rows + sizes.test_rows)
    table.insert(2, "columns", sizes["columns"])
    order = sorted(range(len(table)), key=lambda i: names[i].endswith("(simulated)"))
    return markdown_table(table.iloc[order], dict.fromkeys(methods, ".3f"))


def _how(rows: pd.DataFrame) -> str:
    sizes = rows.groupby("dataset")[["train_rows", "test_rows"]].first().sum(axis=1)
    return (
        "`KARERegressor(random_state=0)` against regressors at their libraries' defaults, "
        "Gaussian processes with one length scale and noise by the marginal likelihood "
        "(targets scaled), kernel ridge regression whose scale and ridge leave-one-out "
        "errors choose, and xRFM whose six configurations and iterations a held-out fifth "
        "chooses; all but ours and trees get standardised inputs. The forest has 500 "
        "trees. "
        "Nothing was chosen on these tables; the defaults of ours were, on classes of "
        "some UCI sets. Tables are those that scikit-learn ships, and UCI's, whose "
        "classes are left out: there one measured column is predicted from the others. "
        f"At most {sizes.max():,} rows, drawn by a seed; four folds.\n\n"
        "RMSE and CRPS are in units of the target's standard deviation. Forecasts are "
        "Gaussian, noise included, for ours and Gaussian processes; for the forest they "
        "are what its trees predict, each equally likely, and the Gaussian of their mean "
        "and standard deviation in log-likelihoods. Other methods have none. Ranks count "
        "scores that are equal to three digits as ties. *Of the best* is the mean ratio to "
        "the best method of a table, *over ours* the geometric mean of the ratio to ours, "
        "less one; standard errors are over tables. What is within two of them is a tie, "
        "and on one table what is within two standard errors of the four folds' "
        "differences. Log-likelihoods are medians over tables, since one fold of forecasts "
        "that are far too sure would decide a mean. Rows that are equal stay. Seconds are "
        "of one core, for one fit.\n"
    )
