"""The error of each half of a batch, predicted by the other half."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import risk
from keras_kare.losses.gram_loss import GramLoss


@keras.saving.register_keras_serializable(package="keras_kare")
class HoldoutKARE(GramLoss):
    """The mean squared error of each half of a batch, predicted by the other half.

    Where KARE reads the test error off the rows that a machine is solved on, and can be
    fooled once a kernel has been trained to please it, this loss has machines predict
    rows that they were not solved on: `y_B` from `(1/m) K_BA (K_AA/m + zI)⁻¹ y_A`, and
    the other way, where `A` are the first `m` rows of a batch and `B` the rest. (The
    kernel still learns from all rows: for an estimate that nothing has seen, keep
    validation rows.) `fit(shuffle=True)` makes new halves each epoch.

    It puts overfitting off rather than ending it: trained on the same rows for long it
    was fooled nearly as KARE was, wherever that was measured
    (`benchmarks/results/README.md`).

    Its value belongs to machines of half as many rows, so that it is larger than KARE
    of the same kernel. Batches need at least four rows.

    Args:
        ridge: The ridge `z`, a positive number. Defaults to `0.1`.
        relative: Whether `z = ridge * tr(K)/n²`, with the whole batch's Gram matrix.
            Defaults to `False`.
        name: Name of the loss. Defaults to `"holdout_kare"`.

    Raises:
        ValueError: If `ridge` is not a positive finite number. When called: for less
            than four rows, with `sample_weight`, or as `keras_kare.risk.kare`.

    Example:

    ```python
    model = kk.KAREModel(network)
    model.compile(keras.optimizers.SGD(1.0), loss=kk.losses.HoldoutKARE(ridge=0.1))
    ```
    """

    def __init__(
        self, ridge: float = 0.1, relative: bool = False, name: str = "holdout_kare"
    ):
        super().__init__(ridge=ridge, relative=relative, name=name)

    def evaluate(
        self,
        y_true: tf.Tensor,
        gram: tf.Tensor,
        sample_weight: Any = None,
        intercept: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if sample_weight is not None:
            raise ValueError(
                "`HoldoutKARE` has no weights of rows. Repeat rows, or use "
                "`kk.losses.KARE`. Received: sample_weight"
            )
        y, gram, z = risk.checked(y_true, gram, self.absolute_ridge(gram))
        if gram.shape[0] is not None and gram.shape[0] < 4:
            raise ValueError(
                "`HoldoutKARE` splits a batch in two, and needs at least four rows. "
                f"Received: a batch of {gram.shape[0]} rows"
            )
        half = tf.shape(gram)[0] // 2

        def other(a: slice, b: slice) -> tf.Tensor:
            """Predict the rows `b` by the machine of the rows `a`."""
            return risk.predict(y[a], gram[a, a], z, gram[b, a], intercept)

        upper, lower = slice(None, half), slice(half, None)
        second, first = other(upper, lower), other(lower, upper)
        predictions = tf.concat([first, second], axis=0)
        return tf.reduce_mean(tf.square(y - predictions)), predictions
