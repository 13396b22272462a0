"""Numbers about the kernel, epoch by epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.callbacks import spectrum
from keras_kare.kernels import NTK
from keras_kare.losses import KARE
from keras_kare.machine import Rows
from keras_kare.models import KAREModel, gathering
from keras_kare.solvers import System


class KernelDiagnostics(keras.callbacks.Callback):
    """A callback that logs what a kernel is like, at the end of epochs of training.

    Of a `KAREModel` it is the model's kernel; of any other network, which trains by itself,
    its NTK (`outputs="trace"`). With `K` the Gram matrix of some rows in float64, `(n, n)`,
    their targets `y`, `(n, c)`, the ridge `z` of the loss, `A = K/n + zI` and `α = A⁻¹y`:

    | name in the logs | value |
    |---|---|
    | `kare` | `mean(α²) / (tr(A⁻¹)/n)²`, in the units of `y²` |
    | `leave_one_out` | `mean((α_i / (A⁻¹)_ii)²)`: mean squared leave-one-out error |
    | `effective_dimension` | `tr K(K + nzI)⁻¹`, between 0 and n |
    | `alignment` | `<K_c, y_c y_cᵀ> / (norm(K_c) norm(y_c y_cᵀ))`, between 0 and 1, \
of centred `K` and `y` |
    | `drift` | `norm(K − K₀) / norm(K₀)`, with `K₀` of the start of `fit` |
    | `weights_norm` | `norm(θ)` of all weights that train |
    | `eigenvalue_1`, … | the largest eigenvalues of `K/n`, in falling order |
    | `smallest_eigenvalue` | the smallest one of `K/n` |

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
        ridge: Where the model is no `KAREModel`: `z` in units of `tr(K)/n²`. Defaults to
            `1.0`.

    Raises:
        ValueError: If an argument is out of range; when training begins, if targets
            are the same in all rows, which leaves nothing to be aligned with, the
            kernel is zero on the rows, or the model is no `KAREModel` and no rows were
            given.

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
        - "Divergence of empirical neural tangent kernel in classification problems",
          arXiv:2504.11130 (drift, the smallest eigenvalue, the size of the weights).
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        every: int = 1,
        rows: int = 512,
        eigenvalues: int = 5,
        ridge: float = 1.0,
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
        _validation.check_positive("ridge", ridge)
        self.ridge = ridge
        self._kernel: Any = None
        self._loss: Any = None
        self._given = None if x is None else _checked(gathering.gather(x, y, None))
        self._seen: Any = None  # the rows, from the start of `fit` to its end
        self._start: Any = None
        self._first: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        ours = isinstance(self.model, KAREModel)
        if not ours and self._given is None:
            raise ValueError(
                "`KernelDiagnostics` needs rows to look at where no `keras_kare.KAREModel` "
                "trains: pass `x` and `y`. Received: model of type "
                f"{type(self.model).__name__}"
            )
        session: Any = self.model._session if ours else None
        self._seen = self._given or _checked(session.rows.spread(self.rows))
        self._kernel = self.model.kernel if ours else NTK(self.model, outputs="trace")
        self._loss = self.model.loss if ours else KARE(self.ridge, relative=True)
        self._start = self._gram()
        self._first = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._first = epoch if self._first is None else self._first
        if (epoch - self._first) % self.every or logs is None:
            return
        gram = self._gram()
        _, y, weights = self._seen.parts()
        ridge = float(self._loss.absolute_ridge(tf.constant(gram), weights))
        constant = getattr(self.model, "_has_constant", False)
        logs |= spectrum.diagnose(gram, y, weights, ridge, self.eigenvalues, constant)
        logs["drift"] = spectrum.drift(gram, self._start)
        trained = self._kernel.trainable_variables
        logs["weights_norm"] = spectrum.norm(v.numpy() for v in trained)

    def on_train_end(self, logs: Any = None) -> None:
        self._seen = self._start = self._kernel = self._loss = None

    def _gram(self) -> np.ndarray:
        operator = self._kernel.operator(self._seen.x)
        return System(operator, self._seen.y).gram


def _checked(rows: Rows) -> Rows:
    """Refuse rows whose targets leave nothing to be aligned with."""
    if len(rows) < 2 or np.ptp(rows.y, axis=0).max() == 0.0:
        raise ValueError(
            "`KernelDiagnostics` needs at least two rows whose targets differ. Pass other "
            f"rows as `x` and `y`. Received: {len(rows)} rows with the same targets"
        )
    return rows
