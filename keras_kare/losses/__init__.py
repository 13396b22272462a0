"""Losses of a Gram matrix, for `KAREModel.compile(loss=...)`."""

from __future__ import annotations

from typing import Any

import keras

from keras_kare.losses.full_kare import FullKARE
from keras_kare.losses.gram_loss import GramLoss
from keras_kare.losses.holdout_kare import HoldoutKARE
from keras_kare.losses.kare import KARE

__all__ = ["KARE", "FullKARE", "GramLoss", "HoldoutKARE", "get"]

OWN: dict[str, type[GramLoss]] = {
    "kare": KARE,
    "holdout_kare": HoldoutKARE,
    "full_kare": FullKARE,
}
"""The losses of this package, by their names: a new one is one line here."""


def get(identifier: Any) -> GramLoss:
    """Resolve a loss of a Gram matrix from its name, configuration or instance.

    Raises:
        ValueError: If it is no loss of a Gram matrix; Keras losses compare targets
            with predictions, and would broadcast over a Gram matrix in silence.
    """
    if isinstance(identifier, GramLoss):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, GramLoss):
        return identifier()
    if isinstance(identifier, str) and identifier.lower() in OWN:
        return OWN[identifier.lower()]()
    if isinstance(identifier, dict):
        loss = keras.saving.deserialize_keras_object(identifier)
        if isinstance(loss, GramLoss):
            return loss
    known = ", ".join(f'"{name}"' for name in OWN)
    raise ValueError(
        f"`loss` must be a loss of a Gram matrix: {known}, "
        "`kk.losses.KARE(...)`, or a subclass of `kk.losses.GramLoss`. Keras "
        "losses compare targets with predictions and do not apply to a kernel. "
        f"Received: loss={identifier!r}"
    )
