"""A kernel of some of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.combined.combination import OfOne
from keras_kare.kernels.kernel import Kernel


@keras.saving.register_keras_serializable(package="keras_kare")
class On(OfOne):
    """A kernel that sees some of the columns of rows, or some of their inputs.

    Args:
        kernel: The kernel.
        columns: Numbers of columns, which may count from the end; or the name of one of
            the inputs in a dictionary, or a list of such names for a dictionary of them.
        name: Name of the layer.

    Raises:
        TypeError: If `kernel` is no kernel.
        ValueError: If `columns` is something else; for rows that do not have them.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    numbers = kk.kernels.On(kk.kernels.Laplace(), [0, 1, 2])
    codes = kk.kernels.On(kk.kernels.Categorical(), [3, 4])
    gram = (numbers * codes).gram(x)  # (100, 100)
    ```

    References:
        - Duvenaud, Nickisch, Rasmussen, "Additive Gaussian processes", NeurIPS 2011.
    """

    def __init__(
        self,
        kernel: Kernel,
        columns: str | Sequence[int] | Sequence[str],
        name: str | None = None,
        **kwargs: Any,
    ):
        if not isinstance(columns, str):
            columns = np.asarray(columns).tolist()
        names = isinstance(columns, str) or all(isinstance(c, str) for c in columns)
        whole = not names and all(_validation.is_whole(c) for c in columns)
        if not columns or not (names or whole):
            raise ValueError(
                "`columns` must be numbers of columns, or names of inputs, at least one. "
                f"Received: columns={columns!r}"
            )
        super().__init__(kernel, name, **kwargs)
        self.columns, self.has_features = columns, kernel.has_features

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self.kernel.gram(self._of("x", x), dtype)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        return self.kernel.cross(self._of("x1", x1), self._of("x2", x2), dtype)

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self.kernel.diag(self._of("x", x), dtype)

    def normalized(
        self, x1: Any, x2: Any = None, dtype: str | None = None
    ) -> tf.Tensor | None:
        if x2 is None:
            return self.kernel.normalized(self._of("x", x1), None, dtype)
        return self.kernel.normalized(self._of("x1", x1), self._of("x2", x2), dtype)

    def normalized_diag(self, x: Any, dtype: str | None = None) -> tf.Tensor | None:
        return self.kernel.normalized_diag(self._of("x", x), dtype)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        return self.kernel.vjp(self._of("x", x), v, dtype)

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        return self.kernel.jvp(self._of("x", x), w)

    def build(self, input_shape: Any) -> None:
        if not self.kernel.built:
            self.kernel.build(self._shape_of(input_shape))
        self.built = True

    def check(self, x: Any, rows: int | None = None) -> None:
        self.kernel.check(self._of("x", x), rows)
        self.built = True

    def check_gradient(self, x: Any) -> None:
        self.kernel.check_gradient(self._of("x", x))

    def check_shapes(self, name: str, x: Any) -> None:
        if isinstance(x, dict) or not any(isinstance(c, int) for c in self.columns):
            self.kernel.check_shapes(name, self._of(name, x))
            return
        part = _one(name, x)
        _check_columns(name, part.shape, self.columns)
        shape = (part.shape[0], len(self.columns))
        self.kernel.check_shapes(name, tf.TensorSpec(shape, part.dtype))

    def check_codes(self, name: str, x: Any) -> None:
        if isinstance(x, dict) and not any(isinstance(c, int) for c in self.columns):
            names = [self.columns] if isinstance(self.columns, str) else self.columns
            self.kernel.check_codes(name, {key: x[key] for key in names if key in x})
        elif isinstance(x, np.ndarray) and x.ndim == 2 and not isinstance(x, dict):
            places = [c for c in self.columns if isinstance(c, int)]
            if all(-x.shape[1] <= c < x.shape[1] for c in places):
                self.kernel.check_codes(name, x[:, places])

    def adapt(self, x: Any) -> None:
        """Find from rows what depends on them; see `ClosedForm.adapt`."""
        self.kernel.adapt(self._of("x", x))

    def pair_flops(self, x: Any) -> float:
        return self.kernel.pair_flops(self._of("x", x))

    def _settings(self) -> tuple[Any, ...]:
        return (self.columns,)

    def _of(self, name: str, x: Any) -> Any:
        """Return what the kernel sees of rows."""
        if isinstance(self.columns, str) or isinstance(self.columns[0], str):
            names = [self.columns] if isinstance(self.columns, str) else self.columns
            if not isinstance(x, dict) or not set(names) <= set(x):
                held = sorted(x) if isinstance(x, dict) else type(x).__name__
                raise ValueError(
                    f"`{name}` must be a dictionary with the inputs {names}. "
                    f"Received: {held}"
                )
            return (
                x[self.columns]
                if isinstance(self.columns, str)
                else {key: x[key] for key in names}
            )
        if tf.executing_eagerly():
            self.check_codes(name, x)
            x = _validation.check_rows(name, x)
        x = _one(name, x)
        _check_columns(name, x.shape, self.columns)
        places = [c % int(x.shape[1]) for c in self.columns]
        return tf.gather(x, places, axis=1)

    def _shape_of(self, shape: Any) -> Any:
        if isinstance(self.columns, str):
            return shape[self.columns]
        if isinstance(self.columns[0], str):
            return {key: shape[key] for key in self.columns}
        return (shape[0], len(self.columns))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "columns": self.columns}


def _one(name: str, x: Any) -> Any:
    """Return the one array of rows, or its specification."""
    parts = keras.tree.flatten(x)
    if len(parts) != 1:
        raise ValueError(
            f"`{name}` must be one array of rows of numbers, `(n, d)`, for a kernel `On` "
            f"some of its columns. Received: {len(parts)} arrays"
        )
    return parts[0]


def _check_columns(name: str, shape: Any, columns: Any) -> None:
    """Refuse rows that do not have the columns."""
    if len(shape) == 2 and all(-shape[1] <= c < shape[1] for c in columns):
        return
    raise ValueError(
        f"`{name}` must be rows of numbers, `(n, d)`, that have the columns {columns}. "
        f"Received: {name} of shape {tuple(shape)}"
    )
