"""A full KARE step: structured against the Jacobian, and against its dense algebra.

    python benchmarks/kare_step.py

All ratios are of best times measured in one run, in turns. A full step is the Gram
matrix, KARE, its gradient by all weights, and the update, in float32, on a
576-64-64-1 GELU network.

A step of a Laplace kernel is compared with one of the marginal likelihood in GPyTorch,
where `GPYTORCH_PYTHON` names an interpreter with `benchmarks/peers/gpytorch.txt`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import keras
import measure
import numpy as np
import tensorflow as tf

import keras_kare as kk
from keras_kare._linalg import inverse_cholesky

WIDTHS = (576, 64, 64, 1)
RIDGE = 0.1


def problem(n: int) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, WIDTHS[0])).astype("float32")
    return tf.constant(x), tf.constant(np.sign(x[:, :1] + x[:, 1:2]))


def make_step(method: str, x: tf.Tensor, y: tf.Tensor):
    """`KAREModel.train_step` on one full batch, as `fit` traces it."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, "gelu") for width in WIDTHS[1:-1]]
    network = keras.Sequential(
        [keras.Input(WIDTHS[:1]), *hidden, keras.layers.Dense(WIDTHS[-1])]
    )
    model = kk.KAREModel(kk.kernels.NTK(network, method=method))
    model.compile(keras.optimizers.SGD(1e-3), kk.losses.KARE(RIDGE))
    model.kernel.check(x)
    model.optimizer.build(model.trainable_variables)
    step = tf.function(lambda: model.train_step((x, y)), autograph=False)
    return step, model


def make_dense_algebra(gram: tf.Tensor):
    """KARE's share: one Cholesky, one triangular inverse, two products of n x n."""
    n = gram.shape[0]
    system = gram / n + RIDGE * tf.eye(n)

    @tf.function(autograph=False)
    def dense() -> tf.Tensor:
        factor = tf.linalg.cholesky(system)
        lower = tf.linalg.triangular_solve(factor, tf.eye(n))
        inverse = tf.matmul(lower, lower, transpose_a=True)
        return tf.matmul(inverse, inverse)

    @tf.function(autograph=False)
    def by_blocks() -> tf.Tensor:
        return inverse_cholesky(system)[0]

    @tf.function(autograph=False)
    def plain_factor() -> tf.Tensor:
        return tf.linalg.triangular_solve(tf.linalg.cholesky(system), tf.eye(n))

    return dense, by_blocks, plain_factor


def peak(method: str, n: int) -> None:
    """In a fresh process: memory that a step adds to what was held before it."""
    x, y = problem(n)
    step, model = make_step(method, x, y)
    small = make_step(method, *problem(4))[0]
    measure.finish(small())  # libraries, threads and kernels are loaded
    before = measure.peak_megabytes()
    measure.finish(step())
    parameters = model.count_params()
    print(
        json.dumps(
            {"added": measure.peak_megabytes() - before, "jacobian": 4e-6 * n * parameters}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak[0], int(options.peak[1]))
        return
    print(f"{measure.machine()}\nNetwork {'-'.join(map(str, WIDTHS))}, float32\n")

    n = 500
    x, y = problem(n)
    times = measure.best_of(
        options.repeats,
        structured=make_step("structured", x, y)[0],
        jacobian=make_step("jacobian", x, y)[0],
    )
    print(f"Full KARE step, n = {n}: structured against GradientTape.jacobian")
    for method, seconds in times.items():
        held = measure.in_fresh_process(__file__, "--peak", method, n)
        print(
            f"  {method:11}{1e3 * seconds:9.1f} ms, peak {held['added']:7.1f} MB above "
            f"the start (one n x P array: {held['jacobian']:.1f} MB)"
        )
    print(f"  ratio jacobian / structured: {times['jacobian'] / times['structured']:.1f}\n")

    n = 1000
    x, y = problem(n)
    step, model = make_step("structured", x, y)
    dense, by_blocks, plain_factor = make_dense_algebra(model.kernel.gram(x))
    times = measure.best_of(
        3 * options.repeats,
        step=step,
        dense=dense,
        by_blocks=by_blocks,
        plain_factor=plain_factor,
    )
    print(f"Full KARE step, n = {n}, against the dense algebra of KARE alone")
    print(f"  full step        {1e3 * times['step']:9.1f} ms")
    print(f"  dense algebra    {1e3 * times['dense']:9.1f} ms")
    print(f"  ratio step / dense: {times['step'] / times['dense']:.2f}")
    ratio = times["plain_factor"] / times["by_blocks"]
    print(f"  inverse Cholesky factor, plain / by blocks: {ratio:.2f}")
    other_kernels(options.repeats)
    if "GPYTORCH_PYTHON" in os.environ:
        against_gpytorch(os.environ["GPYTORCH_PYTHON"], 3 * options.repeats)
    else:
        print("\nGPYTORCH_PYTHON is not set: GPyTorch is not measured")


def table() -> tuple[np.ndarray, np.ndarray]:
    """Rows of numbers, `(1000, 50)`, and targets."""
    x = np.random.default_rng(0).normal(size=(1000, 50)).astype("float32")
    return x, np.sign(x[:, 0] + x[:, 1])


def make_step_of(kernel: kk.kernels.Kernel, optimizer: keras.optimizers.Optimizer):
    """`KAREModel.train_step` of a kernel that is a formula, on one full batch."""
    x, y = (tf.constant(part) for part in table())
    model = kk.KAREModel(kernel)
    model.compile(optimizer, kk.losses.KARE(RIDGE))
    kernel.check(x)
    model.optimizer.build(model.trainable_variables)
    rows = (x, y[:, None])
    return tf.function(functools.partial(model.train_step, rows), autograph=False)


def other_kernels(repeats: int) -> None:
    """Print steps of kernels that are formulas, against the dense algebra of KARE."""
    x, _ = table()
    n, d = x.shape
    print(f"\nFull KARE step of other kernels, n = {n}, d = {d}, against the dense algebra")
    for name, kernel in {
        'Laplace(metric="full")': kk.kernels.Laplace(5.0, "full"),
        'Gaussian(metric="diagonal")': kk.kernels.Gaussian(5.0, "diagonal"),
    }.items():
        step = make_step_of(kernel, keras.optimizers.SGD(1e-3))
        dense, *_ = make_dense_algebra(kernel.gram(x))
        times = measure.best_of(3 * repeats, step=step, dense=dense)
        print(
            f"  {name:28}{1e3 * times['step']:7.1f} ms, dense {1e3 * times['dense']:7.1f} "
            f"ms, ratio step / dense: {times['step'] / times['dense']:.2f}"
        )


TURNS = 3
"""Of KARE, and of GPyTorch in a process of its own each time."""


def against_gpytorch(python: str, repeats: int) -> None:
    """Print a KARE step against one of the marginal likelihood, of the same kernel.

    Args:
        python: Runs `peers/gpytorch_contender.py`.
        repeats: How many steps a turn has.
    """
    x, y = table()
    script, length = Path(__file__).parent / "peers" / "gpytorch_contender.py", 5.0
    kernel = kk.kernels.Laplace(length, "full")
    mean = np.mean(kernel.gram(x))
    step = make_step_of(kernel, keras.optimizers.Adam(1e-3))
    ours, seconds = float("inf"), {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", x=x, y=y)
        command = [python, script, Path(folder) / "rows.npz", length, repeats]
        for _ in range(TURNS):
            ours = min(ours, measure.best_of(repeats, step=step)["step"])
            done = subprocess.run(
                list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True
            )
            theirs = json.loads(done.stdout)
            np.testing.assert_allclose(theirs["mean"], mean, rtol=1e-4)
            for name, found in theirs["seconds"].items():
                seconds[name] = min(found, seconds.get(name, found))
    print(
        f'\nA step of Laplace(metric="full"), n = {len(x)}, d = {x.shape[1]}, Adam, '
        f"float32, against the marginal likelihood of {theirs['versions']}"
    )
    print(f"  KARE{1e3 * ours:32.1f} ms")
    for name, found in seconds.items():
        print(
            f"  {f'GPyTorch, {name}':26}{1e3 * found:10.1f} ms, ratio GPyTorch / KARE: "
            f"{found / ours:.2f}"
        )


if __name__ == "__main__":
    main()
