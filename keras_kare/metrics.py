"""Metrics of kernel machines: what Keras' own expect, made of targets in {-1, 1}."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

NUMBERS = (
    "MeanSquaredError",
    "RootMeanSquaredError",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError",
    "LogCosh",
    "Huber",
    "R2Score",
    "CosineSimilarity",
    "PearsonCorrelation",
    "ConcordanceCorrelation",
    "Hinge",
    "SquaredHinge",
)
"""Metrics of numbers."""

SIGNED = ("SignedAccuracy", *NUMBERS)
"""Metrics of targets in {-1, 1} and the machine's outputs."""

COLUMNS = (
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "CategoricalHinge",
    "TopKCategoricalAccuracy",
    "KLDivergence",
    "OneHotIoU",
    "OneHotMeanIoU",
)
"""Metrics of one column a class, also where there are two."""

CODES = (
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
)
"""Metrics that take the number of a row's class."""

DECIDED = ("Accuracy", "IoU", "MeanIoU")
"""Metrics that take the number of the predicted class, too."""

THRESHOLDS = (
    "AUC",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "BinaryIoU",
    "F1Score",
    "FBetaScore",
    "FalseNegatives",
    "FalsePositives",
    "Precision",
    "PrecisionAtRecall",
    "Recall",
    "RecallAtPrecision",
    "SensitivityAtSpecificity",
    "SpecificityAtSensitivity",
    "TrueNegatives",
    "TruePositives",
)
"""Metrics of the second of two classes, or of one column a class."""

TINY = 1e-30
"""The least probability that a logarithm is taken of."""

OF_CLASSES = (*COLUMNS, *CODES, *DECIDED, *THRESHOLDS)


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
        self._direction = "up"  # for callbacks that monitor it

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def signed_accuracy(y_true: Any, y_pred: Any) -> Any:
    """Return 1 for each row whose class is right, else 0: `(n,)`."""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(y_pred.shape) == 1:
        y_pred = y_pred[:, None]
    y_true = ops.reshape(y_true, ops.shape(y_pred))
    if y_pred.shape[-1] == 1:
        right = ops.equal(y_true > 0, y_pred > 0)[..., 0]
    else:
        right = ops.equal(ops.argmax(y_true, axis=-1), ops.argmax(y_pred, axis=-1))
    return ops.cast(right, keras.config.floatx())


@keras.saving.register_keras_serializable(package="keras_kare")
class OfClasses(keras.metrics.Metric):
    """A metric of Keras, or of a user, given what it expects of a classification.

    `KAREModel.compile` puts it round metrics. Targets come in {-1, 1}, `(n, c)`, and
    predictions with the probabilities of the `k` classes beside them, `(n, c + k)`. What
    the metric is given:

    - metrics of numbers (mean squared error, hinge, …): these targets, and the outputs;
    - metrics of thresholds (`AUC`, `Precision`, `BinaryCrossentropy`, …) and a user's own:
      of two classes 0 or 1 and the probability of the second, `(n, 1)`; else one-hot
      columns and probabilities, `(n, k)`;
    - categorical metrics, and `F1Score` without a threshold: one-hot columns and
      probabilities, `(n, k)`; sparse ones the class's number, `(n, 1)`, in place of
      columns.

    Predictions without probabilities, as of numbers, are handed on as they are.

    Args:
        metric: A `keras.metrics.Metric`.
        **kwargs: Of `keras.metrics.Metric`.
    """

    def __init__(self, metric: keras.metrics.Metric, **kwargs: Any):
        super().__init__(**{"name": metric.name, "dtype": metric.dtype, **kwargs})
        self.metric, self.kind = metric, _kind(metric)
        if (direction := getattr(metric, "_direction", None)) is not None:
            self._direction = direction  # for callbacks that monitor it

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        columns, given = y_true.shape[-1], y_pred.shape[-1]
        known = columns is not None and given is not None  # as where there are classes
        if len(y_pred.shape) == 2 and known and given > columns:
            outputs, shares = y_pred[:, :columns], y_pred[:, columns:]
            y_true, y_pred = self._expected(y_true, outputs, shares)
        return self.metric.update_state(y_true, y_pred, sample_weight=sample_weight)

    def _expected(self, y: Any, outputs: Any, shares: Any) -> tuple[Any, Any]:
        """Return what the metric is given."""
        kind, metric = self.kind, self.metric
        if kind in SIGNED:
            return y, outputs
        single = y.shape[-1] == 1
        own = ops.cast(y > 0, shares.dtype)
        each = ops.concatenate([1.0 - own, own], axis=-1) if single else own
        code = ops.argmax(each, axis=-1)[:, None]
        if kind in DECIDED:
            return code, ops.argmax(shares, axis=-1)[:, None]
        logarithms = getattr(metric, "from_logits", False)
        if kind in (*CODES, *COLUMNS):
            found = ops.log(ops.maximum(shares, TINY)) if logarithms else shares
            return (code if kind in CODES else each), found
        both = kind in ("F1Score", "FBetaScore") and metric.threshold is None
        own, found = (each, shares) if both or not single else (own, shares[:, 1:])
        if logarithms or getattr(metric, "_from_logits", False):
            found = ops.log(ops.maximum(found, TINY) / ops.maximum(1.0 - found, TINY))
        return own, found

    def result(self) -> Any:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        plain = type(self.metric) is keras.metrics.MeanMetricWrapper  # of a function
        given = self.metric._fn if plain else self.metric
        return {"metric": keras.saving.serialize_keras_object(given)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OfClasses:
        made: OfClasses = get(keras.saving.deserialize_keras_object(config["metric"]))
        return made


def get(identifier: Any) -> Any:
    """Return a metric given what it expects; `"accuracy"` and `"acc"` as `SignedAccuracy`.

    Args:
        identifier: As Keras takes in `metrics`: a name, a function, a metric, or `None`.
    """
    if identifier is None or isinstance(identifier, OfClasses):
        return identifier
    if identifier in ("accuracy", "acc"):
        return OfClasses(SignedAccuracy(name=identifier))
    if identifier in ("crossentropy", "ce"):
        return OfClasses(keras.metrics.CategoricalCrossentropy(name=identifier))
    metric = keras.metrics.get(identifier)
    if not isinstance(metric, keras.metrics.Metric):  # a function
        name = identifier if isinstance(identifier, str) else metric.__name__
        metric = keras.metrics.MeanMetricWrapper(metric, name=name)
    elif isinstance(identifier, str):
        metric.name = identifier
    return OfClasses(metric)


@dataclass(frozen=True)
class Wanted:
    """What the metrics of a model want to be given.

    Attributes:
        probabilities: Whether one takes anything but targets and outputs.
        classes: Names of those that mean nothing where targets are numbers.
        signs: Names of those that mean nothing where targets have no sign.
        numbers: Names of those that are of numbers.
    """

    probabilities: bool = False
    classes: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @classmethod
    def by(cls, *metrics: Any) -> Wanted:
        """Return what metrics want, in the structures in which they were compiled."""
        ours = [m for m in keras.tree.flatten(metrics) if isinstance(m, OfClasses)]

        def named(*kinds: str) -> tuple[str, ...]:
            return tuple(metric.name for metric in ours if metric.kind in kinds)

        return cls(
            probabilities=len(named(*SIGNED)) < len(ours),
            classes=named(*OF_CLASSES),
            signs=named("SignedAccuracy"),
            numbers=named(*NUMBERS),
        )


def _kind(metric: keras.metrics.Metric) -> str:
    """Return the name of the Keras metric that this is one of; else its own."""
    known = {*SIGNED, *OF_CLASSES}
    for kind in type(metric).__mro__:
        if kind.__name__ in known:
            return kind.__name__
    function = getattr(getattr(metric, "_fn", None), "__name__", "")
    camel = "".join(part.capitalize() for part in function.split("_"))
    return camel if camel in known else type(metric).__name__
