"""A kernel of coded columns."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic import distances
from keras_kare.kernels.classic.closed_form import ClosedForm


@keras.saving.register_keras_serializable(package="keras_kare")
class Categorical(ClosedForm):
    """`K(x, x') = exp(−Σ_k [x_k ≠ x'_k] / s_k)`: of columns whose numbers are codes.

    A product over columns of 1 where rows agree and `exp(−1/s_k)` where they do not: the
    order of codes means nothing, and a column with a long `s_k` does not matter.

    Args:
        scale: The start of `s`, a positive number. Defaults to `1.0`.
        metric: `"isotropic"`: one `s` for all columns; `"diagonal"`: one for each. Trains,
            as its logarithm. Defaults to `"isotropic"`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Raises:
        ValueError: If `scale` or `metric` is something else.

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

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        weights = tf.exp(-tf.cast(self.log_scale, a.dtype))
        weights = tf.broadcast_to(weights, tf.shape(a)[1:])
        return tf.exp(-distances.different(a, b, weights))

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(a[:, 0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale, "metric": self.metric}
