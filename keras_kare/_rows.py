"""Rows of inputs, which may be nested: how many there are, some of them, sums over them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf


def known_count(x: Any) -> int | None:
    """Return the number of rows; `None` in a graph that does not know it."""
    rows: int | None = keras.tree.flatten(x)[0].shape[0]
    return rows


def count(x: Any) -> int:
    """Return the number of rows, where it is known."""
    return int(keras.tree.flatten(x)[0].shape[0])


def take(x: Any, rows: Any) -> Any:
    """Return some of the rows: a slice of them, or those with these numbers."""
    if isinstance(rows, slice):
        return keras.tree.map_structure(lambda t: t[rows], x)
    return keras.tree.map_structure(lambda t: tf.gather(t, rows), x)


def cuts(rows: int, step: int) -> Iterator[slice]:
    """Cut so many rows into slices of at most `step`."""
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


def slices(x: Any, step: int) -> Iterator[Any]:
    """Cut the rows themselves, at most `step` at a time."""
    for rows in cuts(count(x), step):
        yield take(x, rows)


def joined(parts: Iterable[Any]) -> Any:
    """Put rows one after the other, as tensors."""
    return keras.tree.map_structure(lambda *each: tf.concat(each, axis=0), *parts)


def total(parts: Iterable[list[tf.Tensor]]) -> list[tf.Tensor]:
    """Add lists of arrays, one by one; there must be at least one list."""
    return functools.reduce(lambda one, other: list(map(tf.add, one, other)), parts)
