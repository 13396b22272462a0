"""A kernel of coded columns."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare._arrays import plain
from keras_kare.kernels.classic import distances
from keras_kare.kernels.classic.closed_form import ClosedForm


@keras.saving.register_keras_serializable(package="keras_kare")
class Categorical(ClosedForm):
    """`K(x, x') = exp(−Σ_k [x_k ≠ x'_k] / s_k)`: of columns whose numbers are codes.

    A product over columns of 1 where rows agree and `exp(−1/s_k)` where they do not: the
    order of codes means nothing, and a column with a long `s_k` does not matter. Integers
    are compared as integers, however large.

    Args:
        scale: The start of `s`, a positive number. Defaults to `1.0`.
        metric: `"isotropic"`: one `s` for all columns; `"diagonal"`: one for each. Trains,
            as its logarithm. Defaults to `"isotropic"`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Raises:
        ValueError: If `scale` or `metric` is something else; for rows of floats whose
            codes are no longer apart in the type that models compute in.

    Example:

    ```python
    codes = np.random.default_rng(0).integers(4, size=(100, 5))
    gram = kk.kernels.Categorical().gram(codes)  # (100, 100)
    ```

    References:
        - Couto, "Kernel K-means for categorical data", IDA 2005.
    """

    def __init__(
        self,
        scale: float = 1.0,
        metric: str = "isotropic",
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_positive("scale", scale)
        _validation.check_option("metric", metric, ("isotropic", "diagonal"))
        super().__init__(memory_limit, name, **kwargs)
        self.scale, self.metric = scale, metric

    def _make_variables(self, columns: int) -> None:
        self.log_scale = self.add_weight(
            shape=(columns,) if self.metric == "diagonal" else (),
            initializer=keras.initializers.Constant(np.log(self.scale)),
            name="log_scale",
        )

    def check_codes(self, name: str, x: Any) -> None:
        for part in keras.tree.flatten(x):
            check_apart(name, part, self.variable_dtype)

    def _checked(self, name: str, x: Any) -> tf.Tensor:
        x = plain(name, x)
        self.check_codes(name, x)
        return super()._checked(name, x)

    def _in_type(self, x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Return codes as they are: a narrower type would merge large ones."""
        return x if x.dtype.is_floating or x.dtype == tf.int32 else tf.cast(x, tf.int64)

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        return self._values_in(a, b, a.dtype)

    def _values_in(self, a: tf.Tensor, b: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        if b is not None and a.dtype != b.dtype:
            wide = tf.int64 if a.dtype.is_integer and b.dtype.is_integer else tf.float64
            a, b = tf.cast(a, wide), tf.cast(b, wide)
        weights = tf.exp(-tf.cast(self.log_scale, dtype))
        weights = tf.broadcast_to(weights, tf.shape(a)[1:])
        return tf.exp(-distances.different(a, b, weights))

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        return self._diagonal_in(a, a.dtype)

    def _diagonal_in(self, a: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return tf.ones_like(a[:, 0], dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale, "metric": self.metric}


def check_apart(name: str, x: Any, dtype: Any) -> None:
    """Refuse floats that are codes, and not apart in the type of a model.

    Those are whole numbers that it cannot hold, and columns that lose values.

    Args:
        name: Of the argument.
        x: Rows as they are passed, in any form.
        dtype: The type of a kernel's variables.
    """
    x = x.numpy() if isinstance(x, tf.Tensor) and hasattr(x, "numpy") else x
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.ndim != 2:
        return  # integers stay as they are
    with np.errstate(over="ignore"):
        narrow = x.astype(np.promote_types(keras.config.floatx(), dtype))
    moved = narrow.astype(x.dtype) != x
    for column in np.flatnonzero(np.any(moved, axis=0)):
        ours, theirs = x[:, column], narrow[:, column]
        lost = len(np.unique(ours)) - len(np.unique(theirs))
        whole = ours[moved[:, column] & (np.floor(ours) == ours)]
        if lost or len(whole):
            largest = np.max(np.abs(ours[np.isfinite(ours)]), initial=0.0)
            raise ValueError(
                f"`{name}` has codes that {narrow.dtype}, the type that models compute in, "
                "does not tell apart: recode each column of codes from 0 upwards, such as "
                f"by scikit-learn's `OrdinalEncoder`. Received: {name} with codes of up to "
                f"{largest:.17g}, in column {column} of those that are codes"
            )
