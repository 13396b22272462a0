"""From call to first result: CPU seconds of a process, against Keras' own first `fit`.

    python benchmarks/start.py            # all tables
    python benchmarks/start.py fit --cases dense --profile

Ratios are of CPU seconds, of all threads, of one process: Keras fits the network with
Adam, `mse` and its default batches first, then come our models of the same network. Every
case runs in a process of its own; the median of `--runs` processes is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import io
import json
import pstats
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import measure
import numpy as np

import keras_kare as kk
from keras_kare.recipes.descent import Descent

ROWS = 100
layers = keras.layers


def dense() -> keras.Model:
    hidden = [layers.Dense(64, "gelu"), layers.Dense(64, "gelu")]
    return keras.Sequential([keras.Input((10,)), *hidden, layers.Dense(1)])


def cnn() -> keras.Model:
    convolutions = [layers.Conv2D(32, 3, activation="relu") for _ in range(3)]
    rest = [layers.GlobalAveragePooling2D(), layers.Dense(1)]
    return keras.Sequential([keras.Input((16, 16, 3)), *convolutions, *rest])


def lstm(steps: int = 20) -> keras.Model:
    return keras.Sequential([keras.Input((steps, 4)), layers.LSTM(32), layers.Dense(1)])


def lstm_long() -> keras.Model:
    return lstm(200)


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "dense": dense,
    "cnn": cnn,
    "lstm": lstm,
    "lstm200": lstm_long,
}


def rows(network: keras.Model, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, *network.input_shape[1:])).astype("float32")
    return x, np.sign(x.reshape(ROWS, -1)[:, :1]).astype("float32")


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of all threads."""
    gc.collect()
    begun = time.process_time()
    work()
    return time.process_time() - begun


@contextlib.contextmanager
def profiled(name: str, wanted: bool) -> Iterator[None]:
    """Prints where the time of a block went, if that is wanted."""
    if not wanted:
        yield
        return
    profile, text = cProfile.Profile(), io.StringIO()
    with profile:
        yield
    stats = pstats.Stats(profile, stream=text)
    stats.sort_stats("cumulative").print_stats("keras_kare", 30)
    print(f"--- {name}\n{text.getvalue()}")


def keras_fit(make: Callable[[], keras.Model]) -> float:
    network = make()
    x, y = rows(network)
    network.compile("adam", "mse")
    return cpu(lambda: network.fit(x, y, verbose=0))


def kare_model(make: Callable[[], keras.Model]) -> Any:
    model = kk.KAREModel(make(), head=kk.NTKRidgeHead(ridge=1e-3))
    model.compile("adam", kk.losses.KARE(0.1))
    return model


def kare_fit(make: Callable[[], keras.Model], validated: bool, epochs: int = 1) -> float:
    model = kare_model(make)
    x, y = rows(model.kernel.network)
    held = rows(model.kernel.network, seed=1) if validated else None

    def fit() -> None:
        model.fit(x, y, epochs=epochs, verbose=0, validation_data=held)

    return cpu(fit)


def measure_fit(case: str, profile: bool) -> dict[str, float]:
    """First, second and third `fit`; with validation; the first `gram`."""
    make = NETWORKS[case]
    found = {"keras": keras_fit(make)}
    found["keras again"] = keras_fit(make)
    with profiled("first fit", profile):
        found["first"] = kare_fit(make, False)
    with profiled("second fit", profile):
        found["second"] = kare_fit(make, False)
    found["ten more epochs"] = kare_fit(make, False, 11) - kare_fit(make, False)
    return found


def measure_validated(case: str, profile: bool) -> dict[str, float]:
    """The first `fit` with validation."""
    make = NETWORKS[case]
    found = {"keras": keras_fit(make)}
    with profiled("first fit with validation", profile):
        found["validated"] = kare_fit(make, True)
    return found


def measure_gram(case: str, profile: bool) -> dict[str, float]:
    """The first `gram`."""
    make = NETWORKS[case]
    found = {"keras": keras_fit(make)}
    network = make()
    x, _ = rows(network)
    kernel = kk.kernels.NTK(network)
    with profiled("first gram", profile):
        found["gram"] = cpu(lambda: kernel.gram(x))
    return found


def measure_check(case: str, profile: bool) -> dict[str, float]:
    """The first `kernel.check`."""
    make = NETWORKS[case]
    keras_fit(make)
    network = make()
    x, _ = rows(network)
    kernel = kk.kernels.NTK(network)
    with profiled("check", profile):
        return {"check": cpu(lambda: kernel.check(x))}


def measure_iris(case: str, profile: bool) -> dict[str, float]:
    """`KAREClassifier().fit` on iris, cold and warm."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    with profiled("cold", profile):
        found = {"cold": cpu(lambda: kk.sklearn.KAREClassifier().fit(x, y))}
    with profiled("warm", profile):
        found["warm"] = cpu(lambda: kk.sklearn.KAREClassifier().fit(x, y))
    return found


def measure_steps(case: str, profile: bool) -> dict[str, float]:
    """100 full batches: epochs of `fit`, and steps of one `Descent`, in one graph."""
    make = NETWORKS[case]
    kare_fit(make, False)
    found = {"epochs": kare_fit(make, False, 101) - kare_fit(make, False)}
    kernel = kk.kernels.NTK(make())
    x, y = rows(kernel.network)
    descent = Descent(kernel, kk.losses.KARE(0.1), keras.optimizers.SGD())
    descent.run(x, y, 1e-3, 1)
    found["steps"] = cpu(lambda: descent.run(x, y, 1e-3, 100))
    return found


def resident_megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def measure_memory(case: str, profile: bool) -> dict[str, float]:
    """MB that each of 25 models leaves behind."""
    make = NETWORKS[case]
    for work in (lambda: kare_fit(make, False), lambda: keras_fit(make)):
        for _ in range(3):
            work()
    found = {}
    for name, work in {
        "kare": lambda: kare_fit(make, False),
        "keras": lambda: keras_fit(make),
    }.items():
        gc.collect()
        before = resident_megabytes()
        for _ in range(25):
            work()
        gc.collect()
        found[name] = (resident_megabytes() - before) / 25
    return found


TABLES: dict[str, tuple[Callable[[str, bool], dict[str, float]], list[str]]] = {
    "fit": (measure_fit, ["dense", "cnn", "lstm"]),
    "validated": (measure_validated, ["dense", "cnn", "lstm"]),
    "gram": (measure_gram, ["dense", "cnn", "lstm"]),
    "check": (measure_check, ["dense", "cnn", "lstm", "lstm200"]),
    "steps": (measure_steps, ["dense"]),
    "iris": (measure_iris, ["iris"]),
    "memory": (measure_memory, ["dense"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=[])
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        table, case = arguments.one
        print(json.dumps(TABLES[table][0](case, arguments.profile)))
        return
    print(measure.machine())
    for table in arguments.tables or TABLES:
        function, cases = TABLES[table]
        print(f"\n{function.__doc__} CPU seconds{' (MB)' if table == 'memory' else ''}")
        for case in arguments.cases or cases:
            if arguments.profile:
                warmed = function(case, True)
                print({k: round(v, 3) for k, v in warmed.items()})
                continue
            runs = [
                measure.in_fresh_process(__file__, "--one", table, case)
                for _ in range(arguments.runs)
            ]
            found = {k: float(np.median([run[k] for run in runs])) for k in runs[0]}
            base = found.get("keras")
            parts = [
                f"{k} {v:.2f}" + (f" ({v / base:.2f})" if base and k != "keras" else "")
                for k, v in found.items()
            ]
            print(f"  {case:8s} {', '.join(parts)}")


if __name__ == "__main__":
    main()
