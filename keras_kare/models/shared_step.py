"""A training step that networks of one architecture share.

Tracing a step, and TensorFlow's work on its graph, take longer than many steps. The loss
and its gradients are a function of weights and rows alone: traced once a process, it
serves every model of the same architecture and loss. What is left to a model is a small
graph of its own, for its optimizer and metrics.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import losses

_DECIDING = ("train_step", "_differentiated")
"""Methods of a model that must be ours where its steps are shared."""


def shares_steps(model: Any, ours: type) -> bool:
    """Tell whether a model's steps may be shared, go one at a time, and in graphs."""
    default = not tf.distribute.has_strategy() and tf.distribute.get_strategy()
    return (
        model.kernel.shares
        and not model.run_eagerly
        and not model.input_noise  # drawn in the model's own step
        and not getattr(model.loss, "supplies_gradients", False)
        and model.steps_per_execution == 1
        and model.distribute_strategy is default
        and all(
            getattr(type(model), name) is getattr(ours, name) and name not in vars(model)
            for name in _DECIDING
        )
    )


def step_key(model: Any) -> str | None:
    """Return what decides a model's step besides its network; `None` if not known."""
    loss, optimizer, trained = model.loss, model.optimizer, model.trainable_variables
    known = (
        type(loss) in losses.OWN.values()
        and "evaluate" not in vars(loss)
        and type(optimizer).scale_loss is keras.optimizers.Optimizer.scale_loss
        and optimizer.loss_scale_factor is None
        and _ids(trained) == _ids(model.kernel.network.trainable_variables)
        and all(getattr(v, "regularizer", None) is None for v in trained)
    )
    if not known:
        return None
    settings = sorted((k, v) for k, v in loss.get_config().items() if k != "name")
    return f"{type(loss).__name__} {settings!r} intercept={model._has_constant}"


class SharedStep:
    """A train function, as `keras.Model.make_train_function` makes one.

    Args:
        model: A model that `shares_steps`.
    """

    def __init__(self, model: Any):
        self._model = model
        self._begin()

    def _begin(self) -> None:
        self._trained = _ids(self._model.trainable_variables)
        self._shared: dict[Any, Any] = {}
        self._update = _traced(self._model._updated)
        self._whole = _traced(self._model.train_step)

    def is_current(self) -> bool:
        """Tell whether the same variables train as when this began."""
        return self._trained == _ids(self._model.trainable_variables)

    def __call__(self, iterator: Any) -> Any:
        data = _tensors(next(iterator))
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        given = (y,) if weights is None else (y, weights)
        function = self._function(_knows_rows(iterator), x, *given)
        if function is None:
            return self._whole(data)
        return self._update(x, y, weights, *function(x, *given))

    def _function(self, fixed: bool, *given: Any) -> Any:
        """Return the shared function of such rows; `None` where there can be none."""
        parts = keras.tree.flatten(given)
        shapes = tuple((tuple(t.shape), t.dtype) for t in parts)
        if shapes not in self._shared:
            if not self.is_current():  # a callback has frozen a layer
                self._begin()
            key, model = step_key(self._model), self._model
            self._shared[shapes] = key and model.kernel.shared(
                model._differentiated, key, fixed, *given
            )
        return self._shared[shapes]


def _traced(function: Any) -> Any:
    traced = tf.function(function, autograph=False, reduce_retracing=True)
    traced._omit_frequent_tracing_warning = True  # each model has its own
    return traced


def _ids(variables: Any) -> list[int]:
    return [id(v) for v in variables]


def _knows_rows(iterator: Any) -> bool:
    """Tell whether all batches have one number of rows."""
    specs = keras.tree.flatten(getattr(iterator, "element_spec", None))
    return all(
        isinstance(spec, tf.TensorSpec) and spec.shape[:1].is_fully_defined()
        for spec in specs
    )


def _tensors(data: Any) -> Any:
    return keras.tree.map_structure(
        lambda part: None if part is None else tf.convert_to_tensor(part), data
    )
