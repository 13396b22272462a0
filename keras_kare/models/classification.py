"""Labels as targets: what a model tells of them, and what metrics of classes get."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _labels
from keras_kare._labels import Classes
from keras_kare.machine import Rows, calibration

SEVERAL = (
    "The network's outputs have the shape {shape}: the kernel is that of all values of a "
    "row together. Pool or flatten before the last layer, where one value a row is meant."
)


def check_classes(model: Any) -> Classes:
    """Return the classes of a model.

    Raises:
        ValueError: If its head has not been solved for labels.
    """
    classes: Classes | None = model.head.classes
    if classes is None:
        raise ValueError(
            "There are no classes: the head has not been solved for labels. Pass `y` to "
            "`fit` or `fit_head` as integers, booleans or text, or floats of labels to a "
            '`KAREModel(..., task="classification")`.'
        )
    return classes


def tell_of_targets(model: Any, rows: Rows, stacklevel: int = 4) -> None:
    """Warn of floats that look like labels, labels like quantities, and unequal units.

    Args:
        model: The model.
        rows: What it is to be fitted to.
        stacklevel: Of the warnings, that of the user's line.

    Raises:
        ValueError: As `check_metrics`.
    """
    check_metrics(model, rows)
    shape: Any = getattr(model.network, "output_shape", None)
    told = [_labels.many(rows.classes, rows.y, model._wanted.numbers)]
    if isinstance(shape, tuple) and len(shape) > 2:
        told.append(SEVERAL.format(shape=shape))
    if rows.classes is None:
        told.append(_labels.unequal(rows.y))
    if rows.classes is None and model.task == "auto":
        outputs = shape[-1] if isinstance(shape, tuple) else None
        known = outputs if isinstance(outputs, int) else None
        told.append(_labels.resemblance(rows.y, known))
    for message in filter(None, told):
        warnings.warn(message, stacklevel=stacklevel)


def tell_of_split(rows: Rows, held: Rows, stacklevel: int = 4) -> None:
    """Warn where the last rows, which validate, are of one class alone.

    Args:
        rows: Which train, of labels or of numbers.
        held: Which do not.
        stacklevel: Of the warning, that of the user's line.
    """
    alike = len(held) > 1 and np.all(held.y == held.y[0])
    if rows.classes is not None and alike:
        warnings.warn(
            f"The last rows, which `validation_split` holds back, are all of one of "
            f"{len(rows.classes)} classes: shuffle rows before, or pass `validation_data`.",
            stacklevel=stacklevel,
        )


def check_metrics(model: Any, rows: Rows) -> None:
    """Refuse metrics of classes where targets are numbers.

    Raises:
        ValueError: That names them.
    """
    if rows.classes is not None:
        return
    counted = np.all((rows.y >= 0.0) & (rows.y == np.round(rows.y)))  # have no sign
    wrong = model._wanted.signs if counted else ()
    if model.task == "auto":
        wrong += model._wanted.classes
    if wrong:
        raise ValueError(
            "`metrics` holds metrics of classes, and `y` numbers: pass labels (integers or "
            'text), or floats of labels to a `KAREModel(..., task="classification")`. '
            f"Received: metrics={list(wrong)}"
        )


def calibrate_for_metrics(model: Any) -> None:
    """Fit what makes probabilities, where metrics are to be given some.

    Raises:
        ValueError: If there are no rows for that.
    """
    if _wanted(model):
        model._calibrate()


def beside(model: Any, outputs: tf.Tensor, factor: Callable[[], Any]) -> tf.Tensor:
    """Put probabilities of the classes beside outputs, where metrics are to be given some.

    Args:
        model: The model.
        outputs: `(n, c)`.
        factor: Returns what they are multiplied by.

    Returns:
        `(n, c)`, or `(n, c + k)`, as `kk.metrics.OfClasses` takes them.
    """
    if not _wanted(model):
        return outputs
    return tf.concat([outputs, calibration.probabilities(outputs, factor())], axis=1)


def of_batch(outputs: tf.Tensor, y: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Return what makes probabilities of a batch's own leave-one-out predictions."""
    if weights is None:
        weights = tf.ones_like(y[:, 0])
    return calibration.inverse_temperature(outputs, y, tf.reshape(weights, (-1,)))


def _wanted(model: Any) -> bool:
    return bool(model._wanted.probabilities) and model.head.classes is not None
