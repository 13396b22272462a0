"""Rows for which a network gives no numbers: named, instead of NaN without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.kernels.structured.refusals import COUPLED

Outputs = Callable[[Any], Any]
"""A network's outputs, `(n, c)`, of inputs of `n` rows."""


def check_outputs(
    outputs: Outputs, diagonal: Outputs, network: str, x: Any, tolerance: float
) -> None:
    """Refuse rows without outputs, and rows that interact, of all that there are.

    Args:
        outputs: The network.
        diagonal: Kernel values of rows with themselves: where these are numbers, that
            outputs overflow does not matter.
        network: Its name.
        x: Rows, `(n, ...)`.
        tolerance: Relative error of rounding in one pass.
    """
    f = np.asarray(outputs(x), "float64")
    if np.any(np.isnan(f)) and not np.all(np.isfinite(np.asarray(diagonal(x)))):
        refuse_rows("x", f)
    cut = (len(f) + 1) // 2
    halves = [_rows.take(x, part) for part in (slice(cut, None), slice(cut))]
    if len(f) < 2:
        return
    apart = np.concatenate([np.asarray(outputs(half), "float64") for half in halves])
    together = np.concatenate([f[cut:], f[:cut]])
    known = np.isfinite(apart) & np.isfinite(together)
    off = np.max(np.abs(apart[known] - together[known]), initial=0.0)
    if off > 0.1 * tolerance * np.max(np.abs(together[known]), initial=0.0):
        raise ValueError(COUPLED.format(name=network))


def refuse_rows(name: str, f: Any) -> None:
    """Name the rows whose outputs, `(n, c)`, are not numbers."""
    bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(f)), axis=-1))
    if len(bad):
        raise ValueError(
            f"The network's outputs for {_named(bad)} of `{name}` are NaN or Inf, so that "
            "there is no kernel. Are all their steps masked (padding only), or their "
            "numbers too large? Remove or change these rows. "
            f"Received: {len(bad)} such rows of {len(f)}"
        )


def check_values(outputs: Outputs, values: np.ndarray, *given: tuple[str, Any]) -> None:
    """Say which rows are at fault, of which argument, where values hold NaN or Inf.

    Args:
        outputs: The network.
        values: Kernel values, or some of them that show.
        *given: Names of arguments and their rows.
    """
    if np.all(np.isfinite(values)):
        return
    for name, x in given:
        refuse_rows(name, outputs(x))
    raise ValueError(
        "The kernel's values overflow: the network's gradients for "
        f"{' or '.join(f'`{name}`' for name, _ in given)} are too large for their type. "
        "Scale the inputs or the weights down, or use float64. "
        f"Received: {np.sum(~np.isfinite(values))} values that are NaN or Inf"
    )


def shown_by(verb: str, values: Any) -> np.ndarray:
    """Return the values in which every row that is at fault shows."""
    if verb == "gram" and tf.is_tensor(values) and values.shape.rank == 2:
        return np.asarray(tf.linalg.diag_part(values))
    if verb == "gram":
        return np.einsum("ii...->i...", values)
    if verb == "cross":
        return np.concatenate([np.ravel(values[0]), np.ravel(values[:, 0])])
    return np.asarray(values)


def _named(bad: np.ndarray) -> str:
    names = ", ".join(map(str, bad[:5]))
    return f"row{'s' * (len(bad) > 1)} {names}{', …' * (len(bad) > 5)}"
