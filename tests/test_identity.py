"""Networks that differ in anything a trace may keep are not taken for one another."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from generated_networks import jacobians_by_hand, kernel_by_hand
from keras import layers, ops

import keras_kare as kk
from keras_kare.kernels.identity import architecture

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian"),
]


def by_rows(network: Any, x: Any) -> np.ndarray:
    """The NTK of the summed outputs, one row at a time: no code of the library."""
    j = jacobians_by_hand(network, x)
    return kernel_by_hand("sum", j, j)


def check(network: Any, x: Any) -> None:
    gram, expected = np.asarray(kk.kernels.NTK(network).gram(x)), by_rows(network, x)
    np.testing.assert_allclose(gram, expected, rtol=0.0, atol=1e-9 * expected.max())


def sequences(operation: Callable[[Any], Any]) -> Any:
    """Operations have the same names in each."""
    keras.backend.clear_session()
    keras.utils.disable_interactive_logging()  # which that has forgotten
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    x = keras.Input((3, 3))
    h = operation(layers.Dense(3, "tanh")(x))
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


class Scaled(keras.Operation):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def call(self, x: Any) -> Any:
        return self.factor * x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def of_inputs(p: str, q: str) -> Any:
    a, b = keras.Input((3,), name=p), keras.Input((3,), name=q)
    h = layers.Add()([layers.Dense(4, "tanh")(a), layers.Dense(4, "relu")(b)])
    return keras.Model([a, b], layers.Dense(1)(h))


def of_table(words: list[int]) -> Any:
    lookup = layers.IntegerLookup()
    lookup.set_vocabulary(words)
    x = keras.Input((3,), dtype="int64")
    h = layers.Embedding(6, 2)(lookup(x))
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


def of_activation(make: Callable[[], Any]) -> Any:
    x = keras.Input((3, 3))
    h = layers.Dense(3, make())(x)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


def named(factor: float) -> Any:
    """Under the name of a function of Keras'."""
    tanh = keras.activations.tanh
    return functools.wraps(tanh)(lambda z: factor * tanh(z))


def hidden(alpha: float) -> Any:
    layer = layers.PReLU(alpha_initializer=keras.initializers.Constant(alpha))
    layer.build((None, 3, 3))
    return layer.call


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "axis": tuple(
        lambda axis=axis: sequences(lambda h: ops.mean(h, axis=axis)) for axis in (1, 2)
    ),
    "slope": tuple(
        lambda slope=slope: sequences(lambda h: ops.leaky_relu(h, slope))
        for slope in (0.1, 0.5)
    ),
    "einsum": tuple(
        lambda to=to: sequences(lambda h: ops.einsum(f"abc->{to}", h) * h)
        for to in ("abc", "acb")
    ),
    "own operation": tuple(
        lambda factor=factor: sequences(lambda h: Scaled(factor)(h))
        for factor in (1.0, 3.0)
    ),
    "names of inputs": (lambda: of_inputs("a", "b"), lambda: of_inputs("b", "a")),
    "table": (lambda: of_table([1, 2, 3]), lambda: of_table([3, 2, 1])),
    "borrowed name": tuple(lambda f=f: of_activation(lambda: named(f)) for f in (1.0, 2.0)),
    "bound method": tuple(
        lambda alpha=alpha: of_activation(lambda: hidden(alpha)) for alpha in (0.1, 0.7)
    ),
}


def rows_of(network: Any, rng: np.random.Generator) -> Any:
    shape = network.inputs[0].shape[1:]
    if network.inputs[0].dtype == "int64":
        return np.array([[1, 2, 3], [3, 5, 1], [2, 2, 7], [7, 1, 1]])
    x = rng.normal(size=(4, *shape))
    return {"a": x, "b": 2.0 * x + 1.0} if len(network.inputs) == 2 else x


@pytest.mark.parametrize("name", PAIRS)
def test_traces_are_not_shared(name, rng):
    first, second = (make() for make in PAIRS[name])
    x = rows_of(first, rng)
    check(first, x)
    check(second, x)
    assert architecture(first) != architecture(second)


@pytest.mark.parametrize("name", PAIRS)
def test_files_are_not_taken_for_each_other(name, rng, tmp_path):
    first, second = (make() for make in PAIRS[name])
    second.set_weights(first.get_weights())
    x = rows_of(first, rng)
    kk.kernels.NTK(first).gram(x, out=str(tmp_path / "gram.npy"))
    with pytest.raises(ValueError, match="holds something else"):
        kk.kernels.NTK(second).gram(x, out=str(tmp_path / "gram.npy"))


def test_names_that_keras_gives_do_not_matter():
    def network() -> Any:
        x, y = keras.Input((3, 3)), keras.Input((3, 3))
        h = ops.mean(layers.Dense(3)(x) + y, axis=1)
        return keras.Model([x, y], layers.Dense(1)(ops.relu(h)))

    assert architecture(network()) == architecture(network())


class OwnLayer(layers.Layer):
    """Attributes that Keras has in models, and what it does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = 2.0
        self.shift = tf.Variable(1.0, dtype="float64", trainable=False)
        self.table = self.new_table([1.0, 2.0])

    @staticmethod
    def new_table(values: list[float]) -> Any:
        keys = tf.constant([0, 1], "int64")
        pairs = tf.lookup.KeyValueTensorInitializer(keys, tf.constant(values, "float64"))
        return tf.lookup.StaticHashTable(pairs, 0.0)

    def call(self, x: Any) -> Any:
        sign = tf.cast(x[..., :1] > 0.0, "int64")
        return (x * self.loss + self.shift) * self.table.lookup(sign)


def another_number(network: Any) -> None:
    network.layers[1].loss = 3.0


def another_variable(network: Any) -> None:
    network.layers[1].shift = tf.Variable(-2.0, dtype="float64", trainable=False)


def another_table(network: Any) -> None:
    network.layers[1].table = OwnLayer.new_table([5.0, 0.5])


@pytest.mark.parametrize("change", [another_number, another_variable, another_table])
def test_changes_of_a_users_layer_are_seen(change, rng):
    x = rng.normal(size=(4, 3))
    network = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh"), OwnLayer(), layers.Dense(1)]
    )
    kernel = kk.kernels.NTK(network)
    before = np.asarray(kernel.gram(x))
    change(network)
    found, expected = np.asarray(kernel.gram(x)), by_rows(network, x)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9 * expected.max())
    assert np.max(np.abs(found - before)) > 1e-3 * expected.max()


def test_changes_of_an_operation_are_seen(rng):
    x = rng.normal(size=(4, 3, 3))
    network = sequences(lambda h: ops.leaky_relu(h, 0.1))
    kernel = kk.kernels.NTK(network)
    before = np.asarray(kernel.gram(x))
    (operation,) = (o for o in network.operations if not isinstance(o, layers.Layer))
    operation.negative_slope = 0.8
    found, expected = np.asarray(kernel.gram(x)), by_rows(network, x)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9 * expected.max())
    assert np.max(np.abs(found - before)) > 1e-3 * expected.max()


def test_another_vocabulary_is_seen(rng):
    network = of_table([1, 2, 3])
    kernel, x = kk.kernels.NTK(network), rows_of(network, rng)
    kernel.gram(x)
    network.layers[1].set_vocabulary([3, 2, 1])
    expected = by_rows(network, x)
    np.testing.assert_allclose(
        kernel.gram(x), expected, rtol=0.0, atol=1e-9 * expected.max()
    )


def test_functions_say_where_they_were_written():
    """`functools.wraps` lends a function names, but no globals."""
    assert inspect.unwrap(named(1.0)) is keras.activations.tanh
    assert named(1.0).__module__ == keras.activations.tanh.__module__
    assert named(1.0).__globals__["__name__"] == __name__


class Bound(keras.Model):
    """Holds methods and closures over layers of its own."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.parts = [layers.Dense(3, "tanh"), layers.Dense(3, "relu")]
        self.last = layers.Dense(1)
        self.f = self.parts[first].__call__
        self.g = self.own

    def own(self, x: Any) -> Any:
        return self.parts[0](x) + self.parts[1](x)

    def call(self, x: Any) -> Any:
        return self.last(self.f(x) * self.g(x))


def test_layers_in_methods_are_known_by_their_places(rng):
    x = rng.normal(size=(3, 3))
    first, again, second = Bound(0), Bound(0), Bound(1)
    for network in (first, again, second):
        network(x)
    assert architecture(first) == architecture(again)
    assert "unread" not in architecture(first)
    assert architecture(first) != architecture(second)


def doubled(function: Any) -> Any:
    """A library's wrapper round a user's function."""
    return tf.autograph.experimental.do_not_convert(function)


def test_a_librarys_wrapper_is_looked_into(rng):
    x = rng.normal(size=(3, 3, 3))
    networks = [of_activation(lambda f=f: doubled(lambda z: f * z * z)) for f in (1.0, 2.0)]
    for network in networks:
        check(network, x)
    assert architecture(networks[0]) != architecture(networks[1])


def test_a_table_reads_the_same_while_a_function_is_traced():
    network, found = of_table([2, 1, 3]), []

    @tf.function
    def traced() -> Any:
        found.append(architecture(network))
        return tf.constant(0)

    traced()
    assert found == [architecture(network)]
