"""KARE of all rows, without a Gram matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.losses.kare import KARE
from keras_kare.risk.stochastic import all_rows
from keras_kare.solvers import CG


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
        _validation.check_positive("tolerance", tolerance)
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
    """Silence the solver: training has a progress bar of its own."""
    shown = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if shown:
            keras.config.enable_interactive_logging()
