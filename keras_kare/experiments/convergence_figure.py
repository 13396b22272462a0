"""The figure of kernels that come near that of infinite width, and their slopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from keras_kare.experiments.tables import check_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STYLES = (("#0b2e6f", "o"), ("#c8701a", "s"), ("#86d0bd", "^"), ("#7a3b8f", "D"))
"""Colour and marker of each kind of network, different in lightness."""


def slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """Fit `log(error)` of all draws by a line in `log(width)`, a kind of network a row.

    Args:
        rows: Of `convergence.csv`.

    Raises:
        ValueError: If columns are missing.
    """
    import pandas as pd

    check_columns("rows", rows, "activation", "depth", "width", "seed", "error")
    return pd.DataFrame(
        {
            "activation": activation,
            "depth": depth,
            "slope": np.polyfit(np.log(here["width"]), np.log(here["error"]), 1)[0],
        }
        for (activation, depth), here in rows.groupby(["activation", "depth"])
    )


def convergence_figure(rows: pd.DataFrame) -> Figure:
    """Draw `norm(K − Θ)/norm(Θ)` over width: a dot a draw, lines through their means.

    Args:
        rows: Of `convergence.csv`.

    Returns:
        A figure; a dashed line falls as `width^(−1/2)`, the legend has fitted slopes.

    Raises:
        ValueError: If columns are missing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    fitted = slopes(rows)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, kind in enumerate(fitted.itertuples()):
        colour, marker = STYLES[i % len(STYLES)]
        here = rows[(rows.activation == kind.activation) & (rows.depth == kind.depth)]
        mean = here.groupby("width")["error"].mean()
        hidden = "layer" if kind.depth == 1 else "layers"
        label = f"{kind.activation}, {kind.depth} hidden {hidden}: slope {kind.slope:.2f}"
        beside = here["width"] * 1.04 ** (i - 0.5 * (len(fitted) - 1))
        axis.plot(beside, here["error"], ".", color=colour, markersize=4, alpha=0.6)
        axis.plot(mean.index, mean, color=colour, marker=marker, label=label)
    widths = np.array(sorted(rows["width"].unique()))
    first = rows[rows.width == widths[0]]["error"].max()
    line = 1.3 * first * np.sqrt(widths[0] / widths)
    axis.plot(widths, line, "--", color="black", label=r"width$^{-1/2}$")
    axis.set(xscale="log", yscale="log", xlabel="Width (units)", xticks=widths)
    axis.set_xticklabels([str(width) for width in widths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylabel(r"$\|K - \Theta\| / \|\Theta\|$ (no unit)")
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axis.legend(fontsize="small")
    return figure
