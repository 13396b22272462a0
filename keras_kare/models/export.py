"""A solved model as a SavedModel that needs TensorFlow only."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def export_saved_model(
    model: Any, filepath: Any, form: str, verbose: bool | None, **kwargs: Any
) -> None:
    """Write the signatures `serve` and `serving_default`: rows to outputs.

    Only what the chosen form reads is tracked, so that a primal export holds the
    network's variables and `w`, and no training row.

    Args:
        model: A `KAREModel` with a fresh head.
        filepath: The folder to write.
        form: `"primal"` or `"dual"`.
        verbose: Whether to print where it was written.
        **kwargs: For `keras.export.ExportArchive.write_out`.
    """
    head = model.head.in_form(form, model.kernel)

    def serve(inputs: Any) -> tf.Tensor:
        return head.call(inputs, model.kernel)

    archive = keras.export.ExportArchive()
    archive.track(model.kernel if model.network is None else model.network)
    for variable in head.prediction_variables():
        archive.track(variable)
    archive.add_endpoint("serve", serve, input_signature=[head.input_signature()])
    archive.write_out(str(filepath), verbose=True if verbose is None else verbose, **kwargs)
