"""Figures of the experiments, from their tidy CSV files.

Every function copes with results that are not complete: a panel without results says
so. Nothing here touches pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kare.experiments.names import METHODS
from keras_kare.experiments.tables import (
    CURVE,
    LIKE_FOR_LIKE,
    PUBLISHED_CURVE,
    as_ours,
    check_columns,
    in_order,
    only_value,
    over_seeds,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Method: colour, marker. The colours differ in lightness and the markers in shape, so that
# the curves can be told apart without colour.
_STYLES: dict[str, tuple[str, str]] = {
    "ntk_kare": ("#0b2e6f", "o"),
    "after_ntk": ("#c8701a", "s"),
    "ntk": ("#86d0bd", "^"),
    "network": ("#7a3b8f", ""),
}
_SPARE_MARKERS = "Dv<>Pph*"


def figure_1(ours: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw the simulation: MSE against the relative ridge, a panel for each setting.

    A line is the mean over the seeds, its band one standard error on either side. What
    the paper published is drawn over it, thin and dashed, in the same colour.

    Args:
        ours: The rows of `simulation.csv` for one initialisation.
        published: The rows of `paper_fig1.csv`. Defaults to `None`: only our curves.

    Returns:
        A figure with a row of panels for each σ and a column for each γ.

    Raises:
        ValueError: If columns are missing, or if `ours` mixes initialisations.
    """
    check_columns("ours", ours, "gamma", "sigma", "initialization", *CURVE)
    if published is not None:
        check_columns("published", published, "gamma", "sigma", *PUBLISHED_CURVE)
    start = only_value("ours", ours, "initialization")
    title = "Simulated data" + ("" if start is None else f", {start} initialisation")
    rows, columns = ("sigma", (0.0, 0.1)), ("gamma", (1.0, 1.25, 1.5))
    symbols = {"sigma": "σ", "gamma": "γ"}
    return _panels(ours, as_ours(published), rows, columns, symbols, title)


def figure_2(ours: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw one data set: MSE against the relative ridge, a panel for each network.

    The published Higgs runs kept the event weight among the features, so they belong to
    `"higgs_with_weight"`. They are drawn for `"higgs"` as well, and named accordingly.

    Args:
        ours: The rows of `mnist.csv` or `higgs.csv` for one data set and initialisation.
        published: The rows of `paper_fig2.csv`. Defaults to `None`: only our curves.

    Returns:
        A figure with a row of panels for each depth and a column for each width.

    Raises:
        ValueError: If columns are missing, or if `ours` mixes data sets or
            initialisations.
    """
    setting = ("dataset", "depth", "width")
    check_columns("ours", ours, *setting, "initialization", *CURVE)
    if published is not None:
        check_columns("published", published, *setting, *PUBLISHED_CURVE)
    dataset = only_value("ours", ours, "dataset")
    start = only_value("ours", ours, "initialization")
    name = str(dataset).replace("_", " ")
    title = "" if dataset is None else f"{name}, {start} initialisation"
    paper = as_ours(published)
    note = ""
    if paper is not None:
        same = LIKE_FOR_LIKE.get(str(dataset), dataset)
        if same != dataset:
            note = "; published: with the event weight among the features"
        paper = paper[paper["dataset"] == same]
    rows, columns = ("depth", (2, 4)), ("width", (32, 64, 128))
    names = {"depth": "depth", "width": "width"}
    return _panels(ours, paper, rows, columns, names, title, note)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG at 150 dots per inch; the same numbers give the same bytes.

    Args:
        figure: What to write.
        path: Where to; its folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its metadata the file does not name the release of matplotlib.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _style(method: str, position: int) -> tuple[str, str, str]:
    spare = _SPARE_MARKERS[position % len(_SPARE_MARKERS)]
    return METHODS.get(method, method), *_STYLES.get(method, ("#6b6b6b", spare))


def _panels(
    ours: pd.DataFrame,
    paper: pd.DataFrame | None,
    rows: tuple[str, Sequence[float]],
    columns: tuple[str, Sequence[float]],
    symbols: Mapping[str, str],
    title: str,
    note: str = "",
) -> Figure:
    """Draw a grid of curves; values that the paper does not have get their own panels."""
    from matplotlib.figure import Figure

    (row, of_rows), (column, of_columns) = rows, columns
    of_rows = sorted({*of_rows, *ours[row].unique()})
    of_columns = sorted({*of_columns, *ours[column].unique()})
    size = (3.6 * len(of_columns), 1.3 + 2.9 * len(of_rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(of_rows), len(of_columns), sharex=True, sharey=True, squeeze=False
    )
    for i, r in enumerate(of_rows):
        for j, c in enumerate(of_columns):
            here = ours[(ours[row] == r) & (ours[column] == c)]
            _draw_panel(axes[i, j], here)
            if paper is not None:
                _draw_published(axes[i, j], paper[(paper[row] == r) & (paper[column] == c)])
            axes[i, j].set_title(f"{symbols[row]} = {r:g}, {symbols[column]} = {c:g}")
    for axis in axes[:, 0]:
        axis.set_ylabel("Test MSE (squared units of the target)")
    for axis in axes[-1, :]:
        axis.set_xlabel(r"Relative ridge $\tilde{\lambda}$ (no unit)")
    figure.suptitle(title)
    _legend(figure, axes, note)
    return figure


def _legend(figure: Figure, axes: Any, note: str) -> None:
    """Put a legend under the panels, each curve once; no ticks where none is drawn."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    if not entries:
        axes[0, 0].set(xticks=[], yticks=[])
        for axis in axes.flat:
            axis.tick_params(which="minor", length=0)
        return
    names = sorted(entries, key=lambda name: ("published" in name, _legend_place(name)))
    figure.legend(
        [entries[name] for name in names],
        names,
        loc="outside lower center",
        ncols=4,
        fontsize="small",
        title="bands: ± 1 standard error over the seeds" + note,
        title_fontsize="small",
    )


def _legend_place(label: str) -> int:
    names = list(METHODS.values())
    return next((i for i, name in enumerate(names) if label.startswith(name + ",")), 99)


def _draw_panel(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw our curves: a line with markers and a band; the network has no ridge."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    if rows.empty:
        return nothing(axis, "no results yet")
    curves = over_seeds(rows, ["method"])
    for position, method in enumerate(in_order(curves["method"])):
        name, colour, marker = _style(method, position)
        curve = curves[curves["method"] == method]
        mean, error = curve["mse"].to_numpy(), curve["standard_error"].to_numpy()
        band: dict[str, Any] = {"color": colour, "alpha": 0.2, "linewidth": 0}
        line: dict[str, Any] = {"color": colour, "linewidth": 1.6, "label": f"{name}, ours"}
        if curve["relative_ridge"].isna().all():
            axis.axhline(mean[0], **line)
            if np.isfinite(error[0]):
                axis.axhspan(mean[0] - error[0], mean[0] + error[0], **band)
        else:
            ridge = curve["relative_ridge"].to_numpy()
            axis.plot(ridge, mean, marker=marker, markersize=4.5, **line)
            axis.fill_between(ridge, mean - error, mean + error, **band)
    return None


def _draw_published(axis: Axes, rows: pd.DataFrame) -> None:
    for position, method in enumerate(in_order(rows["method"])):
        name, colour, marker = _style(method, position)
        curve = rows[rows["method"] == method].sort_values("relative_ridge")
        ridge, mse = curve["relative_ridge"].to_numpy(), curve["mse"].to_numpy()
        line: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (4, 2)), "zorder": 3}
        dots: dict[str, Any] = {"markersize": 3.5, "markerfacecolor": "white"}
        label = f"{name}, published"
        axis.plot(ridge, mse, color=colour, marker=marker, label=label, **line, **dots)


def nothing(axis: Axes, message: str) -> None:
    """Write in the middle of a panel why it shows nothing."""
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6"}
    middle: dict[str, Any] = {"transform": axis.transAxes, "ha": "center", "va": "center"}
    axis.text(0.5, 0.5, message, bbox=box, zorder=4, **middle)
