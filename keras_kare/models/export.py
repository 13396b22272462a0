"""A solved model as a SavedModel that needs TensorFlow only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare._labels import are_signs
from keras_kare.kernels.structured.synthetic import ROWS, described, synthetic_rows
from keras_kare.machine import Machine, State, calibration

ELSEWHERE = {
    "onnx": "the converter to ONNX (tf2onnx) knows no gradients of activations, such as "
    "ReluGrad and TanhGrad, of which predictions are made.",
    "litert": "export a SavedModel, and convert that with `tf.lite.TFLiteConverter`, "
    "which works for some activations: see tutorials/serving/README.md.",
}
"""Formats that Keras writes and we do not, and why."""


def check_format(value: Any) -> None:
    """Refuse what cannot be written, with the reason where there is one."""
    if value in ELSEWHERE:
        raise ValueError(
            f"`format` must be 'tf_saved_model'. {value}: {ELSEWHERE[value]} "
            f"Received: format={value!r}"
        )
    _validation.check_option("format", value, ("tf_saved_model",))


def export_saved_model(
    model: Any,
    filepath: Any,
    form: str,
    classes: Any,
    verbose: bool | None,
    **kwargs: Any,
) -> None:
    """Write the signatures `serve`, `serving_default` and, of classes, `classify`.

    Axes that the network's inputs leave open stay open in the signatures; where the
    network cannot be traced so, as with `unroll=True`, a warning says that they do not.

    Only what the chosen form reads is tracked, so that a primal export holds the
    network's variables and `w`, and no training row.

    Args:
        model: A `KAREModel` with a fresh head.
        filepath: The folder to write.
        form: `"primal"` or `"dual"`.
        classes: Names of the classes. Defaults to the labels, of a classification.
        verbose: Whether to print where it was written.
        **kwargs: For `keras.export.ExportArchive.write_out`.

    Raises:
        TypeError: If `classes` is no sequence of names.
        ValueError: If `classes` do not fit the targets.
    """
    labels = _calibrated_labels(model, classes)
    machine = model.machine.in_form(form)

    def serve(inputs: Any) -> tf.Tensor:
        return machine(inputs)

    archive = keras.export.ExportArchive()
    archive.track(model.kernel if model.network is None else model.network)
    for variable in machine.state.read():
        archive.track(variable)
    signature = [_named(_open_signature(serve, machine))]
    endpoint = archive.add_endpoint("serve", serve, input_signature=signature)
    if labels is not None:
        factor = model.machine.state.facts["inverse_temperature"]

        def classify(inputs: Any) -> dict[str, tf.Tensor]:
            scores = calibration.probabilities(endpoint(inputs), factor)
            names = tf.tile(tf.constant([labels]), [tf.shape(scores)[0], 1])
            return {"classes": names, "scores": scores}

        archive.add_endpoint("classify", classify, input_signature=signature)
    archive.write_out(str(filepath), verbose=True if verbose is None else verbose, **kwargs)


def _open_signature(serve: Callable[[Any], Any], machine: Machine) -> Any:
    """Leave axes open that the network leaves open, if it can be traced so."""
    known, kernel = machine.state.signature(), machine.kernel
    signature = kernel.open_spec(known)
    if keras.tree.flatten(signature) == keras.tree.flatten(known):
        return known
    rows = synthetic_rows(described(known), kernel.network, seed=0)
    why = "the network computes something else where lengths are not known"
    try:
        opened, closed = (
            tf.function(serve, autograph=False, input_signature=[spec])
            for spec in (signature, known)
        )
        some = [_rows.take(rows, slice(n)) for n in (1, 3, ROWS)]
        if all(_agree(opened(x).numpy(), closed(x).numpy()) for x in some):
            return signature
    except tf.errors.InvalidArgumentError:
        pass  # as `TimeDistributed`, which Keras maps in another way then
    except (ValueError, TypeError) as error:
        why = f"the network cannot be traced for others ({error})"
    shapes = [tuple(spec.shape) for spec in keras.tree.flatten(known)]
    warnings.warn(
        "The exported signature takes only rows of the shape that the head was solved "
        f"on, {shapes}: {why}.",
        stacklevel=4,
    )
    return known


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    scale = float(np.max(np.abs(expected), initial=0.0))
    return bool(np.allclose(found, expected, rtol=0.0, atol=1e-3 * scale))


def _named(signature: Any) -> Any:
    """Name inputs in a dictionary by their keys, instead of by number."""
    if not isinstance(signature, dict):
        return signature
    return {
        key: tf.TensorSpec(spec.shape, spec.dtype, name=key)
        if isinstance(spec, tf.TensorSpec)
        else spec
        for key, spec in signature.items()
    }


def _calibrated_labels(model: Any, classes: Any) -> list[str] | None:
    """Return names of classes, where the machine knows probabilities of them.

    Raises:
        TypeError: If `classes` is no sequence of names.
        ValueError: If `classes` do not fit the targets, or were asked for, and there are
            no rows to calibrate on.
    """
    known, labels = model.classes, None
    if classes is not None:
        labels = class_labels(classes, model.machine.state)
    elif known is not None:
        labels = [_as_text(label) for label in known.tolist()]
    if labels is None:
        return None
    try:
        model.machine.calibrate()
    except ValueError as error:
        if classes is not None:
            raise
        warnings.warn(f"There is no signature `classify`. {error}", stacklevel=4)
        return None
    return labels


def _as_text(label: Any) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)


def class_labels(classes: Any, state: State) -> list[str]:
    """Return names of classes as text, if they fit what the head was solved for."""
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence | np.ndarray):
        raise TypeError(
            "`classes` must be a sequence of names, one a class. "
            f"Received: classes={classes!r} of type {type(classes).__name__}"
        )
    labels, columns = [_as_text(label) for label in classes], state.columns
    if len(set(labels)) < len(labels):
        raise ValueError(f"`classes` must be different. Received: classes={labels}")
    if len(labels) != max(2, columns):
        wanted = (
            "two names, first that of the target -1, for one column of targets"
            if columns == 1
            else "one name for each column of the targets"
        )
        raise ValueError(
            f"`classes` must hold {wanted}. Received: {len(labels)} names for {columns} "
            f"column{'s' * (columns > 1)}"
        )
    targets = state.targets
    if targets is not None and not are_signs(targets):
        raise ValueError(
            "`classes` needs a machine solved for labels, or for targets of -1 and, once a "
            "row, 1, whose outputs its scores are made of. Received: targets from "
            f"{targets.min():g} to {targets.max():g}"
        )
    return labels
