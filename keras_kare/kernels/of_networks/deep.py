"""Deep kernels: another kernel of what a network computes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.combined.combination import check_kernel
from keras_kare.kernels.identity import digest
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.of_networks.of_network import OfNetwork


@keras.saving.register_keras_serializable(package="keras_kare")
class Deep(OfNetwork):
    """`K(x, x') = k(f(x), f(x'))` of a network `f` and a base kernel `k`; both train.

    Args:
        network: A `keras.Model`; its outputs, `(n, c)`, are the rows of the base kernel.
        base: A kernel of rows of numbers. Its `scale="median"` is that of the outputs at
            first.
        name: Name of the layer.

    Raises:
        TypeError: If `network` is no `keras.Model`, or `base` no kernel.

    Example:

    ```python
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(64, "gelu"), keras.layers.Dense(2)]
    )
    kernel = kk.kernels.Deep(network, kk.kernels.Gaussian())
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kernel.gram(x)  # (100, 100)
    ```

    References:
        - Wilson, Hu, Salakhutdinov, Xing, "Deep kernel learning", arXiv:1511.02222.
    """

    _names_of_parts = ("network", "base")

    def __init__(
        self, network: keras.Model, base: Kernel, name: str | None = None, **kwargs: Any
    ):
        check_kernel(base)
        super().__init__(network, name, **kwargs)
        self.base, self.has_features = base, base.has_features

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if not self.base.built and isinstance(self.network.output_shape, tuple):
            self.base.build(self.network.output_shape)

    def check(self, x: Any, rows: int | None = None) -> None:
        super().check(x, rows)
        self.base.check(self._hidden("x", x, None), rows)

    def gram(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self.base.gram(self._hidden("x", x, dtype), dtype)

    def cross(self, x1: Any, x2: Any, dtype: str | None = None) -> tf.Tensor:
        left, right = self._hidden("x1", x1, dtype), self._hidden("x2", x2, dtype)
        return self.base.cross(left, right, dtype)

    def diag(self, x: Any, dtype: str | None = None) -> tf.Tensor:
        return self.base.diag(self._hidden("x", x, dtype), dtype)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        return self.base.vjp(self._hidden("x", x, dtype), v, dtype)

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        return self.base.jvp(self._hidden("x", x, None), w)

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        return self.base.prediction_cost(anchors, targets)  # the network runs in each form

    def architecture(self) -> str:
        return digest(super().architecture(), self.base.architecture())

    def adapt(self, x: Any) -> None:
        """Find from outputs of rows what depends on them; see `ClosedForm.adapt`."""
        self.base.adapt(self._hidden("x", x, None))
