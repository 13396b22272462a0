"""Kernels that are a formula of rows of numbers: what they all answer, and check."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.kernels import making, memory
from keras_kare.kernels.kernel import Kernel


class ClosedForm(Kernel):
    """A kernel of rows of numbers, `(n, d)`, whose values are a formula.

    A subclass defines `_values` and `_diagonal`, and `_make_variables` if it has some;
    `_adapt` if some are found from rows. Everything else, such as the types, the checks
    and the tiles, is here.

    Args:
        memory_limit: Bytes that kernel values may hold while they are computed, outside of
            graphs; more rows go in tiles. Defaults to half of what is free.
        name: Name of the layer.
    """

    _arrays = 8
    """About how many arrays of kernel values the formula holds at a time."""

    def __init__(
        self, memory_limit: int | None = None, name: str | None = None, **kwargs: Any
    ):
        _validation.check_memory_limit(memory_limit)
        super().__init__(name=name, **kwargs)
        self.memory_limit = memory_limit
        self.columns: int | None = None

    @abc.abstractmethod
    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        """Return values between rows, `(n1, n2)`; `None` for the same rows again."""

    @abc.abstractmethod
    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        """Return the value of each row with itself, `(n,)`."""

    def _make_variables(self, columns: int) -> None:
        """Make the variables, of rows of `d` numbers."""

    def _adapt(self, x: np.ndarray) -> None:
        """Set what is to be found from rows, `(n, d)` float64."""

    @property
    def _adapted(self) -> bool:
        """Whether nothing is to be found from rows any more."""
        return True

    def adapt(self, x: Any) -> None:
        """Find from rows what depends on them, such as `scale="median"`.

        `fit` and `fit_head` of a model do so, once; later rows change nothing.

        Args:
            x: `(n, d)`.
        """
        x = self._checked("x", x)
        self._adapt(np.asarray(x, "float64"))

    def build(self, input_shape: Any) -> None:
        """Make the variables, of rows `(n, d)`; what is a list counts as one shape."""
        self.columns = int(input_shape[-1])
        self._make_variables(self.columns)
        self.built = True

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        a = self._rows("x", x, dtype)
        step = self._step(a, a)
        return self._values(a, None) if step is None else self._in_tiles(a, a, step)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        a, b = self._rows("x1", x1, dtype), self._rows("x2", x2, dtype)
        step = self._step(a, b)
        return self._values(a, b) if step is None else self._in_tiles(a, b, step)

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self._diagonal(self._rows("x", x, dtype))

    def check(self, x: Any, rows: int | None = None) -> None:
        self._rows("x", x, None)

    def check_shapes(self, name: str, x: Any) -> None:
        parts = keras.tree.flatten(x)
        shapes = [part.shape for part in parts]
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"`{name}` must be one array of rows of numbers, `(n, d)`, for a "
                f"{type(self).__name__} kernel. Received: {name} of shape "
                f"{' and '.join(str(tuple(shape)) for shape in shapes)}"
            )
        if self.columns not in (None, shapes[0][1]) and shapes[0][1] is not None:
            raise ValueError(
                f"`{name}` must have {self.columns} columns, as the rows before. Received: "
                f"{name} of shape {tuple(shapes[0])}"
            )
        if parts[0].dtype == tf.string:
            _validation.refuse_text(name, "string")

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return {**config, "memory_limit": self.memory_limit}

    def _checked(self, name: str, x: Any) -> tf.Tensor:
        """Return rows as a tensor; make the variables for them."""
        if isinstance(x, np.ndarray) and x.dtype == self.variable_dtype:
            x = tf.constant(x)  # arrays become Keras' float type, tensors stay
        x = _validation.check_rows(name, x)
        self.check_shapes(name, x)
        (x,) = keras.tree.flatten(x)
        self._build_for(x)
        return x

    def _build_for(self, x: tf.Tensor) -> None:
        """Make the variables for rows, unless they are there: in one thread."""
        if self.built:
            return
        with making.LOCK, tf.init_scope():
            if not self.built:
                self.build(x.shape)

    def _rows(self, name: str, x: Any, dtype: str | None) -> tf.Tensor:
        """Return rows in the type to compute in; what is to be found from rows is found."""
        if tf.executing_eagerly():
            x = self._checked(name, x)
            if not self._adapted:
                with making.LOCK:
                    if not self._adapted:
                        self._adapt(np.asarray(x, "float64"))
        else:
            (x,) = keras.tree.flatten(x)
            self._build_for(x)
        if not self._adapted:
            raise ValueError(
                f"{type(self).__name__} needs rows to find its variables from. Call "
                "`kernel.adapt(x)` before a graph is traced. Received: a kernel that has "
                "seen no rows"
            )
        return tf.cast(x, dtype or self.variable_dtype)

    def _step(self, a: tf.Tensor, b: tf.Tensor) -> int | None:
        """Return how many rows of values go at a time; `None` for all."""
        if not tf.executing_eagerly():
            return None
        row = self._arrays * len(b) * a.dtype.size
        step = max(16, memory.default_limit(self.memory_limit) // row)
        return None if step >= len(a) else step

    def _in_tiles(self, a: tf.Tensor, b: tf.Tensor, step: int) -> tf.Tensor:
        parts = [self._values(rows, b) for rows in _rows.slices(a, step)]
        return tf.concat(parts, axis=0)
