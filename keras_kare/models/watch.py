"""What other callbacks do to the weights while Keras trains, validates or predicts."""

from __future__ import annotations

from typing import Any

import keras


class Watch(keras.callbacks.Callback):
    """Follows the callbacks of the user, as the last of their list.

    `BackupAndRestore` puts weights back when training begins; `SwapEMAWeights` puts
    averaged ones in for the time of a validation or prediction, and the machine has to
    be solved for those.

    Attributes:
        restored: Whether a backup was put back when this training began.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.restored = False
        self._steps = steps_taken(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self.restored = steps_taken(self.model) != self._steps

    def on_test_begin(self, logs: Any = None) -> None:
        self.model._solve_if_stale()

    def on_predict_begin(self, logs: Any = None) -> None:
        self.model._solve_if_stale()


def watched(callbacks: Any, watch: Watch) -> Any:
    """The callbacks with a `Watch` behind them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks  # of a `fit` that validates: watched already
    return [*keras.tree.flatten(callbacks or []), watch]


def steps_taken(model: Any) -> int:
    """Updates that the optimizer of a model has made."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(optimizer.iterations)
