"""What is given to gated networks, as arrays of float64, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_kare import _arrays, _validation

LARGEST = 1e30
"""Of rows and targets, whose tenth powers float64 holds."""


def rows(name: str, x: Any) -> np.ndarray:
    """Return rows of finite numbers, `(n, d)`.

    Raises:
        ValueError: Otherwise, and if there are none.
    """
    if x is None:
        raise ValueError(f"`{name}` is missing. Received: {name}=None")
    found = np.asarray(_arrays.plain(name, x))
    if found.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must hold numbers: encode text and categories first. "
            f"Received: {name} of dtype {found.dtype}"
        )
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(
            f"`{name}` must have rows and columns, (n, d). "
            f"Received: {name} of shape {found.shape}"
        )
    found = found.astype("float64")
    _validation.check_finite(name, found)
    return found


def targets(name: str, y: Any, count: int) -> tuple[np.ndarray, bool]:
    """Return finite targets, `(n, c)`, and whether they were given in one dimension.

    Args:
        name: Of the argument.
        y: As it was passed.
        count: `n`.

    Raises:
        ValueError: If they are no numbers, hold NaN or Inf, or have other rows.
    """
    y = None if y is None else np.asarray(_arrays.plain_targets(name, y, count))
    found = _validation.check_target_rows(name, y, count)
    if found.dtype.kind in "iub":
        found = found.astype("float64")
    return _validation.check_targets(name, found, count).astype("float64"), np.ndim(y) == 1


def check_size(name: str, values: np.ndarray) -> None:
    """Refuse numbers of whose powers some overflow float64.

    Args:
        name: Of the argument.
        values: What was passed, finite.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest > LARGEST:
        raise ValueError(
            f"`{name}` must be of numbers below {LARGEST:g}, whose products float64 holds: "
            f"scale it to about one. Received: {name} with an entry of size {largest:.3g}"
        )


def check_gates(gates: Any) -> None:
    """Refuse what is neither a number of gates nor an array of them."""
    if np.ndim(gates) == 0:
        _validation.check_whole("gates", gates, 1)
    else:
        rows("gates", gates)


def check_random_state(value: Any) -> None:
    """Refuse what is neither a seed nor a generator."""
    if value is None or isinstance(value, np.random.Generator):
        return
    if not _validation.is_whole(value) or value < 0:
        raise ValueError(
            "`random_state` must be a whole number of at least 0, a np.random.Generator, "
            f"or None. Received: random_state={value!r}"
        )
