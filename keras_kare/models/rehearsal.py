"""Choosing the ridge of a kernel that was trained on all its rows.

A kernel trained on rows makes their leave-one-out errors look too good, so that
rows which trained cannot choose a ridge. Without validation data, training is
therefore rehearsed: from the same start, for as many epochs, on four fifths of the
rows. The remaining fifth never trained that kernel, and chooses `λ̃`. The model
itself then goes back to where its training on all rows had ended.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _sentences
from keras_kare.machine import Choice, Rows
from keras_kare.machine import ridge as ridges
from keras_kare.models.gathering import even_batch_size, for_training
from keras_kare.models.overfitting import warn_if_parted

HELD_OUT = 0.2
FEWEST = 10
NAME = "rows held out from a rehearsal of the training"


class Snapshot:
    """Values of a model's variables and its optimizer's, to return to."""

    def __init__(self, model: Any):
        self._variables = [*model.variables, *model.optimizer.variables]
        self._values = [np.asarray(v.value) for v in self._variables]

    def restore(self) -> None:
        """Put all values back."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


def held_out(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of rows that rehearse, and of those that choose; always the same."""
    shuffled = np.random.default_rng(0).permutation(rows)
    count = max(1, round(HELD_OUT * rows))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def epochs_run(history: Any, first: int, last: int, restored: bool) -> tuple[int, int]:
    """Return how many epochs a training had, and the epoch that `fit` began with.

    Args:
        history: Of `fit`; after a restored backup it lacks the epochs before that.
        first, last: `initial_epoch` and `epochs` of `fit`.
        restored: Whether a backup was restored, of a training that began at `first`.
    """
    begun = history.epoch[0] if history.epoch else last
    end = history.epoch[-1] + 1 if history.epoch else last
    return end - (first if restored else begun), begun


def rehearse(
    model: Any,
    rows: Rows,
    start: Snapshot,
    epochs: int,
    first: int,
    batch_size: int,
    shuffle: bool,
) -> Choice:
    """Train again from the start on most rows, and choose the ridge on the others.

    Args:
        model: A `KAREModel` whose training on all rows has ended; left as it was.
        rows: All training rows.
        start: The values from which that training had begun.
        epochs: How many epochs it had.
        first: The epoch that its `fit` began with. (Keras begins every `fit` of a
            model there once a backup was restored, whatever it is told.)
        batch_size: Of that training.
        shuffle: As in `fit`.
    """
    if len(rows) < FEWEST:
        return ridges.without_evidence("default (too few rows)")
    training, choosing = (rows.take(part) for part in held_out(len(rows)))
    batches = max(1, round(len(rows) / batch_size))
    ended = Snapshot(model)
    kept = model.history, model.stop_training
    start.restore()
    try:
        history = keras.Model.fit(
            model,
            **for_training(
                model, training, even_batch_size(len(training), batches), shuffle
            ),
            initial_epoch=first,
            epochs=first + epochs,
            verbose=0,
        )
        choice = model.machine.choose_ridge(training, choosing, NAME, model._intercept)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        return ridges.without_evidence(
            "default (rehearsal failed)",
            '`ridge="auto"` could not be chosen, since the rehearsal on fewer rows failed '
            f"({_sentences.first_line(error)}). Using a relative ridge of 1. Pass "
            "`validation_data`, or a number as `ridge`.",
            stacklevel=5,
        )
    finally:
        ended.restore()
        model.history, model.stop_training = kept
    if choice.error is not None and history.history.get("loss"):
        loss = history.history["loss"][-1]
        warn_if_parted(loss, choice.error, NAME, stacklevel=5)
    return choice
