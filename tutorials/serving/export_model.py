"""Train a kernel machine on real data, and export it for TensorFlow Serving.

    python tutorials/serving/export_model.py --out served

The Wisconsin breast cancer data, which scikit-learn ships: 30 measurements of 569 cell
samples, malignant or benign. The network begins with a `Normalization` layer, so that
the served model takes measurements as they are. Beside the model stand
three rows that did not train: `request.json`, the body of a REST request, and
`rows.npy`, for `saved_model_cli`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_breast_cancer

import keras_kare as kk

NAME, TRAIN, VALIDATE = "cancer", 300, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("served"))
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.data))
    x = data.data[order].astype("float32")
    y = data.target_names[data.target[order]]  # "malignant" or "benign"
    train, validation, test = np.split(np.arange(len(x)), (TRAIN, TRAIN + VALIDATE))

    keras.utils.set_random_seed(0)
    scale = keras.layers.Normalization()
    scale.adapt(x[train])
    network = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            scale,
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(64, "gelu"),
            keras.layers.Dense(1),
        ]
    )
    model = kk.KAREModel(network)
    model.compile(keras.optimizers.Adam(1e-3), "kare", metrics=["accuracy"])
    model.fit(
        x[train],
        y[train],
        epochs=options.epochs,
        validation_data=(x[validation], y[validation]),
        callbacks=[keras.callbacks.EarlyStopping(patience=10, restore_best_weights=True)],
        verbose=0,
    )
    _, accuracy = model.evaluate(x[test], y[test], verbose=0)
    print(f"accuracy on {len(test)} rows that did not train: {100 * accuracy:.1f} %")

    folder = options.out / NAME / "1"  # TensorFlow Serving wants a number, the version
    model.export(folder, verbose=False)
    rows = x[test[:3]]
    body = {"signature_name": "classify", "instances": rows.tolist()}
    (options.out / "request.json").write_text(json.dumps(body))
    np.save(options.out / "rows.npy", rows)

    scores = tf.saved_model.load(str(folder)).signatures["classify"](
        inputs=tf.constant(rows)
    )["scores"]
    for score, truth in zip(scores.numpy(), y[test[:3]], strict=True):
        pairs = zip(model.classes, score, strict=True)
        told = ", ".join(f"{name} {share:.3f}" for name, share in pairs)
        print(f"  {told} (it is {truth})")
    print(f"model: {folder}\nrequest: {options.out / 'request.json'}")


if __name__ == "__main__":
    main()
