"""Kernels of fully connected networks of infinite width."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic.closed_form import ClosedForm
from keras_kare.kernels.classic.expectations import EXPECTATIONS, apart_of, dense, root

KINDS = ("ntk", "nngp")


@keras.saving.register_keras_serializable(package="keras_kare")
class InfiniteWidth(ClosedForm):
    """The NTK, or the covariance, of a fully connected network as its width grows.

    A layer of width `m` computes `σ_w W h / √m + σ_b b`, with `W` and `b` drawn from
    `N(0, 1)`. Between rows of `d` numbers, `K_0 = σ_w² xᵀx'/d + σ_b²` and `Θ_0 = K_0`. With
    Gaussians `u`, `v` that have the covariance `K_(l−1)` of the two rows, a hidden layer
    has `K_l = σ_w² E[φ(u) φ(v)] + σ_b²` and `Θ_l = K_l + σ_w² Θ_(l−1) E[φ'(u) φ'(v)]`.

    Args:
        depth: Number of hidden layers, at least 1; one layer more gives the output.
        activation: `φ`: `"relu"`, `"erf"`, or `"gelu"` (exact, without `tanh`). All three
            expectations are closed forms. Defaults to `"relu"`.
        kind: `"ntk"` for `Θ`: training all layers by gradient flow; `"nngp"` for `K`:
            training the last layer only. Defaults to `"ntk"`.
        weight_std: `σ_w`, a positive number; `2 ** 0.5` keeps the sizes of rows from layer
            to layer for ReLU. Trains, as its logarithm. Defaults to `1.0`.
        bias_std: `σ_b`, at least 0. Trains, but not from 0, where its derivative is 0.
            Defaults to `0.0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Attributes:
        log_weight_std: The variable `log(σ_w)`, one for all layers.
        bias_std: The variable `σ_b`, one for all layers.

    These are the kernels of neural-tangents' `stax.serial` of `Dense` and activation in
    turn, with a last `Dense`, in its default (NTK) parameterization. The derivative by the
    entries of a row of zeros counts as 0.

    Raises:
        ValueError: If one is out of range.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    kernel = kk.kernels.InfiniteWidth(depth=3, weight_std=2**0.5, bias_std=0.1)
    gram = kernel.gram(x)  # (100, 100)
    ```

    References:
        - Jacot, Gabriel, Hongler, "Neural tangent kernel", arXiv:1806.07572, theorem 1.
        - Lee et al., "Deep neural networks as Gaussian processes", arXiv:1711.00165.
        - Cho, Saul, "Kernel methods for deep learning", NeurIPS 2009: ReLU.
        - Williams, "Computing with infinite networks", NeurIPS 1997: erf.
        - Tsuchida et al., "Avoiding kernel fixed points", arXiv:2002.08517: GELU.
    """

    _arrays = 20

    def __init__(
        self,
        depth: int,
        activation: str = "relu",
        kind: str = "ntk",
        weight_std: float = 1.0,
        bias_std: float = 0.0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_whole("depth", depth, 1)
        _validation.check_option("activation", activation, tuple(EXPECTATIONS))
        _validation.check_option("kind", kind, KINDS)
        _validation.check_positive("weight_std", weight_std)
        _validation.check_at_least_zero("bias_std", bias_std)
        super().__init__(memory_limit, name, **kwargs)
        self.depth, self.activation, self.kind = int(depth), activation, kind
        self._starts = {"weight_std": float(weight_std), "bias_std": float(bias_std)}
        self.log_weight_std: Any = None
        self.bias_std: Any = None

    def _make_variables(self, columns: int) -> None:
        starts = {
            "log_weight_std": np.log(self._starts["weight_std"]),
            "bias_std": np.float64(self._starts["bias_std"]),  # Keras rounds a `float`
        }
        for name, start in starts.items():
            initializer = keras.initializers.Constant(start)
            setattr(
                self, name, self.add_weight(shape=(), initializer=initializer, name=name)
            )

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        left, right = self._sizes(a), self._sizes(a if b is None else b)
        values = self._recursion(left[:, None], right[None], apart_of(a, b))
        return tf.linalg.set_diag(values, self._diagonal(a)) if b is None else values

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        sizes = self._sizes(a)
        return self._recursion(sizes, sizes, tf.zeros_like(sizes))

    def _sizes(self, a: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(a * a, axis=1)

    def _recursion(self, left: tf.Tensor, right: tf.Tensor, apart: tf.Tensor) -> tf.Tensor:
        """Return kernel values of rows.

        Args:
            left: `‖x‖²/d` of rows; with `right`, it broadcasts to the values.
            right: `‖x'‖²/d` of rows.
            apart: One minus the cosine of their angles.
        """
        weight = tf.exp(2.0 * tf.cast(self.log_weight_std, left.dtype))
        bias = tf.square(tf.cast(self.bias_std, left.dtype))
        expectation = EXPECTATIONS[self.activation]
        left, right, apart = dense(left, right, apart, weight, bias)
        kernel = tangent = root(left) * root(right) * (1.0 - apart)
        for _ in range(self.depth):
            values, slopes, after = expectation(left, right, apart)
            left, right = (expectation(s, s, tf.zeros_like(s))[0] for s in (left, right))
            left, right, apart = dense(left, right, after, weight, bias)
            kernel = weight * values + bias
            tangent = kernel + weight * tangent * slopes
        return tangent if self.kind == "ntk" else kernel

    def get_config(self) -> dict[str, Any]:
        own = {"depth": self.depth, "activation": self.activation, "kind": self.kind}
        return {**super().get_config(), **own, **self._starts}
