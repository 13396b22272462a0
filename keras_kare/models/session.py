"""One call of `fit`: rows are gathered and checked, they train, and are solved on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows
from keras_kare.machine import Rows
from keras_kare.machine import ridge as ridges
from keras_kare.machine.calibration import Evidence
from keras_kare.machine.evidence import VALIDATED
from keras_kare.models import batches, classification, gathering, labelled, rehearsal
from keras_kare.models.watch import Watch
from keras_kare.solvers.stream import Stream


@dataclass
class Session:
    """What one `fit` trains, validates and is solved on.

    Attributes:
        model: A `KAREModel`.
        x: As it was passed: arrays, or a dataset that Keras reads.
        rows: Training rows; of a stream, its first ones.
        solved_on: What the head is solved on at the end: the rows, or the stream.
        validation: Rows that never train, or `None`.
        batch_size: Rows of a Gram matrix.
    """

    model: Any
    x: Any
    rows: Rows
    solved_on: Rows | Stream
    validation: Rows | None
    batch_size: int

    @classmethod
    def gathered(
        cls,
        model: Any,
        x: Any,
        y: Any,
        batch_size: int | None,
        validation_split: float,
        validation_data: Any,
        steps: int | None,
        validation_steps: int | None,
        **weights: Any,
    ) -> Session:
        """Gather and check all rows, before any work; arguments as of `fit`.

        Raises:
            ValueError: For bad input, named.
        """
        steps, stream, task = batches.steps_of_rows(x, steps), None, model.task
        if model._streams(x):
            gathering.check_alone(y, **weights)
            classes = labelled.classes_in(x, steps, task)
            rows = gathering.begin(x, steps, model.validation_anchors, task, classes)
            stream = gathering.stream(x, steps, task, classes)
        else:
            rows = gathering.gather(x, y, steps, task=task, **weights)
        if validation_split and validation_data is None:
            if batches.is_dataset(x):
                raise ValueError(
                    "`validation_split` needs arrays. Split the dataset, and pass "
                    f"`validation_data`. Received: validation_split={validation_split}"
                )
            rows, held = rows.split(validation_split)
            validation = gathering.gather_validation(held.parts(), None, None)
            classification.tell_of_split(rows, held, stacklevel=5)
        else:
            validation = gathering.gather_validation(
                validation_data, validation_steps, rows.classes
            )
        arrays = not batches.is_dataset(x)
        if arrays and batch_size is None:
            full = model.loss.supplies_gradients
            batch_size = len(rows) if full else gathering.default_batch_size(len(rows))
        size = rows.batch_size if batch_size is None else batch_size
        model._check_rows(rows, validation, size)
        model._check_trainable(rows, validation)
        if arrays:
            gathering.check_batch_size(size, len(rows))
        classification.tell_of_targets(model, rows, stacklevel=5)
        x = labelled.encoded(x, rows.classes)
        session = cls(model, x, rows, stream or rows, validation, size)
        model.machine.check_rows(session.solved_on, validation is not None)
        return session

    def training_data(self, shuffle: bool, steps: int | None) -> dict[str, Any]:
        """Return what trains, as arguments of `keras.Model.fit`."""
        if not batches.is_dataset(self.x):
            return gathering.for_training(
                self.model, self.rows, self.batch_size, shuffle, steps
            )
        shuffle = shuffle and not isinstance(self.x, tf.data.Dataset)  # else Keras warns
        return {"x": self.x, "steps_per_epoch": steps, "shuffle": shuffle}

    def validation_data(
        self, given: Any, batch_size: int | None, steps: int | None
    ) -> dict[str, Any]:
        """Return what validates, as arguments of `keras.Model.fit`.

        Args:
            given: As `validation_data` of `fit`.
            batch_size: Rows of a step. Defaults to those of a batch that trains.
            steps: As `validation_steps` of `fit`.
        """
        if self.validation is None or batches.is_dataset(given):
            given = labelled.encoded(given, self.rows.classes)
            return {"validation_data": given, "validation_steps": steps}
        if batch_size is None and not batches.is_dataset(self.x):
            batch_size = self.batch_size
        size = gathering.prediction_batch_size(batch_size)
        parts = self.validation.parts()
        whole = gathering.in_one_batch(self.model, parts, size, steps)
        if whole is not None:
            return {"validation_data": whole, "validation_steps": 1}
        data = {"validation_data": parts, "validation_steps": steps}
        return {**data, "validation_batch_size": size}

    def begin(self, trains: bool) -> rehearsal.Snapshot | None:
        """Make the model ready; the values it starts from, if a rehearsal is to come."""
        model, machine = self.model, self.model.machine
        intercept = machine.decide_intercept(self.solved_on)
        model._train_with(intercept, self.rows.classes)
        machine.state.hold(*self.rows.parts())
        if not machine.settings.keep_anchors:
            machine.state.drop_anchors()
        machine.state.trained |= trains
        rehearses = machine.settings.ridge == "auto" and self.validation is None
        return rehearsal.Snapshot(model) if rehearses else None

    def solve_for_validation(self) -> None:
        """Solve an exact head at the ridge of the loss, on not too many rows."""
        some = self.rows.spread(self.model.validation_anchors)
        self.model.machine.solve(
            some,
            choice=ridges.of_loss(self.model.loss),
            solver="auto",
            intercept=self.model._intercept,
            provisional=f"the ridge of the loss, on {len(some)} of {len(self.rows)} rows",
        )

    def calibrate(self) -> None:
        """Fit what makes probabilities, on rows that do not train, if there are some."""
        machine, rows = self.model.machine, self.validation
        report = machine.state.facts["report"]
        if rows is not None and report["calibrated_by"] != VALIDATED:
            parts = _rows.slices(rows.x, gathering.USUAL_BATCH)
            scores = np.concatenate([np.asarray(machine(part)) for part in parts])
            machine.state.recalibrate(Evidence(scores, rows.y, rows.weights, VALIDATED))
        machine.calibrate()

    def solve_for_file(self) -> None:
        """Solve the machine that was asked for, as far as it is known before the end."""
        model, choice, provisional = self.model, None, ""
        if model.machine.settings.ridge == "auto" and self.validation is None:
            choice = ridges.of_loss(model.loss)
            provisional = "the ridge of the loss, since one is chosen at the end"
        model.machine.solve(
            self.solved_on, self.validation, choice, None, model._intercept, provisional
        )

    def end(
        self,
        history: keras.callbacks.History,
        start: rehearsal.Snapshot | None,
        watch: Watch,
        epochs: tuple[int, int],
        shuffle: bool,
    ) -> None:
        """Choose the ridge, where nothing has yet, and solve on all rows.

        Args:
            history: Of the training.
            start: What `begin` returned.
            watch: What saw the training.
            epochs: `initial_epoch` and `epochs` of `fit`.
            shuffle: As in `fit`.
        """
        model, choice = self.model, None
        ran, first = rehearsal.epochs_run(history, *epochs, watch.restored)
        if start is not None and ran:
            choice = rehearsal.rehearse(
                model, self.rows, start, ran, first, self.batch_size, shuffle
            )
        elif not ran:
            choice = model._choice_without_rows(self.validation, stacklevel=5)
        model.machine.solve(self.solved_on, self.validation, choice, None, model._intercept)
