"""Losses of a Gram matrix, for `KAREModel.compile(loss=...)`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import _validation, risk


@keras.saving.register_keras_serializable(package="keras_kare")
class GramLoss(keras.losses.Loss):
    """Base class of losses on `(y_true, gram)` instead of `(y_true, y_pred)`.

    Subclasses define `evaluate`, which also returns the predictions that training
    metrics are computed on.

    Args:
        ridge: Ridge of the kernel machine that the loss is about, `z` in
            `K/n + zI`. A positive number. Defaults to `0.1`.
        relative: Whether `z = ridge * tr(K)/n²`. Defaults to `False`.
        name: Name of the loss.
    """

    def __init__(self, ridge: float = 0.1, relative: bool = False, name: str | None = None):
        _validation.check_ridge("ridge", ridge)
        super().__init__(name=name, reduction="sum")
        self.ridge = ridge
        self.relative = relative

    def evaluate(self, y_true: tf.Tensor, gram: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, a scalar, and predictions of the training rows, `(n, c)`."""
        raise NotImplementedError("A `GramLoss` defines `evaluate(y_true, gram)`.")

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self.evaluate(y_true, y_pred)[0]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        _validation.check_no_weights(sample_weight)
        return super().__call__(y_true, y_pred)

    def absolute_ridge(self, gram: tf.Tensor) -> tf.Tensor:
        """`z` for this Gram matrix."""
        ridge = tf.constant(self.ridge, gram.dtype)
        if not self.relative:
            return ridge
        n = tf.cast(tf.shape(gram)[0], gram.dtype)
        return ridge * tf.linalg.trace(gram) / (n * n)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "ridge": self.ridge, "relative": self.relative}


@keras.saving.register_keras_serializable(package="keras_kare")
class KARE(GramLoss):
    """The kernel alignment risk estimator as a loss of the Gram matrix.

    `KARE(y, K, z) = (1/n) yᵀ(K/n + zI)⁻²y / ((1/n) tr (K/n + zI)⁻¹)²`: an estimate of
    the test mean squared error, in the units of `y²`. See `keras_kare.risk.kare`.

    Args:
        ridge: The ridge `z`, a positive number. Defaults to `0.1`, as in the paper.
        relative: Whether `z = ridge * tr(K)/n²`, so that the loss does not depend on
            the scale of the kernel. Defaults to `False`.
        name: Name of the loss. Defaults to `"kare"`.

    Raises:
        ValueError: If `ridge` is not a positive finite number. When called: if
            `sample_weight` is given, or as `keras_kare.risk.kare`.

    Example:

    ```python
    loss = kk.losses.KARE(ridge=0.1)
    loss(y, kk.kernels.NTK(network).gram(x))  # a scalar

    model = kk.KAREModel(network)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss)
    ```

    References:
        - Schwab et al., arXiv:2505.11347.
    """

    def __init__(self, ridge: float = 0.1, relative: bool = False, name: str = "kare"):
        super().__init__(ridge=ridge, relative=relative, name=name)

    def evaluate(self, y_true: tf.Tensor, gram: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y, gram, z = risk.checked(y_true, gram, self.absolute_ridge(gram))
        solved = risk.regress(y, gram, z)
        loss = risk.kare_of(y, gram, z, solved)
        return loss, risk.leave_one_out_of(y, gram, z, solved)


def get(identifier: Any) -> GramLoss:
    """Resolve a loss of a Gram matrix from its name, configuration or instance.

    Raises:
        ValueError: If it is no loss of a Gram matrix; Keras losses compare targets
            with predictions, and would broadcast over a Gram matrix in silence.
    """
    if isinstance(identifier, GramLoss):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, GramLoss):
        return identifier()
    if isinstance(identifier, str) and identifier.lower() == "kare":
        return KARE()
    if isinstance(identifier, dict):
        loss = keras.saving.deserialize_keras_object(identifier)
        if isinstance(loss, GramLoss):
            return loss
    raise ValueError(
        '`loss` must be a loss of a Gram matrix: "kare", `kk.losses.KARE(...)`, or a '
        "subclass of `kk.losses.GramLoss`. Keras losses compare targets with "
        f"predictions and do not apply to a kernel. Received: loss={identifier!r}"
    )
