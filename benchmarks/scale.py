"""Gram matrices of many rows: time against plain products, memory, tiles on disk.

    python benchmarks/scale.py                 # all that needs no data
    python benchmarks/scale.py --only disk     # MNIST; KERAS_KARE_DATA names its folder

Every measurement runs in a fresh process, alone. Memory is the most that the process
held, above what it held before the work (libraries loaded, functions traced).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import measure
import numpy as np
import tensorflow as tf
from keras import layers

import keras_kare as kk

LIMIT = 160_000_000
"""Bytes that the work may hold in the table over rows."""


def wide() -> keras.Model:
    """784-1000-10, of google/neural-tangents issue 106."""
    hidden = layers.Dense(1000, "relu")
    return keras.Sequential([keras.Input((784,)), hidden, layers.Dense(10)])


def small_cnn() -> keras.Model:
    convolutions = [
        layers.Conv2D(32, 3, padding="same", activation="relu") for _ in range(3)
    ]
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(1)]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *pooled])


def dense_images() -> keras.Model:
    body = [layers.Flatten(), layers.Dense(1024, "relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *body])


def convolution_images() -> keras.Model:
    body = [layers.Conv2D(64, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((28, 28, 1)), *body, layers.Dense(10)])


def unet() -> keras.Model:
    """Depth 3, 16 filters, one output a pixel; the kernel is of their sum."""

    def block(h, filters):
        for _ in range(2):
            h = layers.Conv2D(filters, 3, padding="same", activation="relu")(h)
        return h

    x = keras.Input((64, 64, 1))
    h, skips = x, []
    for depth in range(3):
        skips.append(block(h, 16 * 2**depth))
        h = layers.MaxPooling2D()(skips[-1])
    h = block(h, 16 * 2**3)
    for depth in reversed(range(3)):
        h = layers.Conv2DTranspose(16 * 2**depth, 2, strides=2)(h)
        h = block(layers.Concatenate()([h, skips[depth]]), 16 * 2**depth)
    return keras.Model(x, layers.Conv2D(1, 1)(h))


def text() -> keras.Model:
    body = [layers.Embedding(50_000, 128), layers.GlobalAveragePooling1D()]
    return keras.Sequential([keras.Input((200,), dtype="int32"), *body, layers.Dense(1)])


FITS = {
    "28x28x1, Dense 1024 + Dense 10, trace": (dense_images, "trace", 64),
    "28x28x1, Conv 64 of 3x3 + pooling + Dense 10, trace": (
        convolution_images,
        "trace",
        64,
    ),
    "U-Net, depth 3, 16 filters, 64x64x1, sum": (unet, "sum", 10),
    "Embedding(50,000, 128) + pooling + Dense, 200 tokens": (text, "sum", 256),
}


def random_rows(network: keras.Model, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    spec = network.inputs[0]
    shape = (n, *spec.shape[1:])
    if spec.dtype == "int32":  # words as frequent as in text, ever rarer
        return (np.minimum(rng.zipf(1.2, size=shape), 50_000) - 1).astype("int32")
    return rng.normal(size=shape).astype("float32")


def products(n: int) -> float:
    """Seconds of the plain products of 784-1000-10's features, upper triangle only."""
    columns = (784 + 1) + 10 * 1000 + (1000 + 1) + 10 * 10
    a = tf.random.normal((n, columns))
    step, total, area = 1024, 0.0, 0
    for i in range(0, n, step):
        for j in range(i, n, step):
            left, right = a[i : i + step], a[j : j + step]
            begun = time.perf_counter()
            tf.matmul(left, right, transpose_b=True)
            total += time.perf_counter() - begun
            area += len(left) * len(right)
    return total * (n * n / 2) / area


def ideal(n: int) -> dict[str, float]:
    """The gram against its products, in turns; and the memory of the first."""
    kernel = kk.kernels.NTK(wide(), "trace")
    x = random_rows(kernel.network, n)
    kernel.check(x)
    tf.matmul(tf.zeros((1024, 1000)), tf.zeros((1000, 1024)))
    before = measure.peak_megabytes()
    kernel.gram(x)
    added = measure.peak_megabytes() - before
    times = {"gram": np.inf, "products": np.inf}
    for _ in range(3):
        begun = time.perf_counter()
        kernel.gram(x)
        times["gram"] = min(times["gram"], time.perf_counter() - begun)
        times["products"] = min(times["products"], products(n))
    return {**times, "added": added, "result": n * n * 4e-6}


def rows(n: int) -> dict[str, float]:
    """One gram within `LIMIT`."""
    kernel = kk.kernels.NTK(wide(), "trace", memory_limit=LIMIT)
    x = random_rows(kernel.network, n)
    kernel.check(x)
    tf.matmul(tf.zeros((1024, 1000)), tf.zeros((1000, 1024)))
    before = measure.peak_megabytes()
    kernel.gram(x[:2100])  # traces, and counts as memory
    begun = time.perf_counter()
    kernel.gram(x)
    seconds = time.perf_counter() - begun
    plan = kernel.plan(x)
    return {
        "seconds": seconds,
        "beside": measure.peak_megabytes() - before - n * n * 4e-6,
        "tile": plan.tile,
        "panel": plan.panel,
    }


def fits(name: str, what: str) -> dict[str, float]:
    """The whole process: one gram, or one gradient of KARE."""
    make, outputs, n = FITS[name]
    network = make()
    kernel = kk.kernels.NTK(network, outputs, memory_limit=10**9)
    x, y = random_rows(network, n), tf.random.normal((n, 1))
    kernel.check(x)
    variables = [v.value for v in network.trainable_variables]
    idle = measure.peak_megabytes()

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            risk = kk.risk.kare(y, kernel.gram(tf.constant(x)), 0.1)
        return tape.gradient(risk, variables, unconnected_gradients="zero")

    begun = time.perf_counter()
    if what == "gram":
        measure.finish(kernel.gram(x))
    else:
        # A gradient by a table is sparse; it is not turned dense here.
        measure.finish([tf.convert_to_tensor(g) for g in gradient()])
    return {
        "seconds": time.perf_counter() - begun,
        "total": measure.peak_megabytes(),
        "added": measure.peak_megabytes() - idle,
    }


def disk(folder: str, n: int, images: str) -> None:
    """In a process of its own, to be interrupted: a gram of MNIST rows, to a file."""
    with gzip.open(images) as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    keras.utils.set_random_seed(0)
    kernel = kk.kernels.NTK(small_cnn())
    begun = time.perf_counter()
    kernel.gram((pixels[:n] / 255).astype("float32"), out=Path(folder) / "gram.npy")
    print(json.dumps({"seconds": time.perf_counter() - begun}))


def show_ideal() -> None:
    found = measure.in_fresh_process(__file__, "--one", "ideal", 10_000)
    print("## 784-1000-10, trace NTK of 10,000 rows, float32\n")
    print(f"gram                 {found['gram']:7.2f} s")
    print(f"its plain products   {found['products']:7.2f} s (half of them, by symmetry)")
    print(f"ratio                {found['gram'] / found['products']:7.2f}")
    beside = found["added"] - found["result"]
    print(f"memory beside the result of {found['result']:.0f} MB: {beside:.0f} MB\n")


def show_rows() -> None:
    print(f"## The same network within memory_limit={LIMIT:,}\n")
    print("| rows | seconds | times half the rows | MB beside the result | tile | panel |")
    print("|---:|---:|---:|---:|---:|---:|")
    last = None
    for n in (2_500, 5_000, 10_000, 20_000):
        tries = [measure.in_fresh_process(__file__, "--one", "rows", n) for _ in range(2)]
        found = min(tries, key=lambda f: f["seconds"])
        ratio = f"{found['seconds'] / last:.2f}" if last else ""
        print(
            f"| {n:,} | {found['seconds']:.2f} | {ratio} | {found['beside']:.0f} | "
            f"{found['tile']} | {found['panel']} |"
        )
        last = found["seconds"]
    print()


def show_fits() -> None:
    print("## Within 2 GB: most memory of the whole process, libraries included\n")
    print("| network | rows | gram: MB (of them the work) | KARE's gradient |")
    print("|---|---:|---:|---:|")
    for name, (_, _, n) in FITS.items():
        cells = []
        for what in ("gram", "step"):
            found = measure.in_fresh_process(__file__, "--one", "fits", name, what)
            cells.append(f"{found['total']:.0f} ({found['added']:.0f})")
        print(f"| {name} | {n} | {' | '.join(cells)} |")
    print()


def show_disk() -> None:
    data = os.environ.get("KERAS_KARE_DATA")
    images = Path(data or "") / "mnist" / "train-images-idx3-ubyte.gz"
    if not data or not images.exists():
        print("(tiles on disk: set KERAS_KARE_DATA to a folder that holds mnist/)")
        return
    n = 20_000
    print(f"## {n:,} rows of MNIST, three convolutions of 32, to a file\n")
    folder = tempfile.mkdtemp(dir=".")
    try:
        command = [sys.executable, __file__, "--one", "disk", folder, str(n), str(images)]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(35)
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate()
        note = Path(folder) / "gram.npy.tiles.json"
        noted = json.loads(note.read_text())
        done, tile = noted["done"], noted["tile"]
        stamp = (Path(folder) / "gram.npy").stat().st_size
        print(f"Ctrl-C after 35 s: {len(done)} tiles done; the last lines it printed:")
        for line in errors.decode().strip().splitlines()[-2:]:
            print(f"    {line}")
        begun = np.load(Path(folder) / "gram.npy", mmap_mode="r")
        kept = [np.array(begun[i * tile, j * tile]) for i, j, _ in done]
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = json.loads(second.stdout.strip().splitlines()[-1])["seconds"]
        total = len(json.loads(note.read_text())["done"])
        values = np.load(Path(folder) / "gram.npy", mmap_mode="r")
        again = [np.array(values[i * tile, j * tile]) for i, j, _ in done]
        print(
            f"The same call again: {total - len(done)} of {total} tiles in {seconds:.0f} s"
        )
        print(
            f"file of {stamp / 1e9:.2f} GB, values kept: {kept == again}, finite: ", end=""
        )
        print(bool(np.isfinite(values[::977]).all()))
    finally:
        shutil.rmtree(folder)
    print()


SHOWN = {"ideal": show_ideal, "rows": show_rows, "fits": show_fits, "disk": show_disk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        keras.utils.disable_interactive_logging()
        name, *arguments = options.one
        if name == "disk":
            disk(arguments[0], int(arguments[1]), arguments[2])
        elif name == "fits":
            print(json.dumps(fits(*arguments)))
        else:
            print(json.dumps({"ideal": ideal, "rows": rows}[name](int(arguments[0]))))
        return
    print(f"{measure.machine()}\n")
    for name in options.only:
        SHOWN[name]()


if __name__ == "__main__":
    main()
