"""What every kernel answers."""

from __future__ import annotations

import abc
import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Kernel(keras.layers.Layer, abc.ABC):
    """Base class of kernels: a Keras layer that answers `gram`, `cross`, `diag`.

    A kernel is a layer so that its variables are tracked, trained and saved.
    Subclasses define the three verbs; a kernel with a finite feature map also
    sets `has_features = True` and defines `vjp` and `jvp`, which gives the
    head its primal form.

    Rows are always the first axis. `x` may be a nested structure of tensors
    (networks with several inputs) that all have the same number of rows.
    """

    has_features: bool = False

    @abc.abstractmethod
    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """The symmetric matrix of kernel values between the rows of `x`, `(n, n)`."""

    @abc.abstractmethod
    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        """Kernel values between the rows of `x1` and those of `x2`, `(n1, n2)`."""

    @abc.abstractmethod
    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        """Kernel value of each row of `x` with itself, `(n,)`."""

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        """`Jᵀ v`: the feature map's transpose applied to `v` of shape `(n, m)`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no finite feature map, so no primal form. "
            "Use a head with `form='dual'`."
        )

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        """`J w`: the feature map applied to weights as `vjp` returns them, `(n, m)`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no finite feature map, so no primal form. "
            "Use a head with `form='dual'`."
        )

    def check(self, x: Any, rows: int | None = None) -> None:
        """Refuse, before long work, rows or weights for which there is no kernel.

        Args:
            x: `(n, ...)`.
            rows: How many of them will go at a time. Defaults to all.
        """

    def check_shapes(self, name: str, x: Any) -> None:
        """Refuse rows of a shape that the kernel does not take; names the argument."""

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        """Multiply-adds a predicted row, for each form of a head that this kernel allows.

        Args:
            anchors: Number of anchors of the dual form.
            targets: Number of columns to predict.
        """
        return {"dual": float(anchors)}

    @property
    def metrics(self) -> list[Any]:
        """None: metrics that a network was compiled with belong to its own training.

        A `KAREModel` would otherwise report them under the names of its own.
        """
        return []

    def fingerprint(self) -> str:
        """A hash of all that the kernel's values depend on: weights, and which train."""
        digest = hashlib.blake2b(digest_size=16)
        for variable in self.weights:
            digest.update(b"1" if variable.trainable else b"0")
            digest.update(np.ascontiguousarray(variable.value).tobytes())
        return digest.hexdigest()

    def call(self, x1: Any, x2: Any = None) -> tf.Tensor:
        """`gram(x1)`, or `cross(x1, x2)` where `x2` is given."""
        return self.gram(x1) if x2 is None else self.cross(x1, x2)
