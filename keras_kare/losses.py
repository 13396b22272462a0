"""Losses of a Gram matrix, for `KAREModel.compile(loss=...)`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation, risk
from keras_kare.kernels.kernel import Kernel
from keras_kare.risk.stochastic import all_rows
from keras_kare.solvers import CG


@keras.saving.register_keras_serializable(package="keras_kare")
class GramLoss(keras.losses.Loss):
    """Base class of losses on `(y_true, gram)` instead of `(y_true, y_pred)`.

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
        _validation.check_ridge("ridge", ridge)
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
        """The loss, a scalar, and predictions of the training rows, `(n, c)`.

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
        """The loss of a batch, its gradients, and predictions of its rows.

        For losses with `supplies_gradients = True`; called outside of graphs.

        Args:
            kernel: The kernel.
            x: Rows, `(n, ...)`.
            y_true: Targets, `(n, c)`.
            step: Number of the training step.
            sample_weight, intercept: As in `evaluate`.

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
        """`z` for this Gram matrix: where relative, in units of `Σ w_i K_ii/(Σ w)²`."""
        ridge = tf.constant(self.ridge, gram.dtype)
        if not self.relative:
            return ridge
        diagonal = tf.linalg.diag_part(gram)
        if sample_weight is None:
            weights = tf.ones_like(diagonal)
        else:
            weights = tf.reshape(tf.cast(sample_weight, gram.dtype), (-1,))
        return ridge * tf.reduce_sum(weights * diagonal) / tf.reduce_sum(weights) ** 2

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


@keras.saving.register_keras_serializable(package="keras_kare")
class HoldoutKARE(GramLoss):
    """The mean squared error of each half of a batch, predicted by the other half.

    Where KARE reads the test error off the rows that a machine is solved on, and can be
    fooled once a kernel has been trained to please it, this loss has machines predict
    rows that they were not solved on: `y_B` from `(1/m) K_BA (K_AA/m + zI)⁻¹ y_A`, and
    the other way, where `A` are the first `m` rows of a batch and `B` the rest. (The
    kernel still learns from all rows: for an estimate that nothing has seen, keep
    validation rows.) `fit(shuffle=True)` makes new halves each epoch.

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
            """Of the rows `b`, by the machine of the rows `a`."""
            return risk.predict(y[a], gram[a, a], z, gram[b, a], intercept)

        upper, lower = slice(None, half), slice(half, None)
        second, first = other(upper, lower), other(lower, upper)
        predictions = tf.concat([first, second], axis=0)
        return tf.reduce_mean(tf.square(y - predictions)), predictions


@keras.saving.register_keras_serializable(package="keras_kare")
class FullKARE(KARE):
    """KARE of all rows of a batch, of any size, without a Gram matrix.

    `KAREModel.fit` then takes all rows as one batch by default. Each training step solves
    for the targets and for new random probes by preconditioned conjugate gradients, or
    takes the exact primal form, and differentiates implicitly: see
    `kk.stochastic.kare_and_gradient`. Memory grows with `n`, not with `n²`. (A Gram matrix
    that is there already, as in `loss(y, gram)`, gives `KARE` itself.)

    **What mini-batches change.** KARE of `b` rows is about the machine that is solved on
    these `b` rows: it estimates *that* machine's test error, larger than the error of the
    machine on all `n` rows, which predicts in the end. With an absolute ridge `z` the
    machine's system is `K + b z I`, not `K + n z I`: in the units of `K/n` the ridge is
    the same, but noise averages out over fewer rows. With `relative=True`, `z` itself is
    about `n/b` times as large. So mini-batch KARE is biased upwards, and its gradient
    favours kernels that do well on few rows; more batches do not mend that.
    `benchmarks/stochastic_kare.py` measures the bias, and what it costs in test error.
    In return, its steps are far cheaper.

    **What probes change.** `FullKARE` has no such bias, but a random error. That of its
    value is small, at most about `2 √(2 d/p)/(n − d)` of it, for `d` degrees of freedom of
    the machine. That of its gradient does not fall with `n`: with `p` probes it was about
    `1.1/√p` of the gradient's length wherever it was measured, and averages out over
    steps. `method="primal"` has none.

    Metrics during training are computed on predictions whose mean squared error is the
    loss: leave-one-out predictions in which each row's `(A⁻¹)_ii` is replaced by the mean
    of all, `t`, so that the residuals are `a/t` (this is how GCV follows from
    leave-one-out).

    Training steps run outside of graphs. Rows have no weights yet.

    Args:
        ridge: The ridge `z`, a positive number. Defaults to `0.1`.
        relative: Whether `z = ridge * tr(K)/n²`. Defaults to `False`.
        probes: Random probes a step, at least 2. Defaults to `16`.
        tolerance: Relative residual of the solutions. Defaults to `1e-4`.
        method: `"stochastic"`, `"primal"`, or `"auto"`, as in `kk.stochastic.kare`.
            Defaults to `"auto"`.
        seed: Of the probes, which also depend on the number of the step. Defaults to `0`.
        name: Name of the loss. Defaults to `"full_kare"`.

    Raises:
        ValueError: If an argument is out of its range. When training: as
            `kk.stochastic.kare_and_gradient`, and with `sample_weight`.

    Example:

    ```python
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.Adam(1e-3), kk.losses.FullKARE(ridge=1.0, relative=True))
    model.fit(x, y, epochs=10)  # any number of rows, one step an epoch
    ```
    """

    supplies_gradients = True

    def __init__(
        self,
        ridge: float = 0.1,
        relative: bool = False,
        probes: int = 16,
        tolerance: float = 1e-4,
        method: str = "auto",
        seed: int = 0,
        name: str = "full_kare",
    ):
        all_rows.Way(probes, seed, method)  # refuses what is out of range
        _validation.check_ridge("tolerance", tolerance)
        super().__init__(ridge=ridge, relative=relative, name=name)
        self.probes, self.tolerance = probes, tolerance
        self.method, self.seed = method, seed
        self._told = False

    def value_and_gradients(
        self,
        kernel: Kernel,
        x: Any,
        y_true: Any,
        step: int,
        sample_weight: Any = None,
        intercept: bool = False,
    ) -> tuple[float, list[tf.Tensor], np.ndarray]:
        if sample_weight is not None:
            raise ValueError(
                "`FullKARE` has no weights of rows yet. Repeat rows, or use "
                "`kk.losses.KARE`. Received: sample_weight"
            )
        y = np.asarray(y_true, "float64")
        seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
        way = all_rows.Way(self.probes, seed, self.method, CG(tolerance=self.tolerance))
        with _without_bars():
            found, gradients = all_rows.found_with_gradient(
                kernel, x, y, self.ridge, way, self.relative, intercept
            )
        if not self._told and not found.converged:
            self._told = True  # once, not at every step
            found.warn_if_rough()
        scale = np.sqrt(np.mean(found.dual**2)) or 1.0
        predictions = y - found.dual * (np.sqrt(found.value) / scale)
        return found.value, gradients, predictions

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "probes": self.probes,
            "tolerance": self.tolerance,
            "method": self.method,
            "seed": self.seed,
        }


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Training has a progress bar of its own."""
    shown = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if shown:
            keras.config.enable_interactive_logging()


_NAMES: dict[str, type[GramLoss]] = {
    "kare": KARE,
    "holdout_kare": HoldoutKARE,
    "full_kare": FullKARE,
}


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
    if isinstance(identifier, str) and identifier.lower() in _NAMES:
        return _NAMES[identifier.lower()]()
    if isinstance(identifier, dict):
        loss = keras.saving.deserialize_keras_object(identifier)
        if isinstance(loss, GramLoss):
            return loss
    raise ValueError(
        '`loss` must be a loss of a Gram matrix: "kare", "holdout_kare", '
        '"full_kare", `kk.losses.KARE(...)`, or a subclass of `kk.losses.GramLoss`. Keras '
        "losses compare targets with predictions and do not apply to a kernel. "
        f"Received: loss={identifier!r}"
    )
