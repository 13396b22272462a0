"""Batches of rows, one after the other: stochastic iteration with EigenPro's subspace."""

from __future__ import annotations

import time

import keras
import numpy as np

from keras_kare import _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.eigenpro.arrays import EigenProArrays
from keras_kare.solvers.eigenpro.prepared import EigenProPrepared, Reading
from keras_kare.solvers.eigenpro.steps import STEPS
from keras_kare.solvers.eigenpro.streamed import EigenProStream, StreamOperator
from keras_kare.solvers.iterative import Iterative
from keras_kare.solvers.stream import StreamSystem
from keras_kare.solvers.system import AbstractSystem, System

MOST_ROWS = 1024
"""Most rows of a batch, where the user names no number."""


@keras.saving.register_keras_serializable(package="keras_kare")
class EigenPro(Iterative):
    """Stochastic block iteration, preconditioned by a subsample's top eigenvectors.

    An epoch goes once over all rows in random batches. Each batch `B` updates its own
    `α_B` by its residual `r_B = y_B − (K α)_B/n − λ α_B`, and EigenPro's correction on a
    fixed subsample `S` takes the step's share along the top eigenvectors of `K_SS` out,
    so that batches can be large. `r_B` vanishes at the solution for every batch: the
    iteration converges linearly to `α` itself, with no decaying step, and no variance at
    the end. Each step has the best length for its batch, so that the energy
    `½ αᵀ(K/n + λI)α − yᵀα` never rises and there is no learning rate to choose.

    Datasets are streamed, for kernels with a feature map: each epoch reads the dataset
    once, in its own order, which must be the same in every epoch (rows that were shuffled
    once are best); of each row, `α` and the targets are kept, 56 bytes a target.

    When to use it: for ridges that are not small, and for rows in batches that are never
    in memory together, where the network has too many variables for `primal`. An epoch
    takes as many kernel values as one iteration of `cg` (by a feature map, as much work as
    up to five). Each takes a share of about `λ̃/(λ̃ + s)` from the energy above its
    minimum, with `λ̃ = λ n²/tr(K)` the relative ridge and `s ≤ 1` the share of the trace
    that the subspace lacks, whatever `n` is: ridges of `λ̃ ≥ 1` take a handful of epochs.
    As `λ̃` falls, epochs grow like `1/λ̃` in the worst case, `cg`'s iterations like its
    root. So `cg`, whose preconditioner can also have more columns, is better for small
    ridges (`λ̃` of 0.01 and less for networks, 0.001 for kernels of values), for
    tolerances below `1e-6`, and for networks whose features fit in memory.

    Args:
        tolerance: Of `|y − (K/n + λI) α| / |y|`, for each target. Defaults to `1e-3`.
        max_epochs: Defaults to `100`.
        batch_size: Rows of a batch. Defaults to `"auto"`: as many as the spectrum
            beneath the subspace, the ridge and memory allow, at most 1,024. (By feature
            maps, the kernel's own limit caps a number, too.)
        components: Eigenvectors `q` of the subspace; 0 for none. Defaults to `"auto"`:
            a quarter of the subsample, as far as memory allows.
        subsample: Rows of the subsample `S`; all rows where there are fewer. Defaults to
            `2000`.
        time_budget: Seconds after which no batch is begun. The true residual, which
            takes about an epoch, is computed after that. Defaults to none.
        memory_limit: See `Solver`.
        seed: Of the subsample and of the order of rows. Defaults to `0`.

    Ctrl-C ends the iteration; the head then holds the best iterate. (Its residual takes
    one more product; a second Ctrl-C leaves that out, and the iterate of the last look.)

    Example:

    ```python
    solver = kk.solvers.EigenPro(tolerance=1e-3, max_epochs=50)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0, solver=solver))
    model.fit_head(x, y)
    model.head.report["iterations"], model.head.report["residual"]  # epochs, residual
    ```

    References:
        - Ma, Belkin, "Diving into the shallows: a computational perspective on
          large-scale shallow learning" (EigenPro), arXiv:1703.10622.
        - Ma, Belkin, "Kernel machines that adapt to GPUs for effective large batch
          training" (EigenPro 2), arXiv:1806.06144.
        - Abedsoltan, Belkin, Pandit, "Toward large kernel models" (EigenPro 3),
          arXiv:2302.02605.
        - Shalev-Shwartz, Zhang, "Stochastic dual coordinate ascent methods for
          regularized loss minimization".
    """

    name = "eigenpro"
    step_name = "epoch"
    ordered = True

    def __init__(
        self,
        tolerance: float = 1e-3,
        max_epochs: int = 100,
        batch_size: int | str = "auto",
        components: int | str = "auto",
        subsample: int = 2000,
        time_budget: float | None = None,
        memory_limit: int | None = None,
        seed: int = 0,
    ):
        _validation.check_whole("max_epochs", max_epochs, 1)
        _validation.check_whole("subsample", subsample, 2)
        if batch_size != "auto":
            _validation.check_whole("batch_size", batch_size, 1)
        if components != "auto":
            _validation.check_whole("components", components, 0)
            if int(components) > subsample:
                raise ValueError(
                    "`components` must be at most `subsample`. Received: "
                    f"components={components}, subsample={subsample}"
                )
        super().__init__(tolerance, memory_limit, time_budget, seed)
        self.max_epochs, self.subsample = max_epochs, subsample
        self.batch_size, self.components = batch_size, components

    @property
    def most_steps(self) -> int:
        return self.max_epochs

    def memory(self, operator: KernelOperator, columns: int) -> float:
        rows = self.row_bytes(operator.rows, columns)
        return rows + self.fixed_bytes(operator, columns, self.reading(operator, columns))

    def row_bytes(self, rows: int, columns: int) -> float:
        """Return the bytes that are kept of so many rows, beside the rows."""
        return 56.0 * rows * columns

    def fixed_bytes(
        self, operator: KernelOperator, columns: int, reading: Reading
    ) -> float:
        """Return the bytes that are held however many rows there are."""
        m = float(min(self.subsample, operator.rows))
        features = (operator.features or 0) if reading.by_features else 0
        images = features * (20.0 * reading.components + 40.0 * columns)
        return 32.0 * m**2 + images + reading.batch_rows * reading.row_bytes

    def reading(
        self, operator: KernelOperator, columns: int, streamed: bool = False
    ) -> Reading:
        """Decide how rows are read, and how many at a time, by operations and bytes.

        Args:
            operator: `K`; that of the subsample where rows are `streamed`.
            columns: Number of targets `c`.
            streamed: Whether rows come by a stream, so that only features serve.
        """
        rows, features = operator.rows, operator.features
        share, each = self.limit() / 4.0, 0.0
        b = MOST_ROWS if self.batch_size == "auto" else int(self.batch_size)
        q = m = min(self.subsample, rows)
        mapped = features is not None and (
            streamed
            or _feature_flops(features, columns)
            <= rows * (operator.pair_flops + 2.0 * columns)
        )
        if features is not None and mapped:
            b = min(b, operator.kernel.chunk(operator.x, columns)[0])
            q = int(share / (20.0 * features))
        else:
            each = 16.0 * rows
            if self.batch_size == "auto":
                b = min(b, max(1, int(share / each)))
        q = min(m // 4, q) if self.components == "auto" else min(int(self.components), m)
        return Reading(mapped, q, min(b, rows), each, self.batch_size != "auto")

    def prepare(self, system: AbstractSystem) -> EigenProPrepared:
        if isinstance(system, StreamSystem):
            return self._prepare_stream(system)
        system = self.check_memory(
            system, "Name a smaller `subsample`, `batch_size`, or number of `components`."
        )
        _ = system.unit  # refuses kernels that are zero or not finite
        usable = np.flatnonzero(system.root)
        rng = np.random.default_rng(self.seed)
        count = min(self.subsample, len(usable))
        numbers = np.sort(rng.choice(usable, count, replace=False))
        reading = self.reading(system.operator, system.columns)
        return EigenProArrays(system, self, system, reading, numbers)

    def streams(self, kernel: Kernel) -> bool:
        return kernel.has_features  # others take kernel values with all rows

    def _prepare_stream(self, system: StreamSystem) -> EigenProStream:
        begun = time.monotonic()
        numbers, x = system.stream.sample(self.subsample, self.seed)
        sample = system.kernel.operator(x)
        reading = self.reading(sample, system.columns, streamed=True)
        needed = self.fixed_bytes(sample, system.columns, reading)
        advice = "Name fewer `components`."
        self.check_bytes(needed, sample.features or 0, "features", advice)
        ys, given = [], []
        for _, y, w in system.read():
            ys.append(y)
            given += [] if w is None else [w]
        needed += self.row_bytes(system.rows, system.columns)
        self.check_bytes(needed, system.rows, "rows")
        y = np.concatenate(ys)
        weights = np.concatenate(given) if given else None
        operator = StreamOperator(system, y, numbers, x)
        of_rows = System(operator, y, weights, system.intercept)
        prepared = EigenProStream(system, self, of_rows, reading, numbers)
        prepared.begun = begun
        return prepared


def _feature_flops(features: int, columns: int) -> float:
    """Return about how many operations a row takes by its feature map."""
    return 12.0 * features + 4.0 * features * columns * (1 + STEPS)
