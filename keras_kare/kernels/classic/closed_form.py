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
        return self._sound(self._all(a, None, dtype), ("x", a), ("x", a))

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        a, b = self._rows("x1", x1, dtype), self._rows("x2", x2, dtype)
        return self._sound(self._all(a, b, dtype), ("x1", a), ("x2", b))

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        a = self._rows("x", x, dtype)
        return self._sound(self._diagonal_in(a, self._type(dtype)), ("x", a))

    def check(self, x: Any, rows: int | None = None) -> None:
        self.diag(x)  # no value between rows is larger

    def check_shapes(self, name: str, x: Any) -> None:
        parts = keras.tree.flatten(x)
        shapes = [part.shape for part in parts]
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"`{name}` must be one array of rows of numbers, `(n, d)`, for a "
                f"{type(self).__name__} kernel. Received: {name} of shape "
                f"{' and '.join(str(tuple(shape)) for shape in shapes)}"
            )
        if shapes[0][1] == 0:
            raise ValueError(
                f"`{name}` must have at least one column. "
                f"Received: {name} of shape {tuple(shapes[0])}"
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
        return self._in_type(x, self._type(dtype))

    def _type(self, dtype: str | None) -> tf.DType:
        """Return the type of values."""
        return tf.as_dtype(dtype or self.variable_dtype)

    def _in_type(self, x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Return rows in the type that they are computed with."""
        return tf.cast(x, dtype)

    def _values_in(self, a: tf.Tensor, b: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        """Return `_values` in the type of values."""
        return self._values(a, b)

    def _diagonal_in(self, a: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Return `_diagonal` in the type of values."""
        return self._diagonal(a)

    def _sound(self, values: tf.Tensor, *given: tuple[str, tf.Tensor]) -> tf.Tensor:
        """Refuse values that are no numbers; in graphs, make those of NaN rows NaN.

        Args:
            values: Of an axis for each of the given rows.
            *given: Names of arguments and their rows.
        """
        if tf.executing_eagerly():
            if not _validation.all_finite(values):
                self._refuse_values(values, given)
            return values
        for axis, (_, rows) in enumerate(given):
            if rows.dtype.is_floating:
                missing = tf.reduce_any(tf.math.is_nan(rows), axis=1)
                zeros = tf.zeros_like(missing, values.dtype)
                marks = tf.where(missing, zeros + np.nan, zeros)
                values += marks[:, None] if axis < len(given) - 1 else marks
        return values

    def _refuse_values(self, values: tf.Tensor, given: Any) -> None:
        """Say what is at fault where values hold NaN or Inf."""
        for variable in self.variables:
            if not _validation.all_finite(tf.convert_to_tensor(variable.value)):
                raise ValueError(
                    f"The kernel's variable `{variable.path}` holds NaN or Inf: its "
                    "training has diverged, or it was set so. Train again with a smaller "
                    "learning rate, or restore earlier weights."
                )
        names = " or ".join(dict.fromkeys(f"`{name}`" for name, _ in given))
        largest = max(float(tf.reduce_max(tf.abs(rows))) for _, rows in given)
        raise ValueError(
            f"{type(self).__name__} has values that overflow {values.dtype.name}, since "
            f"the numbers of {names} are too large: scale them to about one, or use "
            f'`dtype="float64"`. Received: {names} with an entry of size {largest:.3g}'
        )

    def _all(
        self, a: tf.Tensor, b: tf.Tensor | None, dtype: str | None, values: Any = None
    ) -> tf.Tensor:
        """Return values between all rows, in tiles where they need too much memory.

        Args:
            a: `(n1, d)`.
            b: `(n2, d)`; `None` for `a`.
            dtype: Of the values.
            values: What to compute; defaults to `_values_in`.
        """
        other, given = a if b is None else b, self._type(dtype)
        values, step = values or self._values_in, self._step(a, other)
        if step is None:
            return values(a, b, given)
        parts = [values(rows, other, given) for rows in _rows.slices(a, step)]
        return tf.concat(parts, axis=0)

    def _step(self, a: tf.Tensor, b: tf.Tensor) -> int | None:
        """Return how many rows of values go at a time; `None` for all."""
        if not tf.executing_eagerly():
            return None
        row = self._arrays * len(b) * a.dtype.size
        step = max(16, memory.default_limit(self.memory_limit) // row)
        return None if step >= len(a) else step
