"""The one backend that keras_kare runs on."""

from __future__ import annotations

import os

_MESSAGE = (
    "keras_kare needs Keras with the TensorFlow backend. Set the environment variable "
    "KERAS_BACKEND=tensorflow before keras is imported. Received: backend={!r}"
)


def require_tensorflow() -> None:
    """Refuse another backend, before importing it can fail in a way of its own.

    Raises:
        ImportError: If Keras is set to another backend.
    """
    wanted = os.environ.get("KERAS_BACKEND", "tensorflow")
    if wanted != "tensorflow":
        raise ImportError(_MESSAGE.format(wanted))
    import keras

    if keras.config.backend() != "tensorflow":
        raise ImportError(_MESSAGE.format(keras.config.backend()))
