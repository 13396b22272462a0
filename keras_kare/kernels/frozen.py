"""Variables that are frozen one by one: Keras saves what layers say, and not these.

`layer.kernel.trainable = False` is another kernel, and has to come back from a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras


def numbers(network: keras.Model) -> list[int]:
    """Return the places of the variables that do not train, among all of a network."""
    return [i for i, v in enumerate(network.variables) if not v.trainable]


def freeze(network: keras.Model, places: Sequence[int]) -> None:
    """Freeze the variables at these places, where the network has made its variables."""
    variables = network.variables
    for i in places:
        if i < len(variables):
            variables[i].trainable = False
