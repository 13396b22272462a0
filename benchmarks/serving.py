"""Latency of served models: the network itself, and its kernel machine in both forms.

    python benchmarks/serving.py

Everything is exported as a SavedModel, loaded by TensorFlow, and called through its
signature `serving_default`, one request at a time, in turns of random order, so that
noise meets all alike. What Python and TensorFlow need to call anything at all is in
every number. p50 and p99 are over the calls of one run; ratios are of p50.

The machine of 500 rows is solved. That of 50,000 rows is not, since its system would
take 20 GB: its `w = (1/n) J(X)ᵀ α` is summed over 50,000 random rows with a random α,
which takes as much to predict with as any other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import measure
import numpy as np
import tensorflow as tf

import keras_kare as kk

SOLVED, MANY, CHUNK = 500, 50_000, 500
BATCHES = (1, 8, 64, 256)
SELDOM = 10
"""Turns between two calls of the dual form, which is slow."""

Call = Callable[[tf.Tensor], Any]


def dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((576,)),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(1),
        ],
        name="dense",
    )


def conv() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ],
        name="conv",
    )


NETWORKS = {"dense": dense, "conv": conv}
TITLES = {
    "dense": "576-64-64-1, GELU",
    "conv": "28x28x1, convolutions of 16 and 32 with strides, ReLU",
}


def rows(network: keras.Model, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(count, *network.input_shape[1:])).astype("float32")


def solved(network: keras.Model, targets: int) -> kk.KAREModel:
    rng = np.random.default_rng(0)
    head = kk.NTKRidgeHead(ridge=1.0, form="primal")
    model = kk.KAREModel(network, head=head)
    model.fit_head(rows(network, SOLVED, rng), rng.normal(size=(SOLVED, targets)))
    return model


def put_many_rows_in(model: kk.KAREModel, count: int) -> None:
    """Give the head a `w` that is summed over so many rows, with a random α."""
    rng, total = np.random.default_rng(1), None
    for _ in range(0, count, CHUNK):
        x = rows(model.network, CHUNK, rng)
        dual = rng.normal(size=(CHUNK, model.machine.state.columns)) / count
        w = model.kernel.vjp(x, dual, dtype="float64")
        total = w if total is None else [a + b for a, b in zip(total, w, strict=True)]
    store: dict[str, Any] = {}
    model.head.save_own_variables(store)
    for i, part in enumerate(total):
        store[f"weight_{i}"] = tf.cast(part, tf.float32).numpy()
    model.head.load_own_variables(store)


def served(folder: Path, export: Callable[[str], None]) -> Call:
    """A function from rows to outputs: the signature of an exported model."""
    export(str(folder))
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]

    def call(x: tf.Tensor) -> np.ndarray:
        (outputs,) = signature(**{name: x}).values()
        return outputs.numpy()

    return call


def contenders(
    network: keras.Model, targets: int, many: int, folder: Path
) -> dict[str, Call]:
    model = solved(network, targets)

    def export(form: str) -> Callable[[str], None]:
        return lambda to: model.export(to, form=form, verbose=False)

    found = {
        "network": served(folder / "network", lambda to: network.export(to, verbose=False)),
        f"dual, {SOLVED} rows": served(folder / "dual", export("dual")),
        f"primal, {SOLVED} rows": served(folder / "primal", export("primal")),
    }
    put_many_rows_in(model, many)
    found[f"primal, {many:,} rows"] = served(folder / "many", export("primal"))
    return found


def latencies(
    functions: dict[str, Call], x: tf.Tensor, turns: int
) -> dict[str, np.ndarray]:
    """Seconds of every call."""
    for function in functions.values():
        for _ in range(3):  # traced, optimised and warm
            function(x)
    found: dict[str, list[float]] = {name: [] for name in functions}
    order, rng = list(functions), np.random.default_rng(0)
    for turn in range(turns):
        rng.shuffle(order)
        for name in order:
            if "dual" in name and turn % SELDOM:
                continue
            begun = time.perf_counter()
            functions[name](x)
            found[name].append(time.perf_counter() - begun)
    return {name: np.array(seconds) for name, seconds in found.items()}


def compare(title: str, network: keras.Model, targets: int, turns: int, many: int) -> None:
    print(f"\n## {title}; {targets} target{'s' * (targets > 1)}\n")
    print("| rows a request | served | p50 µs | p99 µs | p50 / network's | calls |")
    print("|---:|---|---:|---:|---:|---:|")
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        functions = contenders(network, targets, many, Path(folder))
        for batch in BATCHES:
            x = tf.constant(rows(network, batch, np.random.default_rng(2)))
            found = latencies(functions, x, turns)
            p50 = {name: float(np.median(seconds)) for name, seconds in found.items()}
            told[batch] = p50
            for name, seconds in found.items():
                print(
                    f"| {batch} | {name} | {1e6 * p50[name]:.0f} "
                    f"| {1e6 * np.quantile(seconds, 0.99):.0f} "
                    f"| {p50[name] / p50['network']:.2f} | {len(seconds)} |",
                    flush=True,
                )
    one, few, lots = told[1], f"primal, {SOLVED} rows", f"primal, {many:,} rows"
    print(
        f"\nOne row, {targets} target{'s' * (targets > 1)}: primal / network "
        f"{one[few] / one['network']:.2f}; {many:,} / {SOLVED} training rows "
        f"{one[lots] / one[few]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--many", type=int, default=MANY, help="rows summed into w")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--targets", nargs="+", type=int, default=(1, 10))
    options = parser.parse_args()
    print(measure.machine())
    for name in options.networks:
        for targets in options.targets:
            keras.utils.set_random_seed(0)
            network = NETWORKS[name]()
            compare(TITLES[name], network, targets, options.turns, options.many)


if __name__ == "__main__":
    main()
