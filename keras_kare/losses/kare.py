"""KARE of a Gram matrix."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import risk
from keras_kare.losses.gram_loss import GramLoss


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
        ValueError: If `ridge` is not a positive finite number. When called: as
            `keras_kare.risk.kare`, which also says what `sample_weight` means.

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

    def evaluate(
        self,
        y_true: tf.Tensor,
        gram: tf.Tensor,
        sample_weight: Any = None,
        intercept: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        ridge = self.absolute_ridge(gram, sample_weight)
        solved = risk.regress(y_true, gram, ridge, sample_weight, intercept)
        return risk.kare_of(solved), risk.leave_one_out_of(solved)
