"""What the page says of the divergence guard, within the customary protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from keras_kare.experiments.guarded_jobs import METHOD

if TYPE_CHECKING:
    import pandas as pd


def beside(rows: pd.DataFrame, guarded: pd.DataFrame | None) -> pd.DataFrame:
    """Return rows of the customary protocol, and with them those of the guard.

    Args:
        rows: Of all methods.
        guarded: Of the guard; those of a choice that is not NTK-KARE's any more are left
            out. `None` where it has not run.
    """
    import pandas as pd

    if guarded is None:
        return rows
    chosen = rows[rows.method == "ntk_kare"][["dataset", "fold", "chosen"]]
    return pd.concat([rows, guarded.merge(chosen)], ignore_index=True)


def sentences(rows: pd.DataFrame) -> Iterator[str]:
    """Tell how often the guard acted, of rows of `beside`; nothing where it has not run."""
    folds = rows[rows.method == METHOD]
    if not len(folds):
        return
    again, up = int((folds.restarts > 0).sum()), int(folds.rate.isna().sum())
    yield (
        "The divergence guard is ours, not the paper's: where KARE is not finite, or "
        "higher at the end of training than at its start, training starts again at a tenth "
        f"of the rate. It did so on {again} of {len(folds)} folds, and was given up on "
        f"{up}.\n"
    )
