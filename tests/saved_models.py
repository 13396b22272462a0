"""Models that one process writes and another reads: `python saved_models.py VERB FOLDER`.

Both compute on one thread, so that sums are always added in the same order.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import networks
import numpy as np

import keras_kare as kk

HEADS: dict[str, dict[str, Any]] = {
    "primal": {"form": "primal"},
    "dual": {"form": "dual"},
    "cheaper form": {"form": "auto"},
    "no rows kept": {"form": "primal", "keep_anchors": False},
    "residual": {"form": "primal", "residual": True},
    "residual dual": {"form": "dual", "residual": True},
    "ridge as it is": {"ridge": 1e-3, "relative": False},
    "subclassed network": {},
}
BEFORE, EPOCHS = 2, 5
"""Epochs after which a model in training is saved, and after which it ends."""


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, networks.D)).astype("float32")
    return x, np.tanh(x[:, :2] + 0.1 * rng.normal(size=(24, 2))).astype("float32")


def make(network: keras.Model, **head: Any) -> kk.KAREModel:
    kernel = kk.kernels.NTK(network, "trace")
    model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(**{"ridge": 0.1, **head}))
    model.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        kk.losses.KARE(0.2),
        metrics=["mse", "accuracy"],
    )
    return model


def fit(model: kk.KAREModel, begin: int, **options: Any) -> None:
    x, y = rows()
    model.fit(
        x[:16],
        y[:16],
        initial_epoch=begin,
        epochs=EPOCHS,
        validation_data=(x[16:], y[16:]),
        shuffle=False,
        verbose=0,
        **options,
    )


def facts(model: kk.KAREModel) -> dict[str, Any]:
    """All that must be the same after loading, to the last bit."""
    found = {
        "predictions": model.predict(rows()[0], verbose=0),
        "dual": 0.0 if model.head.dual is None else model.head.dual.numpy(),
        "ridge": model.head.ridge_value,
        "chosen by": model.head.report["chosen_by"],
        "form": model.head.report["form"],
        "loss": model.loss.ridge,
        "has trained": model.machine.state.trained,
        "fresh": model.machine.is_fresh(),
    }
    optimizer = model.optimizer
    state = optimizer.variables if optimizer.iterations.numpy() else []
    for i, variable in enumerate([*model.variables, *state]):
        found[f"variable {i}"] = variable.numpy()
    return found


def write(folder: Path) -> None:
    """A file and the facts of each form of head, and of a model while it trains."""
    keras.utils.set_random_seed(1)
    x, y = rows()
    for name, head in HEADS.items():
        subclassed = name == "subclassed network"
        network = networks.Subclassed() if subclassed else networks.mlp(c=2)
        model = make(network, **head)
        model.fit_head(x[:16], y[:16])
        model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name} written.npz", **facts(model))

    def save(epoch: int, logs: Any) -> None:
        if epoch + 1 == BEFORE:
            model.save(folder / "in training.keras")

    model = make(networks.mlp(c=2), ridge="auto")
    fit(model, 0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=save)])
    np.savez(folder / "uninterrupted.npz", **facts(model))


def read(folder: Path) -> None:
    """The same facts of the loaded models."""
    for name in HEADS:
        model = keras.saving.load_model(folder / f"{name}.keras")
        np.savez(folder / f"{name} read.npz", **facts(model))
    model = keras.saving.load_model(folder / "in training.keras")
    fit(model, BEFORE)
    np.savez(folder / "resumed.npz", **facts(model))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
