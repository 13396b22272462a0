"""Training a kernel, and what rows that did not train say about it."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels import NTK
from keras_kare.layers import NTKRidgeHead, ridge_selection
from keras_kare.layers.machine import System
from keras_kare.layers.posterior import Posterior
from keras_kare.layers.ridge_selection import Choice
from keras_kare.losses import KARE
from keras_kare.models import KAREModel
from keras_kare.models.rows import default_batch_size

FEWEST = 20
"""Fewest rows that a kernel is trained on: fewer cannot say when to stop."""

TRACING_PAYS = 20
"""Steps of training that save about as much time as tracing a step takes."""


@dataclass(frozen=True)
class Evidence:
    """Predictions for rows whose targets neither the kernel nor the machine had seen.

    Attributes:
        rows: Their numbers, `(m,)`.
        predictions: `(m, c)`.
        variances: In units of `s²`, noise included, `(m,)`.
        ridge: The relative ridge of the machine.
        chosen_by: What that was chosen by.
    """

    rows: np.ndarray
    predictions: np.ndarray
    variances: np.ndarray
    ridge: float
    chosen_by: str


class Batches(keras.utils.PyDataset):
    """Even batches of rows, shuffled before each epoch by a generator of their own."""

    def __init__(
        self, x: np.ndarray, y: np.ndarray, count: int, rng: np.random.RandomState
    ):
        super().__init__()
        self._x, self._y, self._rng = x, y, rng
        self._count = count
        self.on_epoch_end()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._x[self._parts[i]], self._y[self._parts[i]]

    def on_epoch_end(self) -> None:
        self._parts = np.array_split(self._rng.permutation(len(self._x)), self._count)


class TimeBudget(keras.callbacks.Callback):
    """Ends training with the first batch that ends after a time.

    Args:
        end: On the clock `time.perf_counter`, in seconds.
    """

    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if time.perf_counter() >= self.end:
            self.model.stop_training = True


def held_out_rows(
    order: np.ndarray, fraction: float, rng: np.random.RandomState
) -> np.ndarray:
    """Numbers of rows that spread evenly over the values of `order`; sorted.

    Args:
        order: What to balance, `(n,)`: classes, or a target.
        fraction: Share of the rows.
        rng: Decides between equals.

    Returns:
        At least two, and at most all but two; none of fewer than `FEWEST` rows.
    """
    n = len(order)
    if n < FEWEST:
        return np.arange(0)
    count = int(np.clip(round(fraction * n), 2, n - 2))
    shuffled = rng.permutation(n)
    ranked = shuffled[np.argsort(order[shuffled], kind="stable")]
    return np.sort(ranked[((np.arange(count) + 0.5) * n / count).astype(int)])


def train(
    kernel: NTK,
    x: np.ndarray,
    y: np.ndarray,
    held: np.ndarray,
    settings: Any,
    rng: np.random.RandomState,
    end: float,
) -> dict[str, list[float]]:
    """Train the kernel's network to the epoch that is best on the rows held out.

    Args:
        kernel: The kernel; its network gets the best weights.
        x: `(n, d)`.
        y: `(n, c)`.
        held: Numbers of the rows that do not train.
        settings: The estimator, for its parameters.
        rng: Shuffles batches.
        end: When to stop, on the clock `time.perf_counter`.

    Returns:
        The history of `KAREModel.fit`.
    """
    network, rest = kernel.network, np.delete(np.arange(len(x)), held)
    start = network.get_weights()
    model = KAREModel(kernel, head=NTKRidgeHead(ridge=settings.kare_ridge))
    size = settings.batch_size or default_batch_size(len(rest))
    count = max(1, len(rest) // size)
    model.compile(
        keras.optimizers.Adam(settings.learning_rate),
        KARE(ridge=settings.kare_ridge, relative=True),
        run_eagerly=settings.epochs * count < TRACING_PAYS,
    )
    best = keras.callbacks.EarlyStopping(
        "val_loss", patience=settings.patience, mode="min", restore_best_weights=True
    )
    history = keras.callbacks.History()
    try:
        model.fit(
            **_batched(x[rest], y[rest], count, rng),
            epochs=settings.epochs,
            validation_data=(x[held], y[held]),
            callbacks=[best, history, TimeBudget(end)],
            verbose=settings.verbose,
        )
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        warnings.warn(
            "Training failed, so the best weights before that are used. A smaller "
            f"`learning_rate` may help. It said: {str(error).splitlines()[0]}",
            RuntimeWarning,
            stacklevel=4,
        )
    found = best.best_weights
    usable = found is not None and all(np.all(np.isfinite(w)) for w in found)
    network.set_weights(found if usable else start)
    return dict(history.history)


def judge(gram: np.ndarray, y: np.ndarray, held: np.ndarray, ridge: Any) -> Evidence:
    """What can be known of the machine without rows that trained.

    The machine of the other rows predicts the rows held out. Where none are, the kernel
    has never seen targets, and leave-one-out is as good.

    Args:
        gram: Of all rows, `(n, n)` in float64.
        y: Of all rows, `(n, c)`.
        held: Numbers of the rows that did not train.
        ridge: Relative, or `"auto"`: the one with the least squared error there.
    """
    given = None if ridge == "auto" else Choice(float(ridge), by="the user")
    if not len(held):
        system = System(gram, y)
        if given is None:
            given, solution = ridge_selection.by_leave_one_out(system)
        else:
            solution = system.solve(given.absolute(system.unit))
        inverse = solution.inverse_diagonal
        return Evidence(
            rows=np.arange(len(y)),
            predictions=y - solution.dual / inverse[:, None],
            variances=len(y) / inverse,  # 1 / diag((K + nλI)⁻¹)
            ridge=given.ridge,
            chosen_by=given.by,
        )
    rest = np.delete(np.arange(len(y)), held)
    system, cross = System(gram[np.ix_(rest, rest)], y[rest]), gram[np.ix_(held, rest)]
    if given is None:
        name = "rows held out from training"
        given, solution = ridge_selection.by_rows(system, cross, y[held], None, name)
    else:
        solution = system.solve(given.absolute(system.unit))
    posterior = Posterior(system, solution.ridge)
    variances = posterior.unit_variance(np.diag(gram)[held], cross)
    return Evidence(
        rows=held,
        predictions=cross @ solution.dual / len(rest),
        variances=variances + posterior.unit_noise,
        ridge=given.ridge,
        chosen_by=given.by,
    )


def _batched(
    x: np.ndarray, y: np.ndarray, count: int, rng: np.random.RandomState
) -> dict[str, Any]:
    """Arguments of `fit`; Keras would shuffle with global generators."""
    if count == 1:
        return {"x": x, "y": y, "batch_size": len(x), "shuffle": False}
    return {"x": Batches(x, y, count, rng), "shuffle": False}
