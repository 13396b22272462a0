"""Kernels and networks that occur more than once in a kernel, and do again once read.

A part that has several owners is written into the configuration of the first, and the
others refer to it by a number. What files of weights hold is then found again: Keras, too,
writes the variables of a shared part once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras

from keras_kare.kernels.kernel import Kernel

NUMBER = "tie"
"""The key of a part's number; a part that has one owner has none."""

_ACTIVE = threading.local()


@contextlib.contextmanager
def writing(kernel: Any) -> Iterator[None]:
    """Number the parts that `kernel` has more than once, unless an owner of it has."""
    if getattr(_ACTIVE, "numbers", None) is not None:
        yield
        return
    check_kept(kernel)
    _ACTIVE.numbers, _ACTIVE.written = _numbers(kernel), set()
    try:
        yield
    finally:
        _ACTIVE.numbers = None


def written(part: Any) -> dict[str, Any]:
    """Return the configuration of a kernel or network; its number once that is written."""
    number = _ACTIVE.numbers.get(id(part))
    if number in _ACTIVE.written:
        return {NUMBER: number}
    config: dict[str, Any] = keras.saving.serialize_keras_object(part)
    if number is None:
        return config
    _ACTIVE.written.add(number)
    return {**config, NUMBER: number}


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Remember the parts that are read, unless an owner does."""
    if getattr(_ACTIVE, "read", None) is not None:
        yield
        return
    _ACTIVE.read = {}
    try:
        yield
    finally:
        _ACTIVE.read = None


def read(config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
    """Make what `written` describes, or return what has been made of it."""
    number = config.get(NUMBER)
    if number is not None and "class_name" not in config:
        return _ACTIVE.read[number]
    part = keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    if number is not None:
        _ACTIVE.read[number] = part
    return part


def check_kept(kernel: Any) -> None:
    """Refuse ties that no configuration tells of: layers that two networks have in common.

    Raises:
        ValueError: Then.
    """
    parts = {id(part): part for part in [kernel, *_occurrences(kernel)]}
    owners: dict[int, Any] = {}
    for part in parts.values():
        if _parts(part):
            continue
        for variable in part.variables:
            other = owners.setdefault(id(variable), part)
            if other is not part:
                raise ValueError(
                    f"{other.name!r} and {part.name!r} are parts of a kernel, and have the "
                    f"variable {variable.path!r} in common, which a copy or a file of the "
                    "kernel would have twice. Make kernels of one network, as `NTK(network,"
                    ' layers=["a"])`, or write weights alone, by `save_weights`.'
                )


def _parts(part: Any) -> list[Any]:
    """Return the kernels and networks that a kernel is made of; none for a network."""
    return part.parts() if isinstance(part, Kernel) else []


def _occurrences(kernel: Any) -> Iterator[Any]:
    """Yield parts and their parts, as often as they have owners."""
    seen, waiting = set(), [kernel]
    while waiting:
        owner = waiting.pop()
        for part in _parts(owner):
            yield part
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


def _numbers(kernel: Any) -> dict[int, int]:
    """Return numbers of the parts that occur more than once, by their `id`."""
    once: set[int] = set()
    more: dict[int, int] = {}
    for part in _occurrences(kernel):
        if id(part) in once:
            more.setdefault(id(part), len(more))
        once.add(id(part))
    return more
