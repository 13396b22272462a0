"""The figure of KARE that is fooled: estimates and test error over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_kare.experiments.tables import check_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "test": ("test error", {"color": "black", "marker": "o"}),
    "kare": ("KARE", {"color": "#c8701a", "marker": "s"}),
    "corrected": (
        "KARE, all degrees of freedom",
        {"color": "#7a3b8f", "marker": "D", "linestyle": ":"},
    ),
    "cross_fitted": (
        "cross-fitted",
        {"color": "#0b2e6f", "marker": "^", "linestyle": "--"},
    ),
}
"""What is drawn, and how: the error first, then what estimates it."""


def fooled_figure(rows: pd.DataFrame) -> Figure:
    """Draw the test error of trained kernels and its estimates, a panel a data set.

    Args:
        rows: Of `fooled.csv`, of one setting; lines are medians over seeds.

    Returns:
        A figure.

    Raises:
        ValueError: If columns are missing.
    """
    from matplotlib.figure import Figure

    check_columns("rows", rows, "dataset", "seed", "steps", *LINES)
    panels = list(rows.groupby("dataset", sort=False))
    figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, here) in zip(axes, panels, strict=True):
        middle = here.groupby("steps")[list(LINES)].median()
        for column, (label, style) in LINES.items():
            axis.plot(range(len(middle)), middle[column], label=label, **style)
        axis.set(yscale="log", title=name, xlabel="Steps of Adam on KARE")
        axis.set_xticks(range(len(middle)), [str(count) for count in middle.index])
        axis.grid(visible=True, axis="y", color="0.9", linewidth=0.6)
    # the corrected estimate has no end where training takes all degrees of freedom
    axes[0].set_ylim(0.5 * rows["kare"].min(), 10.0 * rows["test"].max())
    axes[0].set_ylabel("Squared error, in units of the targets'")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
