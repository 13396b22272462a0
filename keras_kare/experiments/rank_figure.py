"""The figure of the UCI results: mean ranks, and one method against the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kare.experiments.figures import nothing
from keras_kare.experiments.names import METHODS
from keras_kare.experiments.tables import check_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Z95 = 1.96


def accuracy_figure(
    uci: pd.DataFrame, protocol: str, method: str = "ntk_kare", half: str | None = None
) -> Figure:
    """Draw the UCI results: the methods' mean ranks, and one method against the rest.

    Only splits that every method has finished count, so that no method is favoured by
    the data sets it has not reached yet.

    Args:
        uci: The rows of `uci.csv`.
        protocol: Which protocol's rows to draw: `"paper"`, `"customary"`, `"honest"` or
            `"repeated"`.
        method: The method that the right panel compares with the others. Defaults
            to `"ntk_kare"`.
        half: What the title calls the data sets, where they are a part. Defaults to
            `None`.

    Returns:
        A figure of two panels. Left, each method's rank (1 is best, ties share) averaged
        over the data sets, with a 95 % interval of that mean (1.96 standard errors over
        data sets). Right, a point for each data set: the method's accuracy less that of
        the best other method, which differs from one data set to the next.

    Raises:
        ValueError: If columns are missing, or if no row has the protocol.
    """
    from matplotlib.figure import Figure

    check_columns("uci", uci, "protocol", "dataset", "method", "fold", "accuracy")
    rows = uci[uci["protocol"] == protocol]
    if len(uci) and not len(rows):
        known = sorted(uci["protocol"].unique())
        raise ValueError(
            f"No rows have this protocol; there are {known}. Received: {protocol=}"
        )
    scores = rows.pivot_table("accuracy", ["dataset", "fold"], "method")
    scores = scores.dropna().groupby(level="dataset").mean()
    height = max(4.4, 1.6 + 0.32 * scores.shape[1])
    figure = Figure(figsize=(11.0, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    started = rows["dataset"].nunique()
    part = "" if half is None else f", {half}"
    figure.suptitle(
        f"UCI, {protocol} protocol{part}: {len(scores)} of {started} data sets complete"
    )
    _draw_ranks(left, scores)
    _draw_lead(right, scores, method)
    return figure


def _draw_ranks(axis: Axes, scores: pd.DataFrame) -> None:
    """Draw the mean rank of every method with its interval, the best on top."""
    axis.set_xlabel("Mean rank over the data sets (1 is best)")
    axis.set_ylabel("Method")
    axis.set_title("Mean rank")
    if scores.empty:
        axis.set_yticks([])
        return nothing(axis, "no data set has every method yet")
    ranks = scores.rank(axis=1, ascending=False)
    mean = ranks.mean().sort_values(kind="stable")
    reach = (_Z95 * ranks.sem()).fillna(0.0).loc[mean.index]
    names = [METHODS.get(str(m), str(m)) for m in mean.index]
    places = np.arange(len(names))
    axis.grid(visible=True, axis="x", color="0.9", linewidth=0.6)
    look: dict[str, Any] = {"fmt": "o", "color": "black", "capsize": 3}
    label = "mean and 95 % interval"
    axis.errorbar(mean.to_numpy(), places, xerr=reach.to_numpy(), label=label, **look)
    axis.set_yticks(places, names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.legend(fontsize="small")
    return None


def _draw_lead(axis: Axes, scores: pd.DataFrame, method: str) -> None:
    """Draw a point for each data set; above the line the method wins."""
    name = METHODS.get(method, method)
    axis.set_xlabel("Accuracy of the best other method (%)")
    axis.set_ylabel(f"{name} less the best other (points)")
    axis.set_title("Against the best other on each data set")
    if scores.empty:
        return nothing(axis, "no data set has every method yet")
    if method not in scores or scores.shape[1] < 2:
        return nothing(axis, f"{name} and a rival: not both here yet")
    other = scores.drop(columns=method).max(axis=1).to_numpy()
    lead = scores[method].to_numpy() - other
    tied = np.isclose(lead, 0.0, atol=1e-9)
    axis.axhline(0.0, color="0.6", linewidth=1.0)
    looks: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("better", (lead > 0.0) & ~tied, {"marker": "o", "color": "#0b2e6f"}),
        ("equal", tied, {"marker": "x", "color": "0.3"}),
        ("worse", (lead < 0.0) & ~tied, {"marker": "s", "fc": "white", "ec": "#c8701a"}),
    )
    for word, chosen, look in looks:
        label = f"{name} {word}: {int(chosen.sum())}"
        axis.scatter(other[chosen], lead[chosen], s=26, label=label, zorder=3, **look)
    axis.legend(fontsize="small")
    return None
