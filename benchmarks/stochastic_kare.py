"""KARE of all rows by random probes: its error, the bias of mini-batches, and training.

    python benchmarks/stochastic_kare.py
    python benchmarks/stochastic_kare.py --part training --warm 60 --rates 3e-4 1e-3
    python benchmarks/stochastic_kare.py --rows 300 --train-rows 600 --seconds 2 --seeds 5

First, on rows whose Gram matrix still fits: exact KARE and its gradient, their stochastic
estimates over seeds of the probes, and mini-batches, before and after some training.
Then training on many rows for the same time: mini-batch KARE against `FullKARE`, from the
start or after some training by mini-batches.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator

import keras
import measure
import numpy as np
import tensorflow as tf

import keras_kare as kk
from keras_kare.datasets import mnist, simulation

BATCHES = (128, 512, 1024)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RIDGES = (0.1, 1.0, 10.0, 100.0)
"""Relative ridges of the machine, of which validation rows choose."""

GAMMA, SIGMA = 2.0, 0.2
"""Of the simulated data: how fast targets vary, and the deviation of their noise."""


class Data:
    """Training, validation and test rows in float32."""

    def __init__(self, name: str, train: int, others: int, seed: int = 0):
        if name == "mnist":
            split = mnist(rows=train + others, test_rows=None, seed=seed)
            x, y = split.x[:train], split.y[:train]
            held = split.x[train:], split.y[train:]
            test = split.x_test[:others], split.y_test[:others]
        else:
            total = train + 2 * others
            split = simulation(
                total, gamma=GAMMA, sigma=SIGMA, train_fraction=(train + 0.5) / total
            )
            x, y = split.x, split.y
            held = split.x_test[:others], split.y_test[:others]
            test = split.x_test[others:], split.y_test[others:]
        pairs = ((x, y), held, test)
        self.train, self.held, self.test = (
            tuple(part.astype("float32") for part in pair) for pair in pairs
        )


def make_kernel(x: np.ndarray) -> kk.kernels.NTK:
    keras.utils.set_random_seed(0)
    return kk.kernels.NTK(
        keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Dense(64, "gelu"),
                keras.layers.Dense(64, "gelu"),
                keras.layers.Dense(1),
            ]
        )
    )


def flat(gradients: list[tf.Tensor]) -> np.ndarray:
    return np.concatenate([np.ravel(g) for g in gradients]).astype("float64")


def exact(kernel: kk.kernels.NTK, x: np.ndarray, y: np.ndarray, ridge: float, rel: bool):
    """KARE of the float64 Gram matrix, and its gradient."""
    with tf.GradientTape() as tape:
        gram = kernel.gram(x, dtype="float64")
        unit = tf.linalg.trace(gram) / len(x) ** 2 if rel else tf.ones((), "float64")
        value = kk.risk.kare(y.astype("float64"), gram, ridge * unit)
    variables = [v.value for v in kernel.trainable_variables]
    gradients = tape.gradient(value, variables, unconnected_gradients="zero")
    return float(value), flat(gradients)


def batches(rows: int, size: int, count: int) -> Iterator[np.ndarray]:
    """Row numbers of whole batches, from new shuffles."""
    rng = np.random.default_rng(0)
    while count > 0:
        order = rng.permutation(rows)
        for begin in range(0, rows - size + 1, size):
            if count > 0:
                yield order[begin : begin + size]
            count -= 1


class Sample:
    """Values and gradients that are to have a mean."""

    def __init__(self, pairs: list[tuple[float, np.ndarray]]):
        self.values = np.array([value for value, _ in pairs])
        self.gradients = np.array([gradient for _, gradient in pairs])
        self.count = len(pairs)

    def row(self, name: str, value: float, gradient: np.ndarray) -> str:
        """A line of the table, against what is exact."""
        error = np.std(self.values, ddof=1) / np.sqrt(self.count)
        size = np.linalg.norm(gradient)
        noise = np.linalg.norm(np.std(self.gradients, axis=0, ddof=1)) / size
        mean = np.mean(self.gradients, axis=0)
        off = np.linalg.norm(mean - gradient) / size
        along = mean @ gradient / np.linalg.norm(mean) / size
        return (
            f"  {name:24}{np.mean(self.values):10.5f} ± {error:.5f}"
            f"{(np.mean(self.values) - value) / error:8.1f}"
            f"{noise:10.2f}{off:10.3f} ± {noise / np.sqrt(self.count):.3f}{along:9.3f}"
        )


def compare(kernel, data: Data, ridge: float, rel: bool, options) -> None:
    """One table: exact, stochastic, mini-batches, at the present weights."""
    x, y = data.train
    value, gradient = exact(kernel, x, y, ridge, rel)
    kind = f"ridge {ridge:g}{' tr(K)/n²' if rel else ''}"
    found = kk.stochastic.kare_and_gradient(
        kernel, x, y, ridge, options.probes, 0, "stochastic", relative=rel
    )[0]
    error = machine_errors(kernel, data, [found.ridge])[0, 1]
    print(
        f"{kind}: exact KARE {value:.5f}, test MSE of that machine {error:.5f}\n"
        f"  one estimate of {options.probes} probes: {found.value:.5f} ± "
        f"{found.standard_error:.5f}, residual {found.residual:.0e}\n"
        "  mean of                      KARE ± error    /error  "
        "gradient: noise      off ± error   cosine"
    )
    pairs = []
    for seed in range(options.seeds):
        estimate, parts = kk.stochastic.kare_and_gradient(
            kernel, x, y, ridge, options.probes, seed, "stochastic", relative=rel
        )
        pairs.append((estimate.value, flat(parts)))
    print(Sample(pairs).row(f"{options.seeds} seeds", value, gradient), flush=True)
    for size in BATCHES:
        if size > len(x) // 2:
            continue
        count = max(2, min(options.seeds, 40))
        pairs = [
            exact(kernel, x[i], y[i], ridge, rel) for i in batches(len(x), size, count)
        ]
        name = f"{count} batches of {size}"
        print(Sample(pairs).row(name, value, gradient), flush=True)
    print()


def machine_errors(kernel, data: Data, ridges: list[float]) -> np.ndarray:
    """Errors of the machines on all training rows: on validation and on test rows.

    Mean squared, `(len(ridges), 2)`; the ridges are absolute.
    """
    x, y = data.train
    system = kk.solvers.System(kernel.operator(x), y)
    prepared, found, start = kk.solvers.CG(1e-4).prepare(system), {}, None
    for ridge in sorted(ridges, reverse=True):  # from the easiest system on
        start = prepared.solve(ridge, start)
        w = system.operator.vjp(start.dual / len(x))
        found[ridge] = [
            np.mean((kernel.jvp(rows, w).numpy() - targets) ** 2)
            for rows, targets in (data.held, data.test)
        ]
    return np.array([found[ridge] for ridge in ridges])


class Deadline(keras.callbacks.Callback):
    """Stops training before the step for which there is probably no time any more."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.steps, self.begun = seconds, 0, 0.0

    def on_train_begin(self, logs=None):
        self.begun = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        past = time.monotonic() - self.begun
        if past + past / self.steps > self.seconds:
            self.model.stop_training = True


def train(kernel, data: Data, loss, batch: int, rate: float, seconds: float) -> int:
    """Train for so long, without the time of tracing. The steps taken, at least one."""
    x, y = data.train
    model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.Adam(rate), loss)
    kernel.check(x, batch)
    model.optimizer.build(model.trainable_variables)
    states = [*model.weights, *model.optimizer.variables]
    before = [keras.ops.convert_to_numpy(state) for state in states]
    # not `KAREModel.fit`, which would solve a head
    fit = functools.partial(keras.Model.fit, model, x, y, batch, verbose=0)
    fit(steps_per_epoch=1)  # traces, and is undone
    for state, value in zip(states, before, strict=True):
        state.assign(value)
    deadline = Deadline(seconds)
    fit(epochs=10**9, callbacks=[deadline])
    return deadline.steps


def training(options) -> None:
    """Mini-batch KARE against FullKARE, each with the best of a few learning rates."""
    data = Data(options.data, options.train_rows, options.train_rows // 8)
    n, z = options.train_rows, options.ridge
    tight = kk.losses.FullKARE(z, probes=options.probes, method="stochastic")
    cheap = kk.losses.FullKARE(z, probes=4, tolerance=1e-2, method="stochastic")
    contenders = {
        f"KARE, batches of {size}": (kk.losses.KARE(z), size)
        for size in BATCHES[1:]
        if size < n
    }
    contenders |= {
        f"FullKARE, {options.probes} probes": (tight, n),
        "FullKARE, 4 probes, rough": (cheap, n),
    }
    start = make_kernel(data.train[0])
    if options.warm:
        train(start, data, kk.losses.KARE(z), BATCHES[1], options.warm_rate, options.warm)
    weights = start.network.get_weights()
    before = f", after {options.warm:g} s of mini-batch KARE" if options.warm else ""
    print(
        f"Training on {n} rows ({options.data}), ridge {z:g}, Adam, "
        f"{options.seconds:g} s each{before}\n"
        "  loss                          rate   steps      KARE   val MSE  test MSE"
        "   at the ridge that validation rows choose"
    )
    best = {}
    for name, (loss, batch) in contenders.items():
        for rate in options.rates:
            kernel = make_kernel(data.train[0])
            kernel.network.set_weights(weights)
            try:
                steps = train(kernel, data, loss, batch, rate, options.seconds)
                row = judge(kernel, data, z)
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                print(f"  {name:27}{rate:8g}  failed: {str(error).splitlines()[0][:60]}")
                continue
            kare, held, test, chosen, at, test_at = row
            print(
                f"  {name:27}{rate:8g}{steps:8d}{kare:10.5f}{held:10.5f}{test:10.5f}"
                f"{test_at:11.5f} (λ̃ = {at:g})",
                flush=True,
            )
            if name not in best or chosen < best[name][0]:
                best[name] = chosen, rate, test, test_at
    print("\nThe rate that validation rows choose: test MSE at the ridge of the loss, best")
    for name, (_, rate, test, test_at) in best.items():
        print(f"  {name:27}{rate:8g}{test:10.5f}{test_at:11.5f}")


def judge(kernel, data: Data, z: float) -> tuple[float, ...]:
    """KARE of all rows; errors at the ridge of the loss, and at the best on validation."""
    x, y = data.train
    system = kk.solvers.System(kernel.operator(x), y)
    kare = kk.stochastic.kare(system, None, z).value
    errors = machine_errors(kernel, data, [z, *(ridge * system.unit for ridge in RIDGES)])
    best = int(np.argmin(errors[1:, 0]))
    return kare, *errors[0], errors[1 + best, 0], RIDGES[best], errors[1 + best, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("simulation", "mnist"), default="simulation")
    parser.add_argument("--rows", type=int, default=2000, help="of the comparison")
    parser.add_argument("--seeds", type=int, default=50, help="of the comparison")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--ridge", type=float, default=1e-3, help="of training")
    parser.add_argument("--train-rows", type=int, default=20000)
    parser.add_argument("--seconds", type=float, default=120.0, help="of one training")
    parser.add_argument("--warm", type=float, default=0.0, help="seconds before that")
    parser.add_argument("--warm-rate", type=float, default=3e-3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--part", choices=("both", "error", "training"), default="both")
    options = parser.parse_args()
    keras.utils.disable_interactive_logging()
    print(f"{measure.machine()}\nNetwork 64-64-1, GELU, float32\n")
    if options.part != "training":
        data = Data(options.data, options.rows, options.rows // 2)
        kernel = make_kernel(data.train[0])
        for when in ("start", "trained"):
            if when == "trained":
                loss = kk.losses.KARE(options.ridge)
                batch = min(512, options.rows)
                seconds = min(20.0, options.seconds)
                steps = train(kernel, data, loss, batch, 1e-2, seconds)
                print(f"After {steps} steps of mini-batch KARE")
            compare(kernel, data, 0.1, False, options)
            compare(kernel, data, 1.0, True, options)
    if options.part != "error":
        training(options)


if __name__ == "__main__":
    main()
