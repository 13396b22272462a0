"""Networks of many shapes: each a function of no arguments, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

D = 4


def mlp(
    depth: int = 2, width: int = 7, c: int = 1, activation: Any = "tanh", **kwargs: Any
) -> Any:
    hidden = [layers.Dense(width, activation, **kwargs) for _ in range(depth)]
    return keras.Sequential([keras.Input((D,)), *hidden, layers.Dense(c, **kwargs)])


def skip_connection() -> Any:
    x = keras.Input((D,))
    h = layers.Dense(6, "gelu")(x)
    h = layers.Add()([h, layers.Dense(6, "tanh")(h)])
    return keras.Model(x, layers.Dense(2)(layers.Concatenate()([h, x])))


def two_towers() -> Any:
    x = keras.Input((D,))
    a, b = layers.Dense(5, "tanh")(x), layers.Dense(5, "softplus")(x)
    return keras.Model(x, layers.Dense(1)(layers.Multiply()([a, b])))


def shared_layer() -> Any:
    x, shared = keras.Input((D,)), layers.Dense(D, "tanh")
    return keras.Model(x, layers.Dense(2)(shared(shared(x))))


def two_inputs() -> Any:
    a, b = keras.Input((D,)), keras.Input((3,))
    h = layers.Concatenate()([layers.Dense(5, "tanh")(a), layers.Dense(4, "gelu")(b)])
    return keras.Model([a, b], layers.Dense(1)(h))


def named_inputs() -> Any:
    a, b = keras.Input((D,), name="left"), keras.Input((3,), name="right")
    h = layers.Concatenate()([layers.Dense(5, "tanh")(a), layers.Dense(4, "gelu")(b)])
    return keras.Model({"left": a, "right": b}, layers.Dense(1)(h))


def frozen() -> Any:
    network = mlp()
    network.layers[1].trainable = False
    return network


def half_frozen() -> Any:
    network = mlp()
    network.layers[0].kernel.trainable = False
    network.layers[1].bias.trainable = False
    return network


@keras.saving.register_keras_serializable(package="tests")
class Tied(keras.Model):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(6, "tanh")
        self.out = layers.Dense(1)

    def call(self, x: Any) -> Any:
        h = self.encoder(x)
        decoded = keras.ops.matmul(h, keras.ops.transpose(self.encoder.kernel))
        return self.out(keras.ops.tanh(decoded))


class SameVariable(keras.Model):
    """Two layers that share one kernel variable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers.Dense(D, "tanh"), layers.Dense(D, "tanh")
        self.out = layers.Dense(1)

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build(shape)
        self.second.__dict__["_kernel"] = self.first._kernel
        self.out.build(shape)

    def call(self, x: Any) -> Any:
        return self.out(self.second(self.first(x)))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = [layers.Dense(6, "gelu"), layers.Dense(5, "tanh")]
        self.out = layers.Dense(2)

    def call(self, x: Any) -> Any:
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)


class Nested(layers.Layer):
    """A layer of layers, one of them in a plain list of an untracked object."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(5, "tanh"), layers.Dense(4)])

    def call(self, x: Any) -> Any:
        return x + self.inner(x)


class MyDense(layers.Dense):
    """A subclass that computes something else than `Dense`."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs) * 2.0 + keras.ops.sum(self.kernel)


class OwnWeight(layers.Layer):
    """A layer that no rule serves."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


class Mapped(layers.Layer):
    """A `Dense` inside a mapped function, where nothing can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(3, "tanh")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return tf.map_fn(
            lambda row: self.inner(row[None])[0], x, fn_output_signature=x.dtype
        )


class FoldedAxis(layers.Layer):
    """A `Dense` whose first axis is not the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(3, "tanh")

    def build(self, shape: Any) -> None:
        self.inner.build((None, 2))

    def call(self, x: Any) -> Any:
        swapped = keras.ops.transpose(keras.ops.reshape(x, (-1, 2, 2)), (1, 0, 2))
        return keras.ops.reshape(
            keras.ops.transpose(self.inner(swapped), (1, 0, 2)), (-1, 6)
        )


class Rematerialised(layers.Layer):
    """A `Dense` whose activations are computed anew in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(5, "tanh")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return keras.remat(self.inner)(x)


def sequence() -> Any:
    x = keras.Input((5, D))
    h = layers.Dense(3, "tanh")(x)
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))


def wide_sequence() -> Any:
    """Two positions of wide layers: positions are contracted first."""
    x = keras.Input((2, 30))
    h = layers.Dense(40, "tanh")(x)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


def sequence_output() -> Any:
    x = keras.Input((3, D))
    return keras.Model(x, layers.Dense(2)(layers.Dense(3, "tanh")(x)))


def time_distributed() -> Any:
    x = keras.Input((3, D))
    h = layers.TimeDistributed(layers.Dense(3, "tanh"))(x)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


def with_layers(*extra: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        return keras.Sequential(
            [
                keras.Input((D,)),
                layers.Dense(4, "tanh"),
                *[e() for e in extra],
                layers.Dense(1),
            ]
        )

    return make


def convolution() -> Any:
    return keras.Sequential(
        [
            keras.Input((6, 2)),
            layers.Conv1D(3, 3, activation="tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )


def recurrent() -> Any:
    return keras.Sequential([keras.Input((2, 2)), layers.SimpleRNN(2), layers.Dense(1)])


class OwnCell(layers.SimpleRNNCell):
    """A cell that no rule serves."""


def own_cell() -> Any:
    return keras.Sequential([keras.Input((2, 2)), layers.RNN(OwnCell(2)), layers.Dense(1)])


def dead_branch() -> Any:
    x = keras.Input((D,))
    unused = layers.Dense(3)(x)
    h = layers.Dense(5, "tanh")(x)
    stopped = layers.Lambda(lambda t: keras.ops.stop_gradient(t))(unused)
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([h, stopped])))


STRUCTURED: dict[str, Callable[[], Any]] = {
    "linear": lambda: mlp(depth=0),
    "deep": lambda: mlp(depth=6),
    "three outputs": lambda: mlp(c=3),
    "no bias": lambda: mlp(use_bias=False, c=2),
    "skip connection": skip_connection,
    "two towers": two_towers,
    "shared layer": shared_layer,
    "two inputs": two_inputs,
    "named inputs": named_inputs,
    "frozen layer": frozen,
    "frozen variables": half_frozen,
    "subclassed": Subclassed,
    "nested": with_layers(Nested),
    "sequence": sequence,
    "wide sequence": wide_sequence,
    "sequence output": sequence_output,
    "time distributed": time_distributed,
    "dropout and batch norm frozen": with_layers(
        lambda: layers.Dropout(0.5), lambda: layers.BatchNormalization(trainable=False)
    ),
    "dead branch": dead_branch,
    "convolution": convolution,
    "layer normalisation": with_layers(layers.LayerNormalization),
    "recurrent": recurrent,
}

FALLBACK: dict[str, Callable[[], Any]] = {
    "tied weights": Tied,
    "one variable in two layers": SameVariable,
    "subclass of Dense": with_layers(lambda: MyDense(4, "tanh")),
    "unknown layer": with_layers(OwnWeight),
    "rows not first": with_layers(FoldedAxis),
}
if hasattr(keras, "remat"):  # since Keras 3.9
    FALLBACK["rematerialised"] = with_layers(Rematerialised)

LOOPS: dict[str, Callable[[], Any]] = {
    "mapped": with_layers(Mapped),
    "recurrent with a cell of its own": own_cell,
}
"""Networks with control flow, whose plain Jacobian takes long to trace."""


def rows_for(network: Any, n: int, rng: np.random.Generator) -> Any:
    """Random rows that fit the network's inputs; builds it if need be."""
    if isinstance(network, Tied | Subclassed | SameVariable):
        x = rng.normal(size=(n, D))
        network(x)
        return x
    inputs = network.inputs[0] if isinstance(network, keras.Sequential) else network.input
    return keras.tree.map_structure(
        lambda spec: rng.normal(size=(n, *spec.shape[1:])), inputs
    )
