"""keras_kare: `NTK.gram`, and `KAREModel.train_step` as `fit` traces it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import problems
import protocol
import tensorflow as tf

import keras_kare as kk


def network(case: str) -> keras.Model:
    """The Keras model of a case, with the weights of `problems`."""
    family, shape, _ = problems.CASES[case][:3]
    weights = problems.weights(case)
    dtype = "int32" if family == "text" else "float32"
    inputs = keras.Input(shape, dtype=dtype)
    body = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet, "text": _text}[family]
    outputs = keras.layers.Dense(1, name="output")(body(weights, inputs))
    model = keras.Model(inputs, outputs)
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    return model


def _mlp(weights: problems.Weights, x: Any) -> Any:
    for name, (kernel, _) in weights.items():
        if name != "output":
            x = keras.layers.Dense(kernel.shape[1], "gelu", name=name)(x)
    return x


def _convolve(weights: problems.Weights, name: str, activation: str | None, x: Any) -> Any:
    filters = weights[name][0].shape[-1]
    return keras.layers.Conv2D(filters, 3, 1, "same", activation=activation, name=name)(x)


def _cnn(weights: problems.Weights, x: Any) -> Any:
    for i in range(len(weights) - 1):
        x = _convolve(weights, f"conv_{i}", "relu", x)
    return keras.layers.GlobalAveragePooling2D()(x)


def _resnet(weights: problems.Weights, x: Any) -> Any:
    for i in range(len(weights) // 2):
        inner = _convolve(weights, f"conv_{i}a", "relu", x)
        x = keras.layers.Add()([x, _convolve(weights, f"conv_{i}b", None, inner)])
    return keras.layers.GlobalAveragePooling2D()(x)


def _text(weights: problems.Weights, x: Any) -> Any:
    x = keras.layers.Embedding(*weights["embedding"][0].shape, name="embedding")(x)
    attention = keras.layers.MultiHeadAttention(
        problems.HEADS, problems.KEY_DIM, name="attention"
    )
    x = keras.layers.Add()([x, attention(x, x)])
    return keras.layers.GlobalAveragePooling1D()(x)


class KerasContender:
    """One task in keras_kare; `implementation` is the kernel's `method`."""

    def __init__(self, options: Any, n: int):
        self.options = options
        x, y = (tf.constant(a) for a in problems.data(options.case, n))
        kernel = kk.kernels.NTK(network(options.case), method=options.implementation)
        self.model = kk.KAREModel(kernel)
        self.model.compile(
            keras.optimizers.SGD(options.learning_rate), kk.losses.KARE(problems.RIDGE)
        )
        kernel.check(x)
        self.model.optimizer.build(self.model.trainable_variables)
        task = {
            "gram": lambda: kernel.gram(x),
            "step": lambda: self.model.train_step((x, y)),
        }[options.what]
        self.function = tf.function(task, autograph=False).get_concrete_function()

    def run(self) -> None:
        self.last = self.function()
        tf.nest.map_structure(lambda t: np.asarray(t).ravel()[:1], self.last)

    def result(self) -> dict[str, np.ndarray]:
        if self.options.what == "gram":
            return {"gram": self.last.numpy()}
        updates = [
            np.linalg.norm(new - old)
            for name, arrays in problems.weights(self.options.case).items()
            for new, old in zip(
                self.model.network.get_layer(name).get_weights(), arrays, strict=True
            )
        ]
        return {"kare": self.last["loss"].numpy(), "updates": np.stack(updates)}

    def versions(self) -> dict[str, str]:
        return {"keras_kare": kk.__version__, "keras": keras.__version__}


if __name__ == "__main__":
    protocol.serve(KerasContender)
