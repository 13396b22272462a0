"""What losses of a Gram matrix have in common."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare._sentences import sentence
from keras_kare.kernels.kernel import Kernel

_NO_UNIT = sentence(
    "Kernel values of rows with themselves must be finite, and not all zero, for a ridge "
    "that is relative to them. Scale `x`, or the weights of the network, to about one. "
    "Received: trace(K)/n**2="
)


@keras.saving.register_keras_serializable(package="keras_kare")
class GramLoss(keras.losses.Loss):
    """The base class of losses on `(y_true, gram)` instead of `(y_true, y_pred)`.

    Subclasses define `evaluate`, which also returns the predictions that training
    metrics are computed on. One that takes weights of rows, too, has a third argument,
    `sample_weight`; one for machines with an intercept (see `NTKRidgeHead`) an argument
    `intercept`.

    Args:
        ridge: Ridge of the kernel machine that the loss is about, `z` in
            `K/n + zI`. A positive number. Defaults to `0.1`.
        relative: Whether `z = ridge * tr(K)/n²`. Defaults to `False`.
        name: Name of the loss.

    Attributes:
        supplies_gradients: Whether training takes `value_and_gradients`, and forms no
            Gram matrix.
    """

    supplies_gradients: bool = False

    def __init__(self, ridge: float = 0.1, relative: bool = False, name: str | None = None):
        _validation.check_positive("ridge", ridge)
        super().__init__(name=name, reduction="sum")
        self.ridge = ridge
        self.relative = relative

    def evaluate(
        self,
        y_true: tf.Tensor,
        gram: tf.Tensor,
        sample_weight: Any = None,
        intercept: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss, a scalar, and predictions of the training rows, `(n, c)`.

        Args:
            y_true: Targets, `(n, c)`.
            gram: The Gram matrix, `(n, n)`.
            sample_weight: How often each row counts, `(n,)`; passed only if given.
            intercept: Whether the machine has a constant; passed only where it has.
        """
        raise NotImplementedError("A `GramLoss` defines `evaluate(y_true, gram)`.")

    def value_and_gradients(
        self,
        kernel: Kernel,
        x: Any,
        y_true: Any,
        step: int,
        sample_weight: Any = None,
        intercept: bool = False,
    ) -> tuple[float, list[tf.Tensor], np.ndarray]:
        """Return the loss of a batch, its gradients, and predictions of its rows.

        For losses with `supplies_gradients = True`; called outside of graphs.

        Args:
            kernel: The kernel.
            x: Rows, `(n, ...)`.
            y_true: Targets, `(n, c)`.
            step: Number of the training step.
            sample_weight, intercept: Those of `evaluate`.

        Returns:
            The loss; one array a trainable variable of the kernel; `(n, c)`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a Gram matrix.")

    def check_intercept(self) -> None:
        """Refuse an intercept that the loss knows nothing of.

        Raises:
            ValueError: If the method that training takes has no argument `intercept`.
        """
        name = "value_and_gradients" if self.supplies_gradients else "evaluate"
        taken = inspect.signature(getattr(self, name)).parameters
        if "intercept" not in taken:
            raise ValueError(
                "The targets get an intercept (see `intercept` of `NTKRidgeHead`), and the "
                f"loss knows none: give its `{name}` an argument `intercept=False`, take "
                "`NTKRidgeHead(intercept=False)`, or subtract the mean of `y`. Received: "
                f"loss of type {type(self).__name__}, whose `{name}` takes "
                + ", ".join(taken)
            )

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self.evaluate(y_true, y_pred)[0]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        if sample_weight is None:
            return super().__call__(y_true, y_pred)
        y_true, y_pred = (tf.cast(t, self.dtype) for t in (y_true, y_pred))
        return self.evaluate(y_true, y_pred, sample_weight)[0]

    def absolute_ridge(self, gram: tf.Tensor, sample_weight: Any = None) -> tf.Tensor:
        """Return `z`: where relative, the ridge in units of `Σ w_i K_ii/(Σ w)²`."""
        ridge = tf.constant(self.ridge, gram.dtype)
        if not self.relative:
            return ridge
        diagonal = tf.linalg.diag_part(gram)
        weights = tf.ones_like(diagonal) if sample_weight is None else sample_weight
        weights = tf.reshape(tf.cast(weights, gram.dtype), (-1,))
        unit = tf.reduce_sum(weights * diagonal) / tf.reduce_sum(weights) ** 2
        sound = tf.math.is_finite(unit) & (unit > 0.0)
        if not tf.executing_eagerly():
            asserted = tf.debugging.Assert(sound, [_NO_UNIT, tf.strings.as_string(unit)])
            with tf.control_dependencies([asserted]):
                return ridge * unit
        if not sound:
            raise ValueError(f"{_NO_UNIT} {float(unit):g}")
        return ridge * unit

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "ridge": self.ridge, "relative": self.relative}
