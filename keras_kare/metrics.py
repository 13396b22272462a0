"""Metrics for targets in {-1, 1}."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_kare")
class SignedAccuracy(keras.metrics.MeanMetricWrapper):
    """The share of rows whose class is right, for targets in {-1, 1}.

    One column: the sign of the prediction is the class. Several columns: the largest
    is. `metrics=["accuracy"]` means this metric in `KAREModel.compile`, since Keras's
    own accuracy compares with a threshold of 0.5, which is wrong here.

    Args:
        name: Name of the metric. Defaults to `"accuracy"`.
        dtype: Type of the result.

    Example:

    ```python
    metric = kk.metrics.SignedAccuracy()
    metric.update_state([[1.0], [-1.0]], [[0.3], [0.2]])
    float(metric.result())  # 0.5
    ```
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None):
        super().__init__(fn=signed_accuracy, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def signed_accuracy(y_true: Any, y_pred: Any) -> Any:
    """Return 1 for each row whose class is right, else 0: `(n,)`."""
    y_true, y_pred = (
        keras.ops.convert_to_tensor(y_true),
        keras.ops.convert_to_tensor(y_pred),
    )
    if len(y_pred.shape) == 1:
        y_pred = y_pred[:, None]
    y_true = keras.ops.reshape(y_true, keras.ops.shape(y_pred))
    if y_pred.shape[-1] == 1:
        right = keras.ops.equal(y_true > 0, y_pred > 0)[..., 0]
    else:
        right = keras.ops.equal(
            keras.ops.argmax(y_true, axis=-1), keras.ops.argmax(y_pred, axis=-1)
        )
    return keras.ops.cast(right, keras.config.floatx())


def get(identifier: Any) -> Any:
    """Resolve "accuracy" and "acc" as `SignedAccuracy`; leave all else to Keras."""
    if identifier in ("accuracy", "acc"):
        return SignedAccuracy(name=identifier)
    return identifier
