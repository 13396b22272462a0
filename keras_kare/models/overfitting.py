"""Telling when training has overfitted KARE."""

from __future__ import annotations

import warnings

import keras

PARTED = 3.0
"""How many times KARE an error may be that it estimates."""


def warn_after(history: keras.callbacks.History) -> None:
    """Tell it of a training with validation rows, for the caller's caller's caller."""
    ends = [history.history.get(name) for name in ("loss", "val_loss")]
    if all(ends):
        loss, val_loss = (values[-1] for values in ends)
        warn_if_parted(loss, val_loss, "validation rows", stacklevel=4)


def warn_if_parted(loss: float, measured: float, rows: str, stacklevel: int) -> None:
    """Tell when KARE no longer estimates the error on rows that nothing has seen.

    Args:
        loss: KARE, at the end of training.
        measured: The mean squared error on such rows.
        rows: What they are called.
        stacklevel: As in `warnings.warn`, of the caller.
    """
    if not measured > PARTED * loss:
        return
    warnings.warn(
        f"KARE says {loss:.3g}, but the mean squared error on {rows} is {measured:.3g}, "
        f"more than {PARTED:g} times as much: training has overfitted KARE. Stop earlier, "
        "with `keras.callbacks.EarlyStopping('val_loss', restore_best_weights=True)` and "
        "validation rows, train with noise, `compile(..., input_noise=1.0)`, or take a "
        "narrower network or a larger ridge in the loss.",
        stacklevel=stacklevel + 1,
    )
