"""Numbers about the kernel, epoch by epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.callbacks import spectrum
from keras_kare.machine import Rows
from keras_kare.models import KAREModel, gathering
from keras_kare.solvers import System


class KernelDiagnostics(keras.callbacks.Callback):
    """A callback that logs what the kernel of a `KAREModel` is like, at the end of epochs.

    With `K` the Gram matrix of some rows in float64, `(n, n)`, their targets `y`,
    `(n, c)`, the ridge `z` of the loss, `A = K/n + zI` and `α = A⁻¹y`:

    | name in the logs | value |
    |---|---|
    | `kare` | `mean(α²) / (tr(A⁻¹)/n)²`, in the units of `y²` |
    | `leave_one_out` | `mean((α_i / (A⁻¹)_ii)²)`: mean squared leave-one-out error |
    | `effective_dimension` | `tr K(K + nzI)⁻¹`, between 0 and n |
    | `alignment` | `<K_c, y_c y_cᵀ> / (norm(K_c) norm(y_c y_cᵀ))`, between 0 and 1, \
of centred `K` and `y` |
    | `drift` | `norm(K − K₀) / norm(K₀)`, with `K₀` of the start of `fit` |
    | `eigenvalue_1`, … | the largest eigenvalues of `K/n`, in falling order |

    Norms are Frobenius norms. On rows that train the kernel, `kare` and
    `leave_one_out` fall below the error on new rows, as the loss does; on rows that
    do not, they are honest. Where training rows have weights, all but `alignment` and
    `drift` are those of rows repeated so often.

    Put it **first** in the list of callbacks: those after it (`CSVLogger`,
    `TensorBoard`, `EarlyStopping`, …) see its values in the logs, those before it do
    not. `fit`'s `history.history` has them wherever it stands. Before
    `BackupAndRestore`, `drift` counts from the network as it was built, after it from
    the weights that were restored.

    Each time costs one Gram matrix and one eigendecomposition, `O(n³)`.

    Args:
        x: Inputs of the rows to look at, `(n, ...)`, or a dataset of `(x, y)`
            batches. Defaults to training rows.
        y: Their targets, `(n,)` or `(n, c)`.
        every: Look at the first epoch of a `fit` and at each `every`-th after it; the
            other epochs have no values. Defaults to `1`.
        rows: Where `x` is not given: the most training rows to look at, evenly
            spread. Defaults to `512`.
        eigenvalues: How many eigenvalues to log, at most n. Defaults to `5`.

    Raises:
        TypeError: When training begins, if the model is no `KAREModel`.
        ValueError: If an argument is out of range; when training begins, if targets
            are the same in all rows, which leaves nothing to be aligned with, or the
            kernel is zero on the rows.

    Example:

    ```python
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.SGD(1.0), loss="kare")
    diagnostics = kk.callbacks.KernelDiagnostics(every=2)
    history = model.fit(x, y, epochs=4, callbacks=[diagnostics])
    history.history["effective_dimension"]  # of epochs 0 and 2
    ```

    References:
        - Schwab et al., arXiv:2505.11347 (KARE).
        - Cristianini, Shawe-Taylor, Elisseeff, Kandola, "On kernel-target alignment",
          NIPS 2001; Cortes, Mohri, Rostamizadeh, "Algorithms for learning kernels
          based on centered alignment", JMLR 13, 2012.
        - Chizat, Oyallon, Bach, "On lazy training in differentiable programming",
          arXiv:1812.07956 (relative changes since the start of training).
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        every: int = 1,
        rows: int = 512,
        eigenvalues: int = 5,
    ):
        super().__init__()
        _validation.check_whole("every", every, 1)
        _validation.check_whole("rows", rows, 2)
        _validation.check_whole("eigenvalues", eigenvalues, 0)
        if x is None and y is not None:
            raise ValueError(
                "`y` needs the inputs that it belongs to. Pass `x` too, or neither, to "
                "look at training rows. Received: x=None and y"
            )
        self.every = every
        self.rows = rows
        self.eigenvalues = eigenvalues
        self._given = None if x is None else _checked(gathering.gather(x, y, None))
        self._seen: Any = None  # the rows, from the start of `fit` to its end
        self._start: Any = None
        self._first: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        if not isinstance(self.model, KAREModel):
            raise TypeError(
                "`KernelDiagnostics` looks at the kernel of a `keras_kare.KAREModel`. "
                f"Received: model of type {type(self.model).__name__}"
            )
        session: Any = self.model._session
        self._seen = self._given or _checked(session.rows.spread(self.rows))
        self._start = self._gram()
        self._first = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._first = epoch if self._first is None else self._first
        if (epoch - self._first) % self.every or logs is None:
            return
        gram = self._gram()
        _, y, weights = self._seen.parts()
        ridge = float(self.model.loss.absolute_ridge(tf.constant(gram), weights))
        constant = self.model._has_constant
        logs |= spectrum.diagnose(gram, y, weights, ridge, self.eigenvalues, constant)
        logs["drift"] = spectrum.drift(gram, self._start)

    def on_train_end(self, logs: Any = None) -> None:
        self._seen = self._start = None

    def _gram(self) -> np.ndarray:
        operator = self.model.kernel.operator(self._seen.x)
        return System(operator, self._seen.y).gram


def _checked(rows: Rows) -> Rows:
    """Refuse rows whose targets leave nothing to be aligned with."""
    if len(rows) < 2 or np.ptp(rows.y, axis=0).max() == 0.0:
        raise ValueError(
            "`KernelDiagnostics` needs at least two rows whose targets differ. Pass other "
            f"rows as `x` and `y`. Received: {len(rows)} rows with the same targets"
        )
    return rows
