"""Rows of text: lists of sentences, strings as tensors, and strings as numbers in files."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import tensorflow as tf

_KINDS = "USOT"
"""Kinds of NumPy arrays that may hold text."""


def gathered(x: Any) -> Any:
    """Make an array of each list of strings among nested inputs; leave the rest."""
    if isinstance(x, dict):
        return {key: gathered(part) for key, part in x.items()}
    if not isinstance(x, list | tuple) or not x:
        return x
    if all(isinstance(part, str | bytes) for part in x):
        return np.array(x, object)
    if isinstance(x[0], str | bytes):  # something is missing among the strings
        return _objects(list(x))
    return x if hasattr(x, "_fields") else type(x)(map(gathered, x))


def is_text(array: np.ndarray) -> bool:
    """Tell whether an array holds strings, and perhaps something else beside."""
    if array.dtype.kind != "O":
        return array.dtype.kind in _KINDS
    return any(isinstance(entry, str | bytes) for entry in array.flat)


def as_tensor(name: str, array: np.ndarray) -> tf.Tensor:
    """Return an array of strings as a tensor of strings, in UTF-8.

    Args:
        name: Of the argument.
        array: Of `str` or `bytes`, any shape.

    Raises:
        ValueError: If an entry is neither, such as `None` or NaN.
    """
    array = np.asarray(array, object)
    for entry in array.flat:
        if isinstance(entry, numbers.Real) and entry == entry:  # not NaN
            raise ValueError(
                f"`{name}` must hold numbers or text, not both: give text columns an input "
                "of their own, or encode them as numbers. "
                f"Received: {name} with {entry!r} among text"
            )
        if not isinstance(entry, str | bytes):
            raise ValueError(
                f"`{name}` must hold text in every row where it holds text in one: fill "
                f'missing entries, for example with "". Received: {name} with an entry '
                f"{entry!r} of type {type(entry).__name__}"
            )
    return tf.constant(array, tf.string)


def encoded(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return strings as numbers, which files of arrays take.

    Args:
        array: Of `bytes`, any shape.

    Returns:
        All bytes, one string after the other, uint8; and the length of each string, an
        int64 array of the array's shape.
    """
    entries = [bytes(entry) for entry in array.flat]
    lengths = np.array([len(entry) for entry in entries], "int64")
    return np.frombuffer(b"".join(entries), "uint8"), lengths.reshape(array.shape)


def decoded(flat: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the strings that `encoded` was given."""
    joined, ends = np.asarray(flat, "uint8").tobytes(), np.cumsum(lengths).tolist()
    starts = [0, *ends]
    entries = [joined[a:b] for a, b in zip(starts, ends, strict=False)]
    return _objects(entries).reshape(lengths.shape)


def _objects(entries: list[Any]) -> np.ndarray:
    array = np.empty(len(entries), object)
    array[:] = entries
    return array
