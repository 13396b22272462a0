"""What kernels of a network's outputs, or of its hidden units, have in common."""

from __future__ import annotations

from typing import Any, Self

import keras
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels import frozen, ties
from keras_kare.kernels.identity import Identity, digest
from keras_kare.kernels.inputs import check_shapes
from keras_kare.kernels.of_parts import OfParts
from keras_kare.kernels.structured.capture import run
from keras_kare.kernels.structured.untouched import untouched


class OfNetwork(OfParts):
    """A kernel of what a network computes of each row; a subclass says of what, and how.

    The network runs as in inference. Rows must not depend on each other.

    Args:
        network: A `keras.Model`.
        name: Name of the layer.
    """

    _names_of_parts: tuple[str, ...] = ("network",)

    def __init__(self, network: keras.Model, name: str | None = None, **kwargs: Any):
        if not isinstance(network, keras.Model):
            raise TypeError(
                "`network` must be a `keras.Model`. "
                f"Received: network={network!r} of type {type(network).__name__}"
            )
        super().__init__(name=name, **kwargs)
        self.network = network
        self._frozen: list[int] = []  # until the network has its variables

    def build(self, input_shape: Any) -> None:
        if not self.network.built:
            self.network.build(input_shape)
        self.built = True

    def check(self, x: Any, rows: int | None = None) -> None:
        self._hidden("x", x, None)
        self.built = True

    def check_shapes(self, name: str, x: Any) -> None:
        check_shapes(self.network, name, x)

    def architecture(self) -> str:
        if self._identity is None:
            self._identity = Identity(self.network)
        return digest(type(self).__qualname__, self._identity.digest)

    def _part(self) -> Any:
        """Return the part of the network whose outputs are taken: all of it."""
        return self.network

    def _hidden(self, name: str, x: Any, dtype: str | None) -> tf.Tensor:
        """Return what the network computes of rows, `(n, F)`."""
        if tf.executing_eagerly():
            x = _validation.check_rows(name, x, self.network)
            self.check_shapes(name, x)
        with untouched(self.network):
            found = run(self._part(), x)
        return found if dtype is None else tf.cast(found, dtype)

    def parts(self) -> list[Any]:
        return [getattr(self, name) for name in self._names_of_parts]

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        with ties.writing(self):
            parts = [ties.written(part) for part in self.parts()]
        config |= dict(zip(self._names_of_parts, parts, strict=True))
        return {**config, "frozen": frozen.numbers(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        with ties.reading():
            for name in cls._names_of_parts:
                config[name] = ties.read(config[name])
        places = config.pop("frozen", [])
        kernel = cls(**config)
        kernel._frozen = places
        frozen.freeze(kernel.network, places)
        return kernel
