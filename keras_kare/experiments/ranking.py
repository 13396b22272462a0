"""How methods compare over many data sets: averages, ranks, shares of the best, duels.

All functions read a table of accuracies in percent, a row for each data set and a column
for each method: a pandas DataFrame or an array of shape `(data sets, methods)`. A method
without a number for a data set (NaN) has not run there.

**Missing accuracies** are treated as Fernández-Delgado et al. 2014 treat theirs; found out
by reproducing their published numbers, which the tests do:

| metric | a method that has not run on a data set |
|---|---|
| average accuracy | is averaged over the others |
| Friedman rank | takes the mean accuracy of the methods that have |
| P90, P95 | has not reached the share |
| PMA | has 0 of the best accuracy |
| duels | is compared on the others |
| Friedman test | the data set is left out |

Standard deviations are those of the data sets at hand (divided by their number).

References:
    - Fernández-Delgado, Cernadas, Barro, Amorim: Do we need hundreds of classifiers to
      solve real world classification problems? JMLR 15 (2014): the Friedman rank and the
      percentage of the maximum accuracy (PMA).
    - Arora, Du, Li, Salakhutdinov, Wang, Yu: Harnessing the power of infinitely wide deep
      nets on small-data tasks. ICLR (2020): P90, P95 and PMA as here.
    - Friedman: The use of ranks to avoid the assumption of normality implicit in the
      analysis of variance. JASA 32 (1937).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import scipy.stats

if TYPE_CHECKING:
    import pandas as pd

    Table: TypeAlias = pd.DataFrame | np.ndarray

# Accuracies are fractions of whole rows, averaged over folds: what differs by less is the
# rounding of that average, and a tie.
DECIMALS = 8
PUBLISHED_DECIMALS = 1


def average_accuracy(accuracy: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean accuracy of each method and its standard deviation over data sets.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.

    Returns:
        Two arrays of shape `(methods,)`, in percent.
    """
    values = _values(accuracy)
    return np.nanmean(values, axis=0), np.nanstd(values, axis=0)


def share_of_best(accuracy: Table, share: float) -> np.ndarray:
    """Return P90 or P95: where a method comes close to the best of the methods compared.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.
        share: What counts as close, as a fraction: 0.9 for P90, 0.95 for P95.

    Returns:
        The percentage of data sets where a method's accuracy is at least `share` of the
        best accuracy there, shape `(methods,)`.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(
            "`share` must be a fraction above 0 and at most 1, as 0.9 for P90. "
            f"Received: share={share!r}"
        )
    reached = np.round(_fraction_of_best(accuracy), DECIMALS) >= share
    return 100.0 * np.mean(reached, axis=0)


def pma(accuracy: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return PMA, the percentage of the maximum accuracy, and its standard deviation.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.

    Returns:
        Mean and standard deviation over data sets of a method's accuracy divided by the
        best accuracy among the methods there: two arrays of shape `(methods,)`, in
        percent.
    """
    fraction = 100.0 * _fraction_of_best(accuracy)
    return fraction.mean(axis=0), fraction.std(axis=0)


def friedman_rank(accuracy: Table) -> np.ndarray:
    """Return the average rank of each method: 1 is the best, ties share their mean rank.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.

    Returns:
        Shape `(methods,)`.
    """
    values = _values(accuracy)
    values = np.where(np.isnan(values), np.nanmean(values, axis=1, keepdims=True), values)
    ranks = scipy.stats.rankdata(-np.round(values, DECIMALS), axis=1)
    return np.asarray(ranks.mean(axis=0))


def friedman_test(accuracy: Table) -> float:
    """Return the probability of ranks as different as these, were all methods alike.

    Friedman's test, corrected for ties, over the data sets where all methods have run.

    Args:
        accuracy: Percent, shape `(data sets, methods)`; three methods at least.

    Returns:
        The p-value; 1 where all methods tie on all data sets.

    Raises:
        ValueError: If there are fewer than three methods, or fewer than two data sets
            where all of them have run.
    """
    values = np.round(_values(accuracy), DECIMALS)
    values = values[~np.isnan(values).any(axis=1)]
    if values.shape[1] < 3 or len(values) < 2:
        raise ValueError(
            "`accuracy` must have three methods and two data sets where all of them have "
            f"run. Received: {values.shape[1]} methods, {len(values)} complete data sets"
        )
    if np.all(values == values[:, :1]):
        return 1.0
    return float(scipy.stats.friedmanchisquare(*values.T).pvalue)


def duels(accuracy: Table, method: int) -> np.ndarray:
    """Count a method's wins, ties and losses against each, where both have run.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.
        method: The column of the one.

    Returns:
        Counts of data sets, shape `(methods, 3)`: where it is better than the other, as
        good, and worse.
    """
    values = np.round(_values(accuracy), DECIMALS)
    if not 0 <= method < values.shape[1]:
        raise ValueError(
            f"`method` must be the number of a column, 0 to {values.shape[1] - 1}. "
            f"Received: method={method!r}"
        )
    one = values[:, [method]]
    return np.stack(
        [np.sum(o, axis=0) for o in (one > values, one == values, one < values)], 1
    )


def table(accuracy: Table, method: str | int | None = None) -> pd.DataFrame:
    """Return all metrics, a row for each method, sorted by Friedman rank.

    Args:
        accuracy: Percent, shape `(data sets, methods)`.
        method: The name of a column: adds its `duels` with each method. Defaults to
            `None`, none.

    Returns:
        Columns `rank`, `accuracy`, `accuracy_sd`, `p90`, `p95`, `pma`, `pma_sd`,
        `data_sets` (on how many it has run); with `method`, also `wins`, `ties`, `losses`
        of `method` against the row's.

    Example:

    ```python
    import pandas as pd

    accuracy = pd.DataFrame({"a": [90.0, 80.0], "b": [90.0, 60.0]}, index=["iris", "wine"])
    found = table(accuracy, method="a")
    assert found.loc["b", "p90"] == 50.0
    assert list(found.loc["b", ["wins", "ties", "losses"]]) == [1, 1, 0]
    ```
    """
    import pandas as pd

    values = _values(accuracy)
    names = pd.DataFrame(accuracy).columns
    if not names.is_unique:
        raise ValueError(
            "`accuracy` must name each method once. Received: several columns "
            f"{sorted(set(names[names.duplicated()]))}"
        )
    mean, mean_sd = average_accuracy(values)
    part, part_sd = pma(values)
    columns = {
        "rank": friedman_rank(values),
        "accuracy": mean,
        "accuracy_sd": mean_sd,
        "p90": share_of_best(values, 0.9),
        "p95": share_of_best(values, 0.95),
        "pma": part,
        "pma_sd": part_sd,
        "data_sets": np.sum(~np.isnan(values), axis=0),
    }
    if method is not None:
        if method not in names:
            raise ValueError(
                "`method` must be a column of `accuracy`. "
                f"Received: method={method!r}, columns {list(names)}"
            )
        counts = duels(values, list(names).index(method))
        columns |= dict(zip(("wins", "ties", "losses"), counts.T, strict=True))
    return pd.DataFrame(columns, index=names).sort_values("rank", kind="stable")


def differences(accuracy: pd.DataFrame, method: str) -> pd.DataFrame:
    """Compare a method with each other one, on the data sets where both have run.

    Args:
        accuracy: Percent, a row for each data set and a column for each method.
        method: The name of a column.

    Returns:
        A row for each other method, the best first: `difference`, the mean over data sets
        of the method's accuracy less that of the row's; `standard_error` of that mean;
        `data_sets`; and `verdict`: `"tie"` within one standard error (or where there is
        none, on one data set), else whether the method is `"better"` or `"worse"`.

    Raises:
        ValueError: If there is no such column.
    """
    import pandas as pd

    if method not in accuracy:
        raise ValueError(
            "`method` must be a column of `accuracy`. "
            f"Received: method={method!r}, columns {list(accuracy)}"
        )
    rows = {}
    for other in accuracy.columns.drop(method):
        more = (accuracy[method] - accuracy[other]).dropna()
        if not len(more):
            continue
        mean, error = float(more.mean()), float(more.sem())
        apart = abs(mean) > error + 10.0**-DECIMALS  # false for NaN, of one data set
        rows[other] = {
            "difference": mean,
            "standard_error": error,
            "data_sets": len(more),
            "verdict": ("better" if mean > 0.0 else "worse") if apart else "tie",
        }
    columns = ["difference", "standard_error", "data_sets", "verdict"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.sort_values("difference", kind="stable")


def against_published(
    accuracy: pd.DataFrame, published_csv: str | os.PathLike[str]
) -> pd.DataFrame:
    """Rank our methods among the 179 classifiers of Fernández-Delgado et al. 2014.

    The published numbers come from hyperparameters chosen on a split whose validation
    rows are also among the test rows of the four folds, which favours classifiers with
    many of them (Wainberg, Alipanahi, Frey: Are random forests truly the best classifiers?
    JMLR 17, 2016). Ours are rounded to one decimal, as theirs are, so that ties are ties.

    Args:
        accuracy: Percent, a column for each of our methods, indexed by the names of the
            data sets in the published table. The comparison is over these data sets.
        published_csv: File with a column `dataset` and one for each classifier; blank
            where it has not run.

    Returns:
        As `table`, a row for each method of ours and theirs, and three columns more:
        `ours`, whether it is ours; `place`, its place among all by Friedman rank, 1 for
        the best; and, for ours, `place_alone`, its place were it the only one of ours
        (otherwise NaN).

    Raises:
        ValueError: If the table has no such data sets, or a method of ours is named as
            one of theirs.
    """
    import pandas as pd

    published = pd.read_csv(published_csv, index_col="dataset")
    _check_names(accuracy, published)
    published = published.loc[accuracy.index]
    published = published.loc[:, published.notna().any()]
    _values(accuracy)
    ours = accuracy.round(PUBLISHED_DECIMALS)
    found = table(published.join(ours))
    found["ours"] = found.index.isin(ours.columns)
    found["place"] = _places(found["rank"].to_numpy())
    found["place_alone"] = np.nan
    for name in ours:
        alone = friedman_rank(published.join(ours[[name]]))
        found.loc[name, "place_alone"] = _places(alone)[-1]
    return found


def _places(ranks: np.ndarray) -> np.ndarray:
    """Return places 1, 2, ... by rank; equal ranks share the better place."""
    rounded = np.round(ranks, DECIMALS)
    return np.asarray(scipy.stats.rankdata(rounded, method="min").astype(int))


def _fraction_of_best(accuracy: Table) -> np.ndarray:
    """Divide accuracies by the best of their data set; 0 where a method has not run."""
    values = _values(accuracy)
    best = np.nanmax(values, axis=1, keepdims=True)
    # Where the best is 0, all that have run are as good as it.
    fraction = np.where(best > 0.0, values / np.where(best > 0.0, best, 1.0), 1.0)
    return np.where(np.isnan(values), 0.0, fraction)


def _values(accuracy: Table) -> np.ndarray:
    """Return the accuracies as floats of shape `(data sets, methods)`, or refuse them."""
    values = np.asarray(accuracy, "float64")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            "`accuracy` must have a row for each data set and a column for each method. "
            f"Received: accuracy of shape {values.shape}"
        )
    missing = np.isnan(values)
    if missing.all(axis=0).any() or missing.all(axis=1).any():
        raise ValueError(
            "`accuracy` must have a number in each row and column. Leave out methods and "
            f"data sets without any. Received: {missing.all(axis=0).sum()} empty columns, "
            f"{missing.all(axis=1).sum()} empty rows"
        )
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    if lowest < 0.0 or highest > 100.0 + 10.0**-DECIMALS or 0.0 < highest <= 1.0:
        raise ValueError(
            "`accuracy` must be in percent, 0 to 100. Multiply fractions by 100. "
            f"Received: values from {lowest:g} to {highest:g}"
        )
    return values


def _check_names(accuracy: pd.DataFrame, published: pd.DataFrame) -> None:
    """Refuse data sets that are not published, each once, and methods that are."""
    unknown = sorted(set(map(str, accuracy.index)) - set(published.index))
    if unknown or not accuracy.index.is_unique:
        repeated = sorted(set(accuracy.index[accuracy.index.duplicated()]))
        raise ValueError(
            "`accuracy` must be indexed by names of published data sets, each once. "
            f"Received: unknown {unknown}, repeated {repeated}"
        )
    taken = sorted(set(map(str, accuracy.columns)) & set(published.columns))
    if taken:
        raise ValueError(
            "`accuracy` must name our methods unlike the published ones. Rename them. "
            f"Received: {taken}"
        )
