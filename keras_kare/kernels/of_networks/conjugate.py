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
        network: A sequential or functional `keras.Model`. Of its last layer that has
            weights, the input is taken.
        name: Name of the layer.

    Raises:
        TypeError: If `network` is no `keras.Model`.
        ValueError: If nobody can tell its last layer, as of a subclassed one.

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
        self._hidden_part: Callable[[], keras.Model] | None = None  # Keras tracks models

    def _part(self) -> keras.Model:
        if self._hidden_part is None:
            made = _without_last(self.network)
            self._hidden_part = lambda: made
        return self._hidden_part()

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


def _without_last(network: keras.Model) -> keras.Model:
    """Return the model whose outputs are the inputs of a network's last layer."""
    known = isinstance(network, keras.Sequential) or hasattr(network, "_inputs_struct")
    layers = [layer for layer in network.layers if layer.weights] if known else []
    inputs = layers[-1].input if layers and network.inputs else None
    if not isinstance(inputs, keras.KerasTensor):
        raise ValueError(
            "`network` must be sequential or functional, and built, with a last layer of "
            "one input: its hidden units are taken. Received: network of type "
            f"{type(network).__name__}"
        )
    return keras.Model(network.inputs, inputs)
