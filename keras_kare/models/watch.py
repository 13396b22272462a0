"""What other callbacks do to the weights while Keras trains, validates or predicts."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_kare._progress import Waiting


class Watch(keras.callbacks.Callback):
    """Follows the callbacks of the user, as the last of their list.

    `BackupAndRestore` puts weights back when training begins; `SwapEMAWeights` puts
    averaged ones in for the time of a validation or prediction, and the machine has to
    be solved for those.

    Args:
        model: The model, before callbacks have touched it.
        first: `initial_epoch` of `fit`.
        waiting: What ends with the first step.

    Attributes:
        restored: Whether a backup was put back when this training began.
    """

    def __init__(self, model: Any, first: int = 0, waiting: Waiting | None = None) -> None:
        super().__init__()
        self._waiting = waiting
        self.restored = False
        self._first = first
        self._steps = steps_taken(model)
        self._told = False

    def on_train_begin(self, logs: Any = None) -> None:
        self.restored = steps_taken(self.model) != self._steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self.restored or self._told:
            return
        self._told = True
        steps, optimizer = self.params["steps"], self.model.optimizer
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if steps is None or scaled or optimizer.gradient_accumulation_steps:
            return  # updates are not one a batch, or batches not known
        taken = steps_taken(self.model) - self._steps
        if taken != (epoch - self._first) * steps:
            warnings.warn(
                f"The restored backup has weights of step {taken}, and says that epoch "
                f"{epoch} comes next, which begins after {(epoch - self._first) * steps}: "
                "training will not end as if it had not been interrupted. Use "
                '`save_freq="epoch"`, the default; if you did, the interruption fell '
                "between the two files of the backup.",
                stacklevel=2,
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._waiting is not None:
            self._waiting.end()

    def on_test_begin(self, logs: Any = None) -> None:
        self.model._follow_callbacks()

    def on_predict_begin(self, logs: Any = None) -> None:
        self.model._follow_callbacks()


def watched(callbacks: Any, watch: Watch) -> Any:
    """Return the callbacks with a `Watch` behind them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks  # of a `fit` that validates: watched already
    return [*keras.tree.flatten(callbacks or []), watch]


def keeps_best(callbacks: Any) -> bool:
    """Tell whether `EarlyStopping` ends with the weights that validation finds best."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return any(
        isinstance(callback, keras.callbacks.EarlyStopping)
        and callback.restore_best_weights
        and callback.monitor.startswith("val_")
        for callback in keras.tree.flatten(callbacks or [])
    )


def steps_taken(model: Any) -> int:
    """Updates that the optimizer of a model has made."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(optimizer.iterations)
