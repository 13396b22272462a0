"""How far a long solve has come."""

from __future__ import annotations

import time

import keras

SHOW_AFTER = 3.0
"""Seconds after which a progress bar appears, where Keras may print."""


class Progress:
    """A progress bar with the residual, for work that turns out to take long.

    Args:
        total: Number of steps; `None` where nobody knows.
        unit: What a step is called.
    """

    def __init__(self, total: int | None, unit: str):
        self._bar = keras.utils.Progbar(
            total, unit_name=unit, stateful_metrics=["residual"]
        )
        self._begun, self._shown, self._last = time.monotonic(), False, 0

    def step(self, count: int, residual: float | None = None) -> None:
        """Show that `count` steps are done."""
        self._last = count
        waited = time.monotonic() - self._begun
        if waited > SHOW_AFTER and keras.config.is_interactive_logging_enabled():
            self._shown = True
            values = [] if residual is None else [("residual", residual)]
            self._bar.update(count, values, finalize=False)

    def close(self) -> None:
        """End the line."""
        if self._shown:
            self._bar.update(self._last, finalize=True)
