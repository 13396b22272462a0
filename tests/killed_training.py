"""A training under `BackupAndRestore` that is killed where the command line says.

    python killed_training.py FOLDER EPOCHS              until it is done
    python killed_training.py FOLDER EPOCHS step 7       SIGKILL before the 7th step
    python killed_training.py FOLDER EPOCHS save 2 5     … before the 5th array of save 2

Steps and saves are counted in this process. When it is done it prints the largest
difference of weights and the solved head from the same training, uninterrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import h5py
import keras
import numpy as np
import tensorflow as tf

import keras_kare as kk


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtStep(keras.callbacks.Callback):
    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            kill()


def counted(function: Callable, at: int, then: Callable[[], None]) -> Callable:
    """The function, but for `then` before its call number `at`."""
    calls = 0

    def wrapper(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == at:
            then()
        return function(*arguments, **keywords)

    return wrapper


def kill_in_save(save: int, array: int) -> None:
    def begin() -> None:
        h5py.Group.create_dataset = counted(h5py.Group.create_dataset, array, kill)

    kk.KAREModel.save_weights = counted(kk.KAREModel.save_weights, save, begin)


def train(epochs: int, callbacks: list[keras.callbacks.Callback]) -> list[np.ndarray]:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = np.sin(x[:, :1]) + 0.1 * rng.normal(size=(32, 1)).astype("float32")
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    model = kk.KAREModel(network)
    model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(0.1))
    model.fit(
        x[:24],
        y[:24],
        batch_size=8,
        shuffle=False,
        epochs=epochs,
        validation_data=(x[24:], y[24:]),
        callbacks=callbacks,
        verbose=0,
    )
    return [*model.get_weights(), model.head.dual.numpy()]


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    folder, epochs, *where = sys.argv[1:]
    callbacks = [keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)]
    if where[:1] == ["step"]:
        callbacks.append(KillAtStep(int(where[1])))
    if where[:1] == ["save"]:
        kill_in_save(int(where[1]), int(where[2]))
    resumed = train(int(epochs), callbacks)
    whole = train(int(epochs), [])
    print(max(np.max(np.abs(a - b)) for a, b in zip(resumed, whole, strict=True)))


if __name__ == "__main__":
    main()
