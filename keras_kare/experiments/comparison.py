"""NTK-KARE, after-NTK, the network and the untrained kernel, from one start."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from keras_kare import datasets
from keras_kare.experiments import settings
from keras_kare.experiments.lab import Lab
from keras_kare.experiments.store import Row


def compare(
    station: Lab,
    data: datasets.Split,
    initialization: str,
    seed: int,
    kare: settings.Training,
    mse: settings.Training,
    ridges: Sequence[float],
) -> list[Row]:
    """Return the test MSE of four methods: of three of them, by relative ridge.

    Methods: `ntk`, the kernel at its start; `ntk_kare`, trained by KARE; `network`, trained
    by squared error; `after_ntk`, that network's kernel.
    """
    rows: list[Row] = []

    def machine(method: str, begun: float) -> None:
        found = station.predictions(data.x, data.y, data.x_test, ridges)
        seconds = round(time.perf_counter() - begun, 3)
        for ridge in ridges:
            error = _mse(found[ridge], data.y_test) if found else None
            row = {"method": method, "relative_ridge": ridge, "mse": error}
            rows.append({**row, "seconds": seconds})

    begun = time.perf_counter()
    station.draw(initialization, seed)
    machine("ntk", begun)

    begun = time.perf_counter()
    station.train_kare(data.x, data.y, kare)
    machine("ntk_kare", begun)

    begun = time.perf_counter()
    station.draw(initialization, seed)
    station.train_mse(data.x, data.y, mse, seed)
    error = _mse(station.outputs(data.x_test), data.y_test)
    seconds = round(time.perf_counter() - begun, 3)
    row = {"method": "network", "relative_ridge": None, "mse": error, "seconds": seconds}
    rows.append(row)
    machine("after_ntk", begun)
    return rows


def _mse(predicted: np.ndarray, y: np.ndarray) -> float | None:
    error = float(np.mean((predicted - y) ** 2))
    return error if np.isfinite(error) else None
