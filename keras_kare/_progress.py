"""How far long work has come."""

from __future__ import annotations

import threading
import time
from typing import Any

import keras

SHOW_AFTER = 3.0
"""Seconds after which it is shown what is waited for, where Keras may print."""


class Progress:
    """A progress bar, with a residual where there is one, for work that takes long.

    Args:
        total: Number of steps; `None` where nobody knows.
        unit: What a step is called.
        done: Steps that were done before. Defaults to `0`.
    """

    def __init__(self, total: int | None, unit: str, done: int = 0):
        self._bar = keras.utils.Progbar(
            total, unit_name=unit, stateful_metrics=["residual"]
        )
        self._begun, self._shown, self._count = time.monotonic(), False, done

    def step(self, count: int | None = None, residual: float | None = None) -> None:
        """Show that `count` steps are done: one more, by default."""
        self._count = self._count + 1 if count is None else count
        waited = time.monotonic() - self._begun
        if waited > SHOW_AFTER and keras.config.is_interactive_logging_enabled():
            self._shown = True
            values = [] if residual is None else [("residual", residual)]
            self._bar.update(self._count, values, finalize=False)

    def close(self) -> None:
        """End the line."""
        if self._shown:
            self._bar.update(self._count, finalize=True)


class Waiting:
    """Says what one waits for, if that takes long; silent where Keras may not print.

    Args:
        message: The line.
        verbose: As of `fit`: 0 for silence.
    """

    def __init__(self, message: str, verbose: Any = "auto"):
        self._timer = threading.Timer(SHOW_AFTER, print, (message,), {"flush": True})
        self._timer.daemon = True
        if verbose != 0 and keras.config.is_interactive_logging_enabled():
            self._timer.start()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        """Say nothing any more."""
        self._timer.cancel()
