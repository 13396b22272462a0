"""Tables of the experiments, from their tidy CSV files.

Every function copes with results that are not complete: a table holds the rows there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kare.experiments.names import METHODS

if TYPE_CHECKING:
    import pandas as pd

# What defines a setting: never averaged over.
_SETTINGS = ("dataset", "gamma", "sigma", "depth", "width", "initialization")
LIKE_FOR_LIKE = {"higgs": "higgs_with_weight"}
"""The published Higgs runs kept the event weight among the features."""

_PUBLISHED_METHODS = {"dnn": "network"}

CURVE = ("method", "seed", "relative_ridge", "mse")
"""Columns of our curves."""

PUBLISHED_CURVE = ("method", "lambda_tilde", "mse")
"""Columns of published ones."""


def best_ridge_table(
    ours: pd.DataFrame, published: pd.DataFrame | None, by: Sequence[str]
) -> pd.DataFrame:
    """Compare the methods, each at the ridge with its least mean MSE over the seeds.

    Args:
        ours: The rows of `simulation.csv`, `mnist.csv` or `higgs.csv`.
        published: The rows of `paper_fig1.csv` or `paper_fig2.csv`, or `None`.
            Published Higgs results stand beside our `"higgs_with_weight"`.
        by: The columns that name a panel. Those that the published rows lack, such as
            `"initialization"`, are not compared with them.

    Returns:
        A row for each panel and method: `by`, `method`, `relative_ridge`, `mse`,
        `standard_error` (NaN for one seed), `seeds`, `published_mse`, `ratio` (ours over
        published) and `ntk_kare_below`: whether NTK-KARE's best mean MSE in this panel
        is below this method's (`None` for NTK-KARE itself, and where there is none).

    Raises:
        ValueError: If columns are missing, or if `ours` or `published` holds several values
            of a setting that `by` does not name.
    """
    import pandas as pd

    by = list(by)
    check_columns("ours", ours, *by, *CURVE)
    for column in _SETTINGS:
        if column in ours and column not in by:
            only_value("ours", ours, column)
    paper = _published_best(published, by)
    best = _best(over_seeds(ours, [*by, "method"]), [*by, "method"])
    order = in_order([row["method"] for row in best])
    best.sort(key=lambda row: (_key(row, by), order.index(row["method"])))
    kare = {_key(r, by): r["mse"] for r in best if r["method"] == "ntk_kare"}
    for row in best:
        row["published_mse"] = paper.get((*_shared_key(row, by, published), row["method"]))
        row["ratio"] = row["mse"] / (row["published_mse"] or np.nan)
        rival = kare.get(_key(row, by)) if row["method"] != "ntk_kare" else None
        row["ntk_kare_below"] = None if rival is None else bool(rival < row["mse"])
    names = ["relative_ridge", "mse", "standard_error", "seeds"]
    names = [*by, "method", *names, "published_mse", "ratio", "ntk_kare_below"]
    table = pd.DataFrame(best, columns=names)
    table["published_mse"] = table["published_mse"].astype(float)
    return table.astype({"ntk_kare_below": object})


def markdown_table(frame: pd.DataFrame, formats: Mapping[str, str] | None = None) -> str:
    """Write a frame as a GitHub table, without its index.

    Args:
        frame: The rows.
        formats: Column names with the format specification of their values, such as
            `{"mse": ".4f"}`. Defaults to `None`: floats with four significant digits.

    Returns:
        The table, with a line break at its end. Numbers are aligned right, missing values
        are empty, booleans read "yes" and "no".

    Raises:
        ValueError: If `formats` names a column that the frame lacks.
    """
    formats = {} if formats is None else formats
    check_columns("frame", frame, *formats)
    kinds = [frame[c].dtype.kind for c in frame.columns]
    lines = [
        [_cell(c, "") for c in frame.columns],
        ["---:" if kind in "iuf" else "---" for kind in kinds],
    ]
    specs = [
        formats.get(c, ".4g" if k == "f" else "") for c, k in zip(frame, kinds, strict=True)
    ]
    for row in frame.itertuples(index=False):
        lines.append([_cell(v, spec) for v, spec in zip(row, specs, strict=True)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def check_columns(name: str, frame: pd.DataFrame, *columns: str) -> None:
    """Refuse a frame that lacks columns."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(
            f"`{name}` lacks the columns {missing}. Received: columns={list(frame.columns)}"
        )


def only_value(name: str, frame: pd.DataFrame, column: str) -> Any:
    """Return the column's single value, `None` for an empty frame."""
    values = list(frame[column].unique())
    if len(values) > 1:
        raise ValueError(
            f"`{name}` mixes several values of `{column}`: their mean says nothing. Pass "
            f"the rows of one, or name the column in `by`. Received: {column}={values}"
        )
    return values[0] if values else None


def as_ours(published: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return published rows under the names that our results use."""
    if published is None:
        return None
    frame = published.rename(columns={"lambda_tilde": "relative_ridge"})
    frame = frame.assign(method=frame["method"].replace(_PUBLISHED_METHODS))
    if "dataset" in frame:
        frame = frame.assign(dataset=frame["dataset"].replace(LIKE_FOR_LIKE))
    return frame


def over_seeds(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return mean, standard error and number of seeds; a NaN among the seeds shows."""
    groups = frame.groupby([*keys, "relative_ridge"], dropna=False)["mse"]
    return groups.agg(
        mse=lambda s: s.mean(skipna=False),
        standard_error=lambda s: s.sem(skipna=False),
        seeds="size",
    ).reset_index()


def _key(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[c] for c in columns)


def _shared_key(
    row: Mapping[str, Any], by: Sequence[str], published: pd.DataFrame | None
) -> tuple[Any, ...]:
    return () if published is None else _key(row, [c for c in by if c in published])


def _best(curves: pd.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the row of each group with the least finite MSE, or its first if none is."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in curves.to_dict("records"):
        found = best.setdefault(_key(row, keys), row)
        if row["mse"] < found["mse"] or np.isnan(found["mse"]):
            best[_key(row, keys)] = row
    return list(best.values())


def _published_best(
    published: pd.DataFrame | None, by: Sequence[str]
) -> dict[tuple[Any, ...], float]:
    if published is None:
        return {}
    check_columns("published", published, *PUBLISHED_CURVE)
    for column in _SETTINGS:
        if column in published and column not in by:
            only_value("published", published, column)
    frame = as_ours(published)
    assert frame is not None
    keys = [*(c for c in by if c in published), "method"]
    return {_key(r, keys): r["mse"] for r in _best(frame, keys)}


def in_order(methods: Sequence[str]) -> list[str]:
    """Return known methods in their order, then the others by name."""
    known = list(METHODS)
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else 99, m))


def _cell(value: Any, spec: str) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else format(value, spec)
    return text.replace("|", "\\|").replace("\n", " ")
