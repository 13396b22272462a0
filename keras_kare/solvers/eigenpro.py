"""Batches of rows, one after the other: stochastic iteration with EigenPro's subspace."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_kare import _validation
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.eigenpro_features import FeatureIterate, add_images
from keras_kare.solvers.eigenpro_run import Run
from keras_kare.solvers.eigenpro_steps import STEPS, Iterate, MatrixIterate, Subspace
from keras_kare.solvers.result import Solution
from keras_kare.solvers.solver import Prepared, Solver
from keras_kare.solvers.system import System

MOST_ROWS = 1024
"""Most rows of a batch, where the user names no number."""

LEAST_ROWS = 16
"""Smaller batches take more time for calls than for numbers."""

SPAN = 8.0
"""How far apart the eigenvalues of a batch may lie that a few directions flatten."""


@dataclass(frozen=True)
class Plan:
    """How rows are read.

    Attributes:
        by_features: Whether by the feature map, not by kernel values with all rows.
        components: Eigenvectors of the subspace, where the kernel has so many.
        batch_rows: Rows of a batch, or most of them where the spectrum decides.
        row_bytes: Bytes a row of a batch.
    """

    by_features: bool
    components: int
    batch_rows: int
    row_bytes: float


@keras.saving.register_keras_serializable(package="keras_kare")
class EigenPro(Solver):
    """Stochastic block iteration, preconditioned by a subsample's top eigenvectors.

    An epoch goes once over all rows in random batches. Each batch `B` updates its own
    `α_B` by its residual `r_B = y_B − (K α)_B/n − λ α_B`, and EigenPro's correction on a
    fixed subsample `S` takes the step's share along the top eigenvectors of `K_SS` out,
    so that batches can be large. `r_B` vanishes at the solution for every batch: the
    iteration converges linearly to `α` itself, with no decaying step, and no variance at
    the end. Each step has the best length for its batch, so that the energy
    `½ αᵀ(K/n + λI)α − yᵀα` never rises and there is no learning rate to choose.

    When to use it: for ridges that are not small, and for rows in batches that are never
    in memory together. An epoch takes as many kernel values as one iteration of `cg`
    (by a feature map, as much work as up to five). Each takes a share of about
    `λ̃/(λ̃ + s)` from the energy above its minimum, with `λ̃ = λ n²/tr(K)` the relative
    ridge and `s ≤ 1` the share of the trace that the subspace lacks, whatever `n` is:
    ridges of `λ̃ ≥ 1` take a handful of epochs. As `λ̃` falls, epochs grow like `1/λ̃` in
    the worst case, `cg`'s iterations like its root. So `cg`, whose preconditioner can also
    have more columns, is better for small ridges (`λ̃` of 0.01 and less for networks,
    0.001 for kernels of values), for tolerances below `1e-6`, and for networks whose
    features fit in memory.

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
        _validation.check_ridge("tolerance", tolerance)
        _validation.check_whole("max_epochs", max_epochs, 1)
        _validation.check_whole("subsample", subsample, 2)
        _validation.check_whole("seed", seed, 0)
        if batch_size != "auto":
            _validation.check_whole("batch_size", batch_size, 1)
        if components != "auto":
            _validation.check_whole("components", components, 0)
            if int(components) > subsample:
                raise ValueError(
                    "`components` must be at most `subsample`. Received: "
                    f"components={components}, subsample={subsample}"
                )
        if time_budget is not None:
            _validation.check_ridge("time_budget", time_budget)
        _validation.check_memory_limit(memory_limit)
        self.tolerance, self.max_epochs = tolerance, max_epochs
        self.batch_size, self.components = batch_size, components
        self.subsample, self.time_budget = subsample, time_budget
        self.memory_limit, self.seed = memory_limit, seed

    def memory(self, operator: KernelOperator, columns: int) -> float:
        plan = self.plan(operator, columns)
        m = float(min(self.subsample, operator.rows))
        vectors = 56.0 * operator.rows * columns + 32.0 * m**2
        features = (operator.features or 0) if plan.by_features else 0
        images = features * (20.0 * plan.components + 40.0 * columns)
        return vectors + images + plan.batch_rows * plan.row_bytes

    def plan(self, operator: KernelOperator, columns: int) -> Plan:
        """How rows will be read, and how many at a time, by operations and bytes."""
        rows, features = operator.rows, operator.features
        share, each = self.limit() / 4.0, 0.0
        b = MOST_ROWS if self.batch_size == "auto" else int(self.batch_size)
        q = m = min(self.subsample, rows)
        mapped = features is not None and _feature_flops(features, columns) <= rows * (
            operator.pair_flops + 2.0 * columns
        )
        if features is not None and mapped:
            b = min(b, operator.kernel.chunk(operator.x, columns)[0])
            q = int(share / (20.0 * features))
        else:
            each = 16.0 * rows
            if self.batch_size == "auto":
                b = min(b, max(1, int(share / each)))
        q = min(m // 4, q) if self.components == "auto" else min(int(self.components), m)
        return Plan(mapped, q, min(b, rows), each)

    def prepare(self, system: System) -> EigenProPrepared:
        self.check_memory(
            system, "Name a smaller `subsample`, `batch_size`, or number of `components`."
        )
        return EigenProPrepared(system, self)


class EigenProPrepared(Prepared):
    """The subspace, which serves every ridge."""

    exact_leave_one_out = False
    direct = False
    solver: EigenPro

    def __init__(self, system: System, solver: EigenPro):
        super().__init__(system, solver)
        self._begun = time.monotonic()
        operator, columns = system.operator, system.y.shape[1]
        _ = system.unit  # refuses kernels that are zero or not finite
        self.usable = np.flatnonzero(system.root)
        rng = np.random.default_rng(solver.seed)
        count = min(solver.subsample, len(self.usable))
        rows = np.sort(rng.choice(self.usable, count, replace=False))
        self.plan = solver.plan(operator, columns)
        gram = operator.block(rows, rows)
        self.subspace = Subspace(rows, gram, self.plan.components)
        self._held: Any = None
        self._step = operator.rows
        if self.plan.by_features:
            scale = None if operator.scale is None else operator.scale[rows]
            add_images(self.subspace, operator.kernel, operator.rows_of(rows), scale)
            self._step, holds = operator.kernel.chunk(operator.x, columns)
            if holds:
                self._held = operator.kernel.held(operator.x)

    def rough(self, tolerance: float) -> EigenProPrepared:
        config = {**self.solver.get_config(), "tolerance": tolerance}
        other = copy.copy(self)
        other.solver = EigenPro(**config)
        return other

    def solve(self, ridge: float, start: Solution | None = None) -> Solution:
        begun = time.perf_counter()
        run = Run(self, float(ridge), None if start is None else start.dual)
        run.go()
        return Solution(
            ridge=float(ridge),
            dual=run.best,
            residual=run.residual,
            iterations=run.epochs,
            stopped=run.stopped,
            **self._facts(begun),
        )

    def iterate(self, ridge: float) -> Iterate:
        """`α = 0`, to be improved batch by batch."""
        operator, columns = self.system.operator, self.system.y.shape[1]
        if not self.plan.by_features:
            return MatrixIterate(operator, self.subspace, columns, ridge)
        return FeatureIterate(
            operator.kernel,
            self.subspace,
            operator.rows,
            columns,
            ridge,
            operator.scale,
            self._held,
            "float32" if operator.narrow else "float64",
        )

    def batch_rows(self, ridge: float) -> int:
        """Rows of a batch: more would make its eigenvalues lie too far apart."""
        if self.solver.batch_size != "auto":
            return self.plan.batch_rows
        flat = self.subspace.left + self.system.rows * ridge
        ratio = SPAN * flat / max(self.subspace.next, 1e-300)
        return int(min(self.plan.batch_rows, max(LEAST_ROWS, 1.0 + ratio)))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        """All rows once, in random order: numbers and inputs, a batch at a time."""
        count = math.ceil(len(self.usable) / size)
        for numbers in np.array_split(rng.permutation(self.usable), count):
            numbers = np.sort(numbers)
            yield numbers, self._inputs(numbers)

    def passes(self) -> Iterator[tuple[slice, Any]]:
        """All rows once, in order."""
        for rows in self.system.operator.chunks(self._step):
            yield rows, self._inputs(rows)

    def _inputs(self, numbers: Any) -> Any:
        needed = self.plan.by_features and self._held is None
        return self.system.operator.rows_of(numbers) if needed else None

    def out_of_time(self) -> bool:
        """Whether the user's time is over."""
        budget = self.solver.time_budget
        return budget is not None and time.monotonic() - self._begun > budget


def _feature_flops(features: int, columns: int) -> float:
    """About how many operations a row takes by its feature map."""
    return 12.0 * features + 4.0 * features * columns * (1 + STEPS)
