"""Quickstart: a network, its after-NTK, and NTK-KARE, on real images.

Seven against nine, from scikit-learn's digits (real handwriting, 8 x 8 pixels, in the
scikit-learn package): 140 rows to train on, 40 to choose with, the others to test.
Prints one table, draws the test error over the ridge, and serves the trained kernel
machine from a SavedModel. Run it by `make quickstart`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

BANNER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|WARNING: All log messages before absl|To enable the following"
)
"""How the lines begin that TensorFlow writes about the machine, which bury a table."""


def without_banner() -> None:
    """Leave such lines out of what this process writes to its standard error."""
    sys.stderr.flush()
    shown, (end, begin) = os.dup(2), os.pipe()
    os.dup2(begin, 2)
    os.close(begin)

    def pass_on() -> None:
        with os.fdopen(end, "rb") as lines:
            for line in lines:
                if not BANNER.match(line):
                    os.write(shown, line)

    threading.Thread(target=pass_on, daemon=True).start()


if __name__ == "__main__":
    without_banner()

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_kare as kk

matplotlib.use("Agg")
import matplotlib.pyplot as plt

tf.get_logger().setLevel("ERROR")  # nine models: that each is traced is no mistake

TRAIN, VALIDATE = 140, 40
RIDGES = np.logspace(-6, 3, 19)
NAMES = ("network", "after-NTK", "NTK-KARE")


def digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Sevens (1) and nines (-1), split into training, validation and test rows."""
    data = load_digits()
    kept = np.isin(data.target, (7, 9))
    x = (data.data[kept] / 8.0 - 1.0).astype("float32")
    y = np.where(data.target[kept] == 7, 1.0, -1.0).astype("float32")[:, None]
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, (TRAIN, TRAIN + VALIDATE))
    return tuple((x[part], y[part]) for part in parts)


def network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(1),
        ]
    )


def stop_early() -> keras.callbacks.Callback:
    return keras.callbacks.EarlyStopping("val_loss", patience=20, restore_best_weights=True)


def train_all(seed: int, epochs: int) -> dict[str, tuple[keras.Model, float]]:
    """The three contenders, from the same initial weights, with seconds."""
    train, validation, _ = digits(seed)
    keras.utils.set_random_seed(seed)
    by_mse = network()
    for_kare = keras.models.clone_model(by_mse)
    for_kare.set_weights(by_mse.get_weights())

    begun = time.perf_counter()
    by_mse.compile(keras.optimizers.Adam(1e-3), "mse")
    # as datasets: Keras's epochs of so few rows take several times as long for arrays
    of_rows = tf.data.Dataset.from_tensor_slices
    by_mse.fit(
        of_rows(train).shuffle(TRAIN).batch(32),
        shuffle=False,
        epochs=epochs,
        validation_data=of_rows(validation).batch(VALIDATE),
        callbacks=[stop_early()],
        verbose=0,
    )
    network_seconds = time.perf_counter() - begun

    begun = time.perf_counter()
    after = kk.KAREModel(by_mse)
    after.fit_head(*train, validation_data=validation)
    after_seconds = network_seconds + time.perf_counter() - begun

    begun = time.perf_counter()
    model = kk.KAREModel(for_kare)
    model.compile(keras.optimizers.Adam(1e-2), loss=kk.losses.KARE(ridge=0.1))
    model.fit(
        *train,
        epochs=epochs,
        validation_data=validation,
        callbacks=[stop_early()],
        verbose=0,
    )
    kare_seconds = time.perf_counter() - begun
    return {
        "network": (by_mse, network_seconds),
        "after-NTK": (after, after_seconds),
        "NTK-KARE": (model, kare_seconds),
    }


def errors(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean squared error, and the share of right signs."""
    predicted = np.asarray(model.predict(x, verbose=0))
    return float(np.mean((predicted - y) ** 2)), float(np.mean(np.sign(predicted) == y))


def error_over_ridges(model: kk.KAREModel, seed: int) -> np.ndarray:
    """Test error for each relative ridge, all from one eigendecomposition."""
    (x, y), _, (x_test, y_test) = digits(seed)
    gram = np.asarray(model.kernel.gram(x, dtype="float64"))
    cross = np.asarray(model.kernel.cross(x_test, x, dtype="float64"))
    system = kk.solvers.System(kk.kernels.DenseOperator(gram), y)
    solutions = kk.solvers.Spectral().prepare(system).solve_grid(RIDGES * system.unit)
    return np.array([np.mean((cross @ s.dual / len(x) - y_test) ** 2) for s in solutions])


def draw(curves: dict[str, np.ndarray], flat: np.ndarray, path: Path) -> None:
    """Test error over the ridge, mean and standard error over the seeds."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    seeds = len(flat)
    styles = {"after-NTK": ("0.45", "s", "--"), "NTK-KARE": ("black", "o", "-")}
    for name, (colour, marker, line) in styles.items():
        mean = curves[name].mean(axis=0)
        spread = curves[name].std(axis=0) / np.sqrt(seeds)
        axes.plot(RIDGES, mean, color=colour, marker=marker, linestyle=line, label=name)
        axes.fill_between(
            RIDGES, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0
        )
    axes.axhline(flat.mean(), color="0.25", linestyle=":", label="network (has no ridge)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=r"relative ridge $\tilde{\lambda}$, in units of tr$(K)/n^2$",
        ylabel="test mean squared error (targets are ±1)",
        title=f"7 against 9, {TRAIN} training rows, seeds: {seeds} (band: standard error)",
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(scores: dict[str, list[tuple[float, float, float]]]) -> None:
    seeds = len(scores["network"])
    print(f"\n7 against 9, {TRAIN} training rows, mean ± sd over {seeds} seeds")
    print(f"{'':12}{'test MSE':>18}{'accuracy':>18}{'seconds':>10}")
    for name in NAMES:
        mse, accuracy, seconds = np.array(scores[name]).T
        print(
            f"{name:12}{mse.mean():9.4f} ± {mse.std():.4f}"
            f"{100 * accuracy.mean():10.1f} ± {100 * accuracy.std():.1f} %"
            f"{seconds.mean():9.1f}"
        )
    best = min(NAMES, key=lambda name: np.mean([row[0] for row in scores[name]]))
    print(f"Least mean test MSE: {best}. (Seconds of after-NTK include its network's.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("quickstart"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in NAMES[1:]}
    for seed in range(options.seeds):
        contenders = train_all(seed, options.epochs)
        _, _, test = digits(seed)
        for name, (model, seconds) in contenders.items():
            scores[name].append((*errors(model, *test), seconds))
            if name in curves:
                curves[name].append(error_over_ridges(model, seed))
        print(
            f"seed {seed}: test MSE "
            + ", ".join(f"{name} {scores[name][-1][0]:.4f}" for name in NAMES),
            flush=True,
        )
    report(scores)

    picture = options.out / "ridge.png"
    flat = np.array([row[0] for row in scores["network"]])
    draw({name: np.array(rows) for name, rows in curves.items()}, flat, picture)

    model = contenders["NTK-KARE"][0]
    served = options.out / "saved_model"
    model.export(served, verbose=False)
    x_test = test[0]
    loaded = tf.saved_model.load(str(served))
    difference = np.max(np.abs(loaded.serve(x_test) - model.predict(x_test, verbose=0)))
    print(f"\nThe head of the last NTK-KARE: {head_line(model)}")
    print(f"Picture: {picture}")
    print(f"SavedModel: {served} (largest difference of its predictions: {difference:.1e})")


def head_line(model: kk.KAREModel) -> str:
    told = model.head.report
    return (
        f"relative ridge {told['relative_ridge']:.1e} chosen by {told['chosen_by']}, "
        f"{told['rows']} rows, effective dimension {told['effective_dimension']:.1f}, "
        f"{told['form']} form"
    )


if __name__ == "__main__":
    main()
