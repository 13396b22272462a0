"""The figure of kernels that move: drift over steps, by loss and width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_kare.experiments.tables import check_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLOURS = ("#86d0bd", "#c8701a", "#0b2e6f", "#7a3b8f")
"""Of widths, from the smallest."""

DASHES: dict[str, Any] = {"squared": "--", "cross-entropy": "-"}


def drift_figure(rows: pd.DataFrame) -> Figure:
    """Draw `norm(K − K₀)/norm(K₀)` over steps, a panel a data set and an architecture.

    Args:
        rows: Of `drift.csv`; lines are means over seeds.

    Returns:
        A figure; solid lines are of cross-entropy, dashed ones of squared loss.

    Raises:
        ValueError: If columns are missing.
    """
    from matplotlib.figure import Figure

    names = ("dataset", "architecture", "width", "loss", "steps", "drift")
    check_columns("rows", rows, *names)
    means = rows.groupby(list(names[:-1]), as_index=False)["drift"].mean()
    panels = list(means.groupby(["dataset", "architecture"]))
    figure = Figure(figsize=(3.4 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    widths = sorted(means["width"].unique())
    for axis, ((dataset, architecture), here) in zip(axes, panels, strict=True):
        for (width, loss), line in here.groupby(["width", "loss"]):
            moved = line[line["steps"] > 0].sort_values("steps")
            colour = COLOURS[widths.index(width) % len(COLOURS)]
            axis.plot(moved["steps"], moved["drift"], DASHES[loss], color=colour)
        axis.set(xscale="log", yscale="log", title=f"{dataset}, {architecture}")
        axis.set_xlabel("Steps of gradient descent")
    axes[0].set_ylabel(r"$\|K - K_0\| / \|K_0\|$ (no unit)")
    figure.legend(handles=_legend(widths), loc="outside lower center", ncols=5)
    return figure


def _legend(widths: list[int]) -> list[Any]:
    from matplotlib.lines import Line2D

    pairs = zip(widths, COLOURS, strict=False)
    lines = [Line2D([], [], color=colour, label=f"width {w}") for w, colour in pairs]
    return lines + [
        Line2D([], [], color="black", linestyle=dash, label=loss)
        for loss, dash in DASHES.items()
    ]
