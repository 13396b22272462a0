"""Which part of some rows goes to which input of a network."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.structured.untouched import walk

_OF_TEXT = (
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
"""Layers of Keras that take text."""


def paired(network: keras.Model, name: str, x: Any) -> list[tuple[Any, Any]]:
    """Pair each input that a network says it takes with the part of `x` that it gets.

    As Keras pairs them: by name for a dictionary, also where the network was made with a
    list; else by order. Empty for a subclassed network, which does not say what it takes.

    Args:
        network: The network.
        name: Of the argument, in errors.
        x: Rows, nested as the network takes them.

    Raises:
        ValueError: If names are missing, or unknown, or there are more or fewer arrays.
    """
    takes = getattr(network, "inputs", None)
    if not takes:
        return []
    given = keras.tree.flatten(x)
    if isinstance(x, dict) and len(x) == len(given):
        named = _named(network, takes)
        if named is not None:
            _check_names(name, sorted(named), sorted(x))
            return [(named[key], part) for key, part in x.items()]
    if len(takes) != len(given):
        names = ", ".join(repr(tensor.name) for tensor in takes)
        raise ValueError(
            f"`{name}` must have as many arrays as the network has inputs ({names}). "
            f"Received: {len(given)} array{'s' * (len(given) > 1)}"
        )
    return list(zip(takes, given, strict=True))


def check_shapes(network: keras.Model, name: str, x: Any) -> None:
    """Refuse rows of a shape or kind that a network does not take; name the argument."""
    pairs = paired(network, name, x)
    _check_kinds(network, name, x, pairs)
    for spec, part in pairs:
        # Keras adds and drops axes of length one.
        takes, got = ([d for d in t.shape[1:] if d != 1] for t in (spec, part))
        fits = tf.TensorShape(spec.shape[1:]).is_compatible_with(part.shape[1:])
        if not fits and not tf.TensorShape(takes).is_compatible_with(got):
            raise ValueError(
                f"`{name}` does not fit the network, whose rows have shape "
                f"{tuple(spec.shape[1:])}. Received: {name} of shape {tuple(part.shape)}"
            )


def _check_kinds(
    network: keras.Model, name: str, x: Any, pairs: list[tuple[Any, Any]]
) -> None:
    """Refuse text where a network takes numbers, and numbers where it takes text."""
    if not pairs and not _may_take_text(network):
        pairs = [(None, part) for part in keras.tree.flatten(x)]
    for spec, part in pairs:
        of_text = spec is not None and spec.dtype == "string"
        if part.dtype == tf.string and not of_text:
            _validation.refuse_text(name, part.dtype.name)
        if of_text and part.dtype != tf.string:
            raise ValueError(
                f"`{name}` must hold text for the network's input {spec.name!r}. "
                f"Received: {name} of dtype {part.dtype.name}"
            )


def _may_take_text(network: keras.Model) -> bool:
    """Tell whether a network that does not say what it takes may begin with text."""
    return any(
        isinstance(layer, _OF_TEXT)
        or (not isinstance(layer, keras.Model) and not _is_of_keras(layer))
        for layer in walk(network)
    )


def _is_of_keras(layer: keras.layers.Layer) -> bool:
    return type(layer).__module__.startswith("keras.")


def _named(network: keras.Model, takes: list[Any]) -> dict[str, Any] | None:
    """Return inputs by the names that rows in a dictionary have; `None` where nested."""
    structure = takes if isinstance(network, keras.Sequential) else network.input
    if isinstance(structure, dict):
        return structure if len(structure) == len(takes) else None
    return {tensor.name: tensor for tensor in takes}


def _check_names(name: str, wanted: list[str], got: list[str]) -> None:
    if wanted == got:
        return
    missing, unknown = (
        ", ".join(repr(key) for key in a if key not in b) or "none"
        for a, b in ((wanted, got), (got, wanted))
    )
    raise ValueError(
        f"`{name}` must be a dictionary with the names of the network's inputs, "
        f"{', '.join(map(repr, wanted))}. Received: missing {missing}; unknown {unknown}"
    )
