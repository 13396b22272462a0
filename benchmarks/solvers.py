"""From a thousand rows to a million: which solver, how long, how much memory, how exact.

Each measurement is a process of its own, so that its peak memory is its own. Run

    python benchmarks/solvers.py ladder      # n = 10^3 ... 10^6, and a plot
    python benchmarks/solvers.py mnist       # 60,000 rows, ten classes
    python benchmarks/solvers.py wide        # 130,000 x 50 synthetic rows, 23,169 variables
    python benchmarks/solvers.py stream      # 1,000,000 x 28 rows that are never in memory
    python benchmarks/solvers.py tables      # prints what was measured, as Markdown

EigenPro is run by the interpreter that `EIGENPRO_PYTHON` names, of an environment with
`benchmarks/peers/eigenpro.txt`. FALKON is not run: pip found no release of it.
MNIST comes through `keras_kare.datasets.mnist_digits`: tensorflow-datasets downloads it.
Results are kept in `--out` as CSV files, row by row; what is there is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

import keras_kare as kk

DENSE = [784, 256, 256, 1]
RIDGES = (1.0, 1e-2)
LADDER = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
TABLES = ("ladder", "mnist", "wide", "stream")
STREAM = (125_000, 250_000, 500_000, 1_000_000)


def peak() -> float:
    """Most memory that this process has held, GB."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def dense(*widths: int, activation: str = "relu") -> keras.Model:
    """A fully connected network."""
    first, *hidden, last = widths
    layers = [keras.layers.Dense(width, activation) for width in hidden]
    return keras.Sequential([keras.Input((first,)), *layers, keras.layers.Dense(last)])


def small_cnn() -> keras.Model:
    """A convolutional network of 4,881 variables."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 5, strides=2, activation="relu"),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(24, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )


def synthetic(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of standard normals, and targets of a smooth function of them with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)).astype("float32")
    y = np.sin(x[:, :1] + x[:, 1:2] * x[:, 2:3]) + 0.1 * rng.normal(size=(rows, 1))
    return x, y.astype("float32")


def facts(report: dict, **more: object) -> dict:
    """A line of a table, from a head's report."""
    names = ("solver", "iterations", "residual", "stopped", "jitter", "kernel_error")
    return {**{name: report[name] for name in names}, **more, "peak_gb": peak()}


def ladder(rows: int, ridge: float) -> dict:
    """`solver="auto"` on synthetic rows."""
    keras.utils.set_random_seed(0)
    x, y = synthetic(rows + 1000, 28)
    network = dense(28, 64, 1, activation="gelu")
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=ridge))
    begun = time.perf_counter()
    model.fit_head(x[:rows], y[:rows])
    seconds = time.perf_counter() - begun
    error = float(np.mean((model.predict(x[rows:], verbose=0) - y[rows:]) ** 2))
    return facts(model.head.report, seconds=seconds, test_mse=error)


def wide(ridge: float) -> dict:
    """130,000 x 50 rows, a network of 23,169 variables, to a residual of 1e-4."""
    keras.utils.set_random_seed(0)
    x, y = synthetic(131_000, 50)
    network = dense(50, 128, 128, 1, activation="gelu")
    solver = kk.solvers.CG(tolerance=1e-4, memory_limit=4_500_000_000)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=ridge, solver=solver))
    begun = time.perf_counter()
    model.fit_head(x[:130_000], y[:130_000])
    seconds = time.perf_counter() - begun
    error = float(np.mean((model.predict(x[130_000:], verbose=0) - y[130_000:]) ** 2))
    return facts(model.head.report, seconds=seconds, test_mse=error)


def stream(rows: int) -> dict:
    """Rows that a dataset makes as they are asked for; sums of `JᵀJ`."""
    keras.utils.set_random_seed(0)
    batch = 5_000

    def make(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.random.stateless_normal((batch, 28), [0, tf.cast(i, tf.int32)])
        return x, tf.sin(x[:, :1] + x[:, 1:2] * x[:, 2:3])

    dataset = tf.data.Dataset.range(rows // batch).map(make)
    head = kk.NTKRidgeHead(ridge=1.0, solver="primal", keep_anchors=False)
    model = kk.KAREModel(dense(28, 64, 1, activation="gelu"), head=head)
    begun = time.perf_counter()
    model.fit_head(dataset)
    seconds = time.perf_counter() - begun
    x, y = make(tf.constant(10**6))
    error = float(np.mean((model.predict(x, verbose=0) - y.numpy()) ** 2))
    return facts(model.head.report, seconds=seconds, test_mse=error)


def trained(shape: str, how: str, x: np.ndarray, y: np.ndarray) -> kk.KAREModel:
    """A network trained for an epoch or two: `"mse"`, or by KARE of batches."""
    keras.utils.set_random_seed(0)
    network = small_cnn() if shape == "cnn" else dense(*DENSE)
    model = kk.KAREModel(network)
    if how == "mse":
        # One output and ten targets: the network learns through ten last layers.
        features = keras.Model(network.inputs, network.layers[-2].output)
        classifier = keras.Sequential([features, keras.layers.Dense(10)])
        classifier.compile(keras.optimizers.Adam(1e-3), "mse")
        classifier.fit(x, y, epochs=2, batch_size=128, verbose=0)
        return model
    model.compile(keras.optimizers.Adam(1e-3), kk.losses.KARE(ridge=1.0, relative=True))
    order = np.random.default_rng(0).permutation(len(x))[:20_000]
    for begin in range(0, len(order), 1000):
        part = order[begin : begin + 1000]
        model.train_on_batch(x[part], y[part])
    return model


def classify(shape: str, how: str, ridge: float) -> dict:
    """The head of a trained network on all 60,000 rows of MNIST."""
    data = kk.datasets.mnist_digits()
    x, y, xt, yt = data.x, data.y, data.x_test, np.argmax(data.y_test, axis=1)
    if shape == "dense":
        x, xt = x.reshape(len(x), -1), xt.reshape(len(xt), -1)
    begun = time.perf_counter()
    model = trained(shape, how, x, y)
    training = time.perf_counter() - begun
    cg = kk.solvers.CG(tolerance=9e-4, memory_limit=4 * 10**9)
    solver = kk.solvers.Primal() if shape == "cnn" else cg
    head = kk.NTKRidgeHead(ridge=ridge, solver=solver)
    model = kk.KAREModel(model.kernel, head=head)
    before = peak()
    begun = time.perf_counter()
    model.fit_head(x, y)
    seconds = time.perf_counter() - begun
    wrong = float(np.mean(np.argmax(model.predict(xt, verbose=0), axis=1) != yt))
    return facts(
        model.head.report,
        seconds=seconds,
        test_error=wrong,
        training_seconds=training,
        peak_before_gb=before,
    )


def eigenpro(
    python: str, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray
) -> dict:
    """EigenPro of scikit-learn-extra, by an interpreter that has it."""
    script = Path(__file__).parent / "peers" / "eigenpro_contender.py"
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        np.savez(rows, x=x, y=np.argmax(y, axis=1), xt=xt, yt=yt)
        command = [python, str(script), str(rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def baseline(name: str) -> dict:
    """Kernel machines of others on MNIST's pixels."""
    data = kk.datasets.mnist_digits()
    x, xt = data.x.reshape(-1, 784), data.x_test.reshape(-1, 784)
    y, yt = data.y, np.argmax(data.y_test, axis=1)
    if name.startswith("EigenPro"):  # all rows take it more than half an hour
        x, y = x[:10_000], y[:10_000]
        return {"solver": name, **eigenpro(os.environ["EIGENPRO_PYTHON"], x, y, xt, yt)}
    if name == "KernelRidge, 10,000 rows":
        from sklearn.kernel_ridge import KernelRidge

        model = KernelRidge(alpha=1e-3, kernel="laplacian", gamma=1.0 / 784)
        x, y = x[:10_000], y[:10_000]
    else:
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        centres = int(name.split()[1].replace(",", ""))
        features = Nystroem("rbf", gamma=0.02, n_components=centres, random_state=0)
        model = make_pipeline(features, Ridge(alpha=1e-3))
    begun = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - begun
    wrong = float(np.mean(np.argmax(model.predict(xt), axis=1) != yt))
    return {"solver": name, "seconds": seconds, "test_error": wrong, "peak_gb": peak()}


def jobs(table: str) -> list[dict]:
    """The measurements of a table."""
    if table == "ladder":
        return [{"rows": n, "ridge": r} for n in LADDER for r in RIDGES]
    if table == "wide":
        return [{"ridge": ridge} for ridge in RIDGES]
    if table == "stream":
        return [{"rows": n} for n in STREAM]
    heads = [
        {"shape": shape, "how": how, "ridge": ridge}
        for shape in ("cnn", "dense")
        for how in ("mse", "kare")
        for ridge in RIDGES
    ]
    names = ["KernelRidge, 10,000 rows", "Nystroem 1,000", "Nystroem 4,000"]
    if "EIGENPRO_PYTHON" in os.environ:
        names.append("EigenPro (scikit-learn-extra), 10,000 rows")
    return heads + [{"baseline": name} for name in names]


def measure(table: str, job: dict) -> dict:
    """One line of a table."""
    if "baseline" in job:
        return {"shape": "pixels", **baseline(job["baseline"])}
    if table == "mnist":
        return {**job, **classify(**job)}
    return {**job, **{"ladder": ladder, "wide": wide, "stream": stream}[table](**job)}


def apart(table: str, job: dict) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, table, "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, lines: list[dict]) -> None:
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(lines)


def tables(folder: Path) -> None:
    """Print what was measured, as Markdown."""
    for table in TABLES:
        path = folder / f"{table}.json"
        if not path.exists():
            continue
        lines = json.loads(path.read_text())
        names = list(
            dict.fromkeys(name for line in lines for name in line if name != "job")
        )
        names = [n for n in names if any(line.get(n) not in (None, 0.0) for line in lines)]
        print(f"\n### {table}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for line in lines:
            cells = (line.get(name) for name in names)
            print(f"| {' | '.join(_cell(cell) for cell in cells)} |")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def draw(lines: list[dict], path: Path, title: str) -> None:
    """Seconds and peak memory over the number of rows."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    styles = {"spectral": "s", "cholesky": "^", "primal": "o", "cg": "D"}
    for name, marker in styles.items():
        found = [line for line in lines if line["solver"] == name]
        rows = [int(line["rows"]) for line in found]
        for axes, key in ((left, "seconds"), (right, "peak_gb")):
            values = [float(line[key]) for line in found]
            if found:
                axes.plot(rows, values, marker, color="black", label=name, mfc="none")
    counts = np.array(sorted({int(line["rows"]) for line in lines}))
    last = [float(x["seconds"]) for x in lines if int(x["rows"]) == counts[-1]]
    left.loglog(
        counts, last[0] * counts / counts[-1], ":", color="0.6", label="linear in n"
    )
    left.set(yscale="log", ylabel="seconds")
    right.set_ylim(0.0, 1.25 * max(float(line["peak_gb"]) for line in lines))
    right.set_ylabel("peak memory of the process (GB)")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="rows n")
        axes.set_xticks(counts, [_short(count) for count in counts])
        axes.minorticks_off()
        axes.legend(loc="lower right")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    left.yaxis.set_major_formatter("{x:g}")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _short(rows: int) -> str:
    return f"{rows / 1e6:g}M" if rows >= 1e6 else f"{rows / 1e3:g}k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=(*TABLES, "tables"))
    parser.add_argument("--out", default="results/solvers", type=Path)
    parser.add_argument("--most", type=int, help="rows of the largest measurement")
    parser.add_argument("--job", help="one measurement, as JSON; prints a line")
    arguments = parser.parse_args()
    if arguments.table == "tables":
        tables(arguments.out)
        return
    if arguments.job:
        keras.utils.disable_interactive_logging()
        line = measure(arguments.table, json.loads(arguments.job))
        print(json.dumps(line))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / f"{arguments.table}.json"
    wanted = jobs(arguments.table)
    lines = json.loads(kept.read_text()) if kept.exists() else []
    for job in wanted:
        if arguments.most and job.get("rows", 0) > arguments.most:
            continue
        if any(line["job"] == job for line in lines):
            continue
        line = {"job": job, **apart(arguments.table, job)}
        lines.append(line)
        lines.sort(key=lambda line: _place(line["job"], wanted))
        kept.write_text(json.dumps(lines, indent=1))
        print({k: v for k, v in line.items() if k != "job"}, flush=True)
        publish(arguments.table, lines, arguments.out)


def _place(job: dict, wanted: list[dict]) -> int:
    return wanted.index(job) if job in wanted else len(wanted)


def publish(table: str, lines: list[dict], folder: Path) -> None:
    """The CSV file, and the picture where there is one, of what was measured so far."""
    plain = [{k: v for k, v in line.items() if k != "job"} for line in lines]
    write(folder / f"{table}.csv", plain)
    if table in ("ladder", "stream"):
        title = {
            "ladder": 'solver="auto", ridges 1 and 0.01, 28-64-1 network, synthetic rows',
            "stream": "primal head of a stream, 28-64-1 network, synthetic rows",
        }[table]
        draw(plain, folder / f"{table}.png", title)


if __name__ == "__main__":
    main()
