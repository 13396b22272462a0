"""The layers by whose variables an NTK differentiates, where these are not all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras

from keras_kare.kernels.structured.untouched import walk

Places = tuple[int, ...]
"""Numbers of layers among all that `walk` finds: names of some are new in each process."""


def places_of(network: keras.Model, layers: Any) -> Places | None:
    """Return where the network has these layers; `None` for all.

    Args:
        network: The network.
        layers: A list of names or layers, also nested ones; or `None`.

    Raises:
        TypeError: If it is no list of such.
        ValueError: If it is empty, the network has no such layer or several of a name, or
            has not been built.
    """
    if layers is None:
        return None
    if not isinstance(layers, list | tuple):
        raise TypeError(
            "`layers` must be a list of names or layers of `network`, or None for all. "
            f"Received: layers={layers!r}"
        )
    if not network.built:
        raise ValueError(
            "`layers` needs a network that has been built: call it on some rows first. "
            f"Received: network={network.name!r}"
        )
    within = walk(network)
    found = [_place(within, layer) for layer in layers]
    if not found:
        raise ValueError(f"`layers` names no layer. {_there_are(within)}")
    return tuple(sorted(set(found)))


def variables_of(network: keras.Model, places: Places | None) -> list[keras.Variable]:
    """Return the trainable variables of layers at these places, in the network's order.

    Raises:
        ValueError: If they have none.
    """
    variables = list(network.trainable_variables)
    if places is None:
        return variables
    within = walk(network)
    ids = {id(v) for i in places for v in within[i].trainable_variables}
    found = [v for v in variables if id(v) in ids]
    if not found:
        raise ValueError(
            "`layers` have no trainable variable, so their NTK is zero. "
            f"{_there_are(within)} Received: {[within[i].name for i in places]}"
        )
    return found


def _place(within: Sequence[keras.layers.Layer], wanted: Any) -> int:
    """Return the place of a layer, or of the one of this name."""
    if not isinstance(wanted, str | keras.layers.Layer):
        raise TypeError(
            "`layers` must be a list of names or layers of `network`. Received: "
            f"{wanted!r} of type {type(wanted).__name__}"
        )
    found = [
        i
        for i, layer in enumerate(within)
        if (layer.name == wanted if isinstance(wanted, str) else layer is wanted)
    ]
    name = wanted if isinstance(wanted, str) else wanted.name
    if not found:
        raise ValueError(
            f"`layers` names a layer that `network` does not have. {_there_are(within)} "
            f"Received: {name!r}"
        )
    if len(found) > 1:
        raise ValueError(
            f"`layers` names {len(found)} layers of `network` at once: pass the layer "
            f"itself. Received: {name!r}"
        )
    return found[0]


def _there_are(within: Sequence[keras.layers.Layer]) -> str:
    """List the layers that have variables to train."""
    counts = Counter(layer.name for layer in within[1:] if layer.trainable_variables)
    return f"There are {', '.join(map(repr, counts)) or 'none'}."
