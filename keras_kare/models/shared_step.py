"""A training step that networks of one architecture share.

Tracing a step, and TensorFlow's work on its graph, take longer than many steps. The loss
and its gradients are a function of weights and rows alone: traced once a process, it
serves every model of the same architecture and loss. What is left to a model is a small
graph of its own, for its optimizer and metrics.
"""

from __future__ import annotations

import json
from typing import Any

import keras
import tensorflow as tf

from keras_kare import losses


def loss_key(model: Any) -> str | None:
    """What decides a model's loss besides its network; `None` where it is not known."""
    loss, optimizer = model.loss, model.optimizer
    if type(loss).__module__ != losses.__name__ or loss.supplies_gradients:
        return None
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scaled or optimizer.loss_scale_factor is not None:
        return None
    if any(getattr(v, "regularizer", None) is not None for v in model.trainable_variables):
        return None
    settings = {k: v for k, v in loss.get_config().items() if k != "name"}
    intercept = model._intercept is not None and model._intercept.intercept
    return f"{type(loss).__name__} {json.dumps(settings)} intercept={intercept}"


class SharedStep:
    """A train function, as `keras.Model.make_train_function` makes one.

    Args:
        model: The model; its kernel must have `differentiated`.
        key: That of its loss.
    """

    def __init__(self, model: Any, key: str):
        self._model, self._key = model, key
        self._shared: dict[Any, Any] = {}
        self._update = tf.function(model._updated, autograph=False, reduce_retracing=True)
        self._whole = tf.function(model.train_step, autograph=False, reduce_retracing=True)

    def __call__(self, iterator: Any) -> Any:
        data = _tensors(next(iterator))
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        given = (y,) if weights is None else (y, weights)
        fixed = _knows_rows(iterator)
        function = self._function(fixed, x, *given)
        if function is None:
            return self._whole(data)
        return self._update(x, y, weights, *function(x, *given))

    def _function(self, fixed: bool, *given: Any) -> Any:
        """That for such rows; `None` where they are not for a shared function."""
        parts = keras.tree.flatten(given)
        shapes = tuple((tuple(t.shape), t.dtype) for t in parts)
        if shapes not in self._shared:
            model = self._model
            self._shared[shapes] = model.kernel.shared(
                model._differentiated, self._key, fixed, *given
            )
        return self._shared[shapes]


def _knows_rows(iterator: Any) -> bool:
    """Whether all batches have one number of rows."""
    specs = keras.tree.flatten(getattr(iterator, "element_spec", None))
    return all(
        isinstance(s, tf.TensorSpec) and s.shape[:1].is_fully_defined() for s in specs
    )


def _tensors(data: Any) -> Any:
    return keras.tree.map_structure(
        lambda part: None if part is None else tf.convert_to_tensor(part), data
    )
