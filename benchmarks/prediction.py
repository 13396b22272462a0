"""Prediction of the kernel machine: primal against dual, over training rows.

    python benchmarks/prediction.py

All ratios are of best times measured in one run, in turns: `predict_on_batch` of 256
rows, 576-64-64-1 GELU network, float32.
"""

from __future__ import annotations

import argparse

import keras
import measure
import numpy as np
import tensorflow as tf

import keras_kare as kk

ROWS = (500, 4000)


def make(form: str, network: keras.Model, n: int, targets: int, x: tf.Tensor):
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n, 576)).astype("float32")
    y = rng.normal(size=(n, targets)).astype("float32")
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0, form=form))
    model.fit_head(rows, y)
    machine = model.machine
    return tf.function(lambda: machine(x), autograph=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(measure.machine())
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((576,)),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(1),
        ]
    )
    x = tf.constant(np.random.default_rng(0).normal(size=(256, 576)).astype("float32"))
    for targets in (1, 10):
        functions = {
            f"{form} {n}": make(form, network, n, targets, x)
            for form in ("primal", "dual")
            for n in ROWS
        }
        forward = tf.function(lambda: network(x, training=False), autograph=False)
        times = measure.best_of(options.repeats, forward=forward, **functions)
        print(f"\n{targets} target(s), 256 rows: times of a forward pass of the network")
        for form in ("primal", "dual"):
            of_form = [times[f"{form} {n}"] for n in ROWS]
            told = ", ".join(
                f"{n} training rows {seconds / times['forward']:.1f}"
                for n, seconds in zip(ROWS, of_form, strict=True)
            )
            print(f"  {form:7}{told}; ratio {of_form[1] / of_form[0]:.2f}")


if __name__ == "__main__":
    main()
