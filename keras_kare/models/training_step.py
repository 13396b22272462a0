"""What is Keras' in a training step: regularisers, refusals, counts of rows."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import _rows
from keras_kare._sentences import sentence
from keras_kare.kernels.structured.capture import run
from keras_kare.kernels.structured.untouched import untouched

ONE_ROW = sentence(
    "`x` yields a batch of one row, which has no KARE. Use `drop_remainder=True`, or "
    "another batch size. (The model has been trained on the batches before it; `fit_head` "
    "takes batches of any size.)"
)

NOT_FINITE = sentence(
    "The gradient of the loss by the weight `{path}` is not finite at the present weights "
    "and inputs; no weight has been changed by this step. Scale inputs and targets to "
    "about one, take a larger ridge in the loss, use "
    '`keras.config.set_floatx("float64")`, or, if training went well before this step, a '
    "smaller learning rate. The gradient"
)


def several_rows(x: Any, y: Any) -> Any:
    """Return the targets, for graphs that see the number of rows only when it comes.

    Raises:
        tf.errors.InvalidArgumentError: If there is one row, when the graph runs.
    """
    if _rows.known_count(x) is not None:
        return y
    several = tf.debugging.assert_greater(tf.shape(y)[0], 1, ONE_ROW)
    with tf.control_dependencies([] if several is None else [several]):
        return tf.identity(y)


def noisy(x: Any, noise: float, step: Any) -> Any:
    """Return rows with Gaussian noise on their numbers, another at each step.

    Args:
        x: Rows, or several arrays of them; what is not floating stays as it is.
        noise: Its standard deviation, in units of that of each column of these rows.
        step: Number of the step, which seeds the noise.

    Raises:
        ValueError: If nothing is floating.
    """
    parts = keras.tree.flatten(x)
    floating = [tf.as_dtype(part.dtype).is_floating for part in parts]
    if not any(floating):
        raise ValueError(
            "`input_noise` needs rows of floating numbers. Put noise on what the first "
            f"layers return, or set `input_noise=0.0`. Received: input_noise={noise!r} and "
            f"rows of type {', '.join(tf.as_dtype(part.dtype).name for part in parts)}"
        )
    step = tf.cast(step, tf.int32)
    return keras.tree.pack_sequence_as(
        x,
        [
            part + noise_like(part, noise, tf.stack([number, step])) if adds else part
            for number, (part, adds) in enumerate(zip(parts, floating, strict=True))
        ],
    )


def noise_like(part: Any, noise: float, seed: tf.Tensor) -> tf.Tensor:
    """Draw Gaussian noise of `noise` standard deviations of each column, from a seed."""
    spread = noise * tf.math.reduce_std(part, axis=0)
    return spread * tf.random.stateless_normal(tf.shape(part), seed, dtype=part.dtype)


def network_losses(model: Any, x: Any, noted: list[Any]) -> list[tf.Tensor]:
    """Return what layers have noted, as of activities, and regularisers of weights."""
    if tf.executing_eagerly():
        # The kernel's functions note nothing when they run again.
        few = _rows.take(x, slice(2))
        noted = noted_of(model.kernel, x) if noted_of(model.kernel, few) else []
    graph = tf.compat.v1.get_default_graph()
    if any(getattr(extra, "graph", graph) is not graph for extra in noted):
        # In tiles, and by losses that form no Gram matrix, rows are seen elsewhere.
        noted = noted_of(model.kernel, x)
    extras = [tf.convert_to_tensor(extra) for extra in noted]
    for variable in model.trainable_variables:
        if (regularizer := getattr(variable, "regularizer", None)) is not None:
            extras.append(tf.convert_to_tensor(regularizer(variable)))
    return extras


def noted_of(kernel: Any, x: Any) -> list[Any]:
    """Return what the network's layers note for rows; nothing where there is no network."""
    network = getattr(kernel, "network", None)
    if network is None:
        return []
    with untouched(network) as scope:
        run(network, x)
    return list(scope.losses)


def checks(optimizer: Any, gradients: Any, variables: Any) -> list[Any]:
    """Return checks to run before an update, which would lose all weights.

    Scaled losses are meant to overflow at times: their optimizer leaves out the step.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return []
    return [
        tf.debugging.check_numerics(gradient, NOT_FINITE.format(path=variable.path))
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def count(y: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Return how often the rows count together."""
    if weights is None:
        return tf.cast(tf.shape(y)[0], y.dtype)
    return tf.reduce_sum(tf.cast(weights, y.dtype))
