"""The plain definition of the NTK: `GradientTape.jacobian`, then `J Jᵀ`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.factors import FullFactor


def outputs_of(network: keras.Model, x: Any) -> tf.Tensor:
    """Return the network's outputs without training behaviour, flattened to `(n, c)`.

    Raises:
        ValueError: If the network returns several tensors, or outputs whose number
            is not known from its shapes.
    """
    f = network(x, training=False)
    if not tf.is_tensor(f):
        raise ValueError(
            "`network` must return one tensor; an NTK needs one vector of outputs a "
            "row. Concatenate the outputs, or pass a model of one of them. "
            f"Received: outputs of type {type(f).__name__}"
        )
    count = f.shape[1:].num_elements()
    if not count:
        raise ValueError(
            "`network` must return a fixed, positive number of outputs a row. "
            f"Received: outputs of shape {tuple(f.shape)}"
        )
    return tf.reshape(f, (-1, count)) if f.shape.rank != 2 else f


class Targets:
    """The tensors that a tape is to differentiate, in the types of what it is asked by.

    Made inside of the tape. TensorFlow's loop over targets, one after another, wants
    sources of their type.

    Args:
        values: The targets.
        sources: What they will be differentiated by.
    """

    def __init__(self, values: tf.Tensor, sources: Iterable[Any]):
        self.values = values
        kinds = {tf.as_dtype(source.dtype) for source in sources}
        self._cast = {kind: tf.cast(values, kind) for kind in kinds}

    def like(self, source: Any) -> tf.Tensor:
        """Return the targets in the type of a source."""
        return self._cast[tf.as_dtype(source.dtype)]


def jacobians(
    tape: tf.GradientTape,
    targets: Targets,
    sources: list[Any],
    vectorize: bool,
    none: bool = False,
) -> list[Any]:
    """Return `∂targets/∂source` for each source; zero, or `None`, where unconnected.

    All targets at once (`pfor`) if `vectorize`, and where TensorFlow can: it cannot for
    a bias on an inner axis of `EinsumDense`, for one. Else one after another.
    """
    unconnected = tf.UnconnectedGradients.NONE if none else tf.UnconnectedGradients.ZERO

    if vectorize:
        try:
            return tape.jacobian(targets.values, sources, unconnected_gradients=unconnected)
        except TypeError:  # zeros of lists of tensors, which loops keep
            pass
        except ValueError as error:
            if "vectorizing the jacobian" not in str(error):
                raise
    return [
        tape.jacobian(
            targets.like(source),
            source,
            unconnected_gradients=unconnected,
            experimental_use_pfor=False,
        )
        for source in sources
    ]


def jacobian_factor(
    tape: tf.GradientTape,
    targets: Targets,
    variable: keras.Variable,
    dtype: tf.DType,
    vectorize: bool = True,
) -> FullFactor:
    """Write out the gradients of `targets`, `(n, C)`, with respect to one variable."""
    (j,) = jacobians(tape, targets, [variable.value], vectorize)
    j = tf.reshape(j, (-1, targets.values.shape[1], math.prod(variable.shape)))
    return FullFactor(tf.cast(j, dtype))
