"""The conjugate kernel: that of a network's last hidden units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.of_networks.of_network import OfNetwork


@keras.saving.register_keras_serializable(package="keras_kare")
class Conjugate(OfNetwork):
    """`K(x, x') = φ(x)ᵀ φ(x') / F`: of the `F` numbers that the last layer is given.

    The NTK with all but the last layer frozen, without its bias, divided by the width; of
    wide random networks it comes near the NNGP kernel. Its feature map is finite, so that
    heads have a primal form.

    Args:
        network: A sequential or functional `keras.Model`. Of the last layer that has
            weights, the input is taken: of its last call, and within nested models.
        name: Name of the layer.

    Raises:
        TypeError: If `network` is no `keras.Model`.
        ValueError: If nobody can tell its last layer, as of a subclassed one, of several
            that are added or put side by side, or of a normalization at the end.

    Example:

    ```python
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(64, "gelu"), keras.layers.Dense(1)]
    )
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.Conjugate(network).gram(x)  # (100, 100)
    ```

    References:
        - Daniely, Frostig, Singer, "Toward deeper understanding of neural networks",
          arXiv:1602.05897.
        - Fan, Wang, "Spectra of the conjugate kernel and neural tangent kernel for
          linear-width neural networks", arXiv:2005.11879.
    """

    has_features = True

    def __init__(self, network: keras.Model, name: str | None = None, **kwargs: Any):
        super().__init__(network, name, **kwargs)
        self._hidden_part: Callable[[], Any] | None = None  # Keras tracks models

    def _part(self) -> Any:
        if self._hidden_part is None:
            made = _without_last(self.network)
            self._hidden_part = lambda: made
        return self._hidden_part()

    def is_constant(self, x: Any) -> bool:
        return not self._part().trainable_variables

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        phi = self._features("x", x, dtype)
        return tf.matmul(phi, phi, transpose_b=True)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        left, right = self._features("x1", x1, dtype), self._features("x2", x2, dtype)
        return tf.matmul(left, right, transpose_b=True)

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return tf.reduce_sum(tf.square(self._features("x", x, dtype)), axis=1)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        phi = self._features("x", x, dtype)
        return [tf.matmul(tf.cast(v, phi.dtype), phi, transpose_a=True)]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        phi = self._features("x", x, w[0].dtype)
        return tf.matmul(phi, tf.convert_to_tensor(w[0]), transpose_b=True)

    def _features(self, name: str, x: Any, dtype: str | None) -> tf.Tensor:
        phi = self._hidden(name, x, dtype)
        return phi / tf.sqrt(tf.cast(tf.shape(phi)[1], phi.dtype))


class _Chain:
    """One model after the other, called as a model, of which neither's layers know.

    Args:
        first: It has a list of outputs.
        then: It takes them.
    """

    def __init__(self, first: keras.Model, then: Any):
        self.first, self.then = first, then

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Those of both."""
        return [*self.first.trainable_variables, *self.then.trainable_variables]

    def __call__(self, x: Any, training: bool = False) -> Any:
        found = keras.tree.flatten(self.first(x, training=training))
        return self.then(found if len(found) > 1 else found[0], training=training)


def _without_last(network: keras.Model) -> Any:
    """Return the model whose outputs are the inputs of a network's last layer."""
    outputs = network.outputs if _is_known(network) and network.inputs else None
    if not outputs or not any(layer.weights for layer in network.layers):
        raise _refused(
            network,
            f"type {type(network).__name__}, not built, or without weights",
        )
    if len(outputs) != 1:
        raise _refused(network, f"network with {len(outputs)} outputs")
    return _up_to_last(network, outputs[0])


def _up_to_last(network: keras.Model, tensor: Any) -> Any:
    """Return the model that ends where the last layer before a tensor begins.

    Args:
        network: Sequential or functional.
        tensor: One of its results.
    """
    while True:
        operation, node, index = tensor._keras_history
        inputs = operation._inbound_nodes[node].input_tensors
        if isinstance(operation, keras.Model) and operation.weights:
            if not _is_known(operation) or len(inputs) != len(operation.inputs):
                raise _refused(network, f"an end in {_named(operation)}")
            before = keras.Model(network.inputs, list(inputs))
            return _Chain(before, _up_to_last(operation, operation.outputs[index]))
        if isinstance(operation, _OF_EACH_UNIT):
            raise _refused(
                network,
                f"an end in {_named(operation)}, which has weights but no hidden units of "
                "its own: leave it out, or put it before the last layer",
            )
        if len(inputs) != 1:
            raise _refused(
                network, f"an end in {_named(operation)}, of {len(inputs)} tensors"
            )
        (tensor,) = inputs
        fixed = isinstance(operation, keras.layers.Normalization)  # such as of targets
        if getattr(operation, "weights", None) and not fixed:
            return keras.Model(network.inputs, tensor)


_OF_EACH_UNIT = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "PReLU",
        "RMSNormalization",
    )
    if hasattr(keras.layers, name)
)
"""Layers of Keras that have weights for each unit, and mix none."""


def _is_known(network: keras.Model) -> bool:
    return isinstance(network, keras.Sequential) or hasattr(network, "_inputs_struct")


def _named(operation: Any) -> str:
    return f"the {type(operation).__name__} {operation.name!r}"


def _refused(network: keras.Model, received: str) -> ValueError:
    return ValueError(
        "`network` must be sequential or functional, and built, with one last layer of "
        "weights of one input: its hidden units are taken. "
        f"Received: {network.name!r}, {received}"
    )
