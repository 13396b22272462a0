"""Networks with LoRA: saved as they are, where Keras saves them merged.

Keras writes a layer's kernel with its low-rank update added, and begins a new update when
it is loaded. That is the same function, but another parametrisation, and so another
kernel. What Keras merges is therefore written beside it, and put back.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_kare.kernels.structured.untouched import walk


def adapted(network: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers of a network with LoRA, in a fixed order."""
    return [layer for layer in walk(network) if getattr(layer, "lora_enabled", False)]


def save(network: keras.Model, store: Any) -> None:
    """Write all variables of adapted layers into a Keras variable store."""
    for i, layer in enumerate(adapted(network)):
        for j, variable in enumerate(layer.variables):
            store[f"adapted_{i}_{j}"] = np.asarray(variable.value)


def load(store: Any) -> dict[str, np.ndarray]:
    """Return what `save` wrote."""
    names = [name for name in store.keys() if name.startswith("adapted_")]  # noqa: SIM118
    return {name: np.asarray(store[name]) for name in names}


def restore(network: keras.Model, saved: dict[str, np.ndarray]) -> None:
    """Give the variables of adapted layers the values that were saved.

    Raises:
        ValueError: If the layers have other variables than those that were saved.
    """
    found = {
        f"adapted_{i}_{j}": variable
        for i, layer in enumerate(adapted(network))
        for j, variable in enumerate(layer.variables)
    }
    shapes = {name: tuple(v.shape) for name, v in found.items()}
    if shapes != {name: array.shape for name, array in saved.items()}:
        raise ValueError(
            "The file was written by a network with LoRA in other layers, or of another "
            "rank. Call `enable_lora` of the same layers before `load_weights`. "
            f"Received: {len(saved)} saved and {len(found)} present variables of layers "
            "with LoRA"
        )
    for name, variable in found.items():
        variable.assign(saved[name])
