"""What stands in the way of a second derivative is read off the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import pytest
import tensorflow as tf

from keras_kare.kernels.graphs import function_of
from keras_kare.kernels.structured import differentiability, operations
from keras_kare.kernels.structured.differentiability import undifferentiable

IMAGE = tf.TensorSpec((1, 3, 3, 1), tf.float32)


def resized(x: tf.Tensor) -> tf.Tensor:
    """Three pixels a side remain, so that loops can carry the image."""
    return tf.image.resize(tf.image.resize(x, (4, 4)), (3, 3), "nearest")


def read(
    function: Callable[..., Any], count: int = 1, bend: Callable[..., Any] = tf.square
) -> list[str]:
    """What stands between the first input, and the outputs and the gradient."""
    found: list[str] = []

    def trace(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = [bend(part) for part in tf.nest.flatten(function(x, *others))]
        gradient = tape.gradient(y, x, unconnected_gradients="zero")
        results = [*y, gradient]
        found.extend(undifferentiable(x.graph.get_operations(), [x], results))
        return gradient

    tf.function(trace, autograph=False).get_concrete_function(*[IMAGE] * count)
    return found


def loop(body: Callable[..., Any], *start: Any) -> Any:
    return tf.while_loop(lambda i, *_: i < 3, body, (0, *start))[1:]


ROUND: dict[str, Callable[[tf.Tensor], Any]] = {
    "in the open": resized,
    "in a function": tf.function(resized, autograph=False),
    "in a function of a function": tf.function(
        lambda x: tf.function(resized, autograph=False)(tf.tanh(x)), autograph=False
    ),
    "in a compiled function": tf.function(
        lambda x: tf.image.resize(x, (4, 4)), autograph=False, jit_compile=True
    ),
    "in a branch": lambda x: tf.cond(x[0, 0, 0, 0] > 0, lambda: resized(x), lambda: x),
    "in a case": lambda x: tf.switch_case(
        tf.cast(x[0, 0, 0, 0], "int32"), [lambda: x, lambda: tf.tanh(x), lambda: resized(x)]
    ),
    "in a loop": lambda x: loop(lambda i, h: (i + 1, resized(tf.tanh(h))), x),
    "in a loop, in the third round": lambda x: loop(
        lambda i, a, b, c: (i + 1, a, tf.tanh(a), resized(b)), x, x * 0.0 + 1.0, x
    )[2],
    "in a loop of a function": tf.function(
        lambda x: loop(lambda i, h: (i + 1, resized(h)), x), autograph=False
    ),
    "in a map": lambda x: tf.map_fn(lambda h: resized(h[None])[0], x),
}


@pytest.mark.parametrize("where", ROUND)
def test_found(where):
    (line, *more) = read(ROUND[where])
    assert line.startswith("ResizeBilinearGrad (")
    assert not more


def captured(x: tf.Tensor) -> tf.Tensor:
    """A function that uses the tensor without taking it."""
    return tf.function(lambda: resized(x), autograph=False)()


def test_found_where_captured():
    assert [line.split()[0] for line in read(captured)] == ["ResizeBilinearGrad"]


RIGHT: dict[str, Callable[..., Any]] = {
    "of another image": lambda x, other: x * resized(other),
    "of another image, in a function": tf.function(
        lambda x, other: x * resized(other), autograph=False
    ),
    "of another image, in a loop": lambda x, other: loop(
        lambda i, h, o: (i + 1, tf.tanh(h) * o, resized(o)), x, other
    ),
    "of another image, in a branch": lambda x, other: tf.cond(
        x[0, 0, 0, 0] > 0, lambda: x * resized(other), lambda: x
    ),
    "result not used": lambda x, other: (resized(x), x * other)[1],
    "result not used, in a function": lambda x, other: tf.function(
        lambda x: (resized(x), x * x), autograph=False
    )(x)[1],
    "made constant": lambda x, other: x * tf.stop_gradient(resized(x)),
    "steps": lambda x, other: x * tf.round(x) + tf.floor(x) * tf.sign(x) + tf.math.rint(x),
    "sizes": lambda x, other: x * tf.cast(tf.size(x), "float32"),
    "a logarithm of a sum": lambda x, other: tf.reduce_logsumexp(x * other),
    "a custom gradient": lambda x, other: tf.nn.silu(x) * other,
    "a mean stopped by hand": lambda x, other: stopped_mean(x),
}


def test_no_alarm_where_linear():
    """The gradient is a constant, whatever it goes through."""
    assert read(resized, bend=tf.identity) == []


def stopped_mean(x: tf.Tensor) -> tf.Tensor:
    with tf.name_scope("moments"):
        return x - tf.stop_gradient(tf.reduce_mean(x))


@pytest.mark.parametrize("where", RIGHT)
def test_no_alarm(where):
    assert read(RIGHT[where], 2) == []


def test_moments():
    lines = read(lambda x: tf.nn.moments(x, [1, 2])[1])
    assert [line.split()[0] for line in lines] == ["StopGradient"]
    assert "tf.nn.moments" in lines[0]


def test_first_derivative_dropped():
    """The gradient is then constant: the outputs tell."""
    lines = read(lambda x: tf.image.hsv_to_rgb(tf.repeat(x, 3, axis=-1)))
    assert [line.split()[0] for line in lines] == ["HSVToRGB"]


def test_custom_gradients():
    @tf.custom_gradient
    def resizes_back(x):
        return tf.image.resize(x, (4, 4)), lambda g: tf.image.resize(g, (3, 3))

    @tf.custom_gradient
    def bent(x):
        def gradient(g):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.image.resize(x, (4, 4))
            return tape.gradient(y, x, output_gradients=g)

        return tf.image.resize(x, (4, 4)), gradient

    # Linear both ways: the second derivative is by an operation that has a first one.
    assert read(resizes_back) == []
    assert [line.split()[0] for line in read(bent)] == ["ResizeBilinearGrad"]
    recomputed = read(tf.recompute_grad(tf.tanh))
    assert len(recomputed) == 1
    assert "custom gradient has no gradient" in recomputed[0]


def test_variables_and_the_scope_of_their_layer():
    """By captured handles, as kernels trace networks."""
    network = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 2, activation="tanh"),
            keras.layers.Lambda(lambda x: tf.image.resize(x, (5, 5)), name="enlarge"),
            keras.layers.Conv2D(1, 2, activation="tanh"),
            keras.layers.Conv2D(1, 2),
        ]
    )
    variables = [v.value for v in network.trainable_variables]

    @tf.function(autograph=False)
    def outputs_and_gradients(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            f = network(x)
        return f, tape.gradient(f, variables)

    graph = outputs_and_gradients.get_concrete_function(tf.zeros((1, 4, 4, 1))).graph
    handles = {
        id(v.handle): t for v in variables for h, t in graph.captures if h is v.handle
    }
    before = len(graph.get_operations())

    def ask(places: list[int]) -> list[str]:
        sources = [handles[id(variables[i].handle)] for i in places]
        return undifferentiable(graph.get_operations(), sources, graph.outputs)

    for places in ([0], [1], [0, 1, 2, 3, 4, 5]):
        (line,) = ask(places)
        assert line.startswith("ResizeBilinearGrad (")
        assert "/enlarge" in line
    assert ask([5]) == []  # gradients do not depend on the last bias
    assert len(graph.get_operations()) == before


def test_private_name():
    """`tf.Graph._get_function`, by which bodies of functions are read, may move."""
    inner = tf.function(resized, autograph=False)
    graph = tf.function(lambda x: inner(x)).get_concrete_function(IMAGE).graph
    (call,) = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
    body = function_of(graph, call.get_attr("f").name)
    assert body is not None, "TensorFlow shows no body of a function: find its new name"
    assert "ResizeBilinear" in {op.type for op in body.get_operations()}


def test_body_out_of_sight():
    with mock.patch.object(differentiability, "function_of", return_value=None):
        lines = read(ROUND["in a function"])
    assert lines
    assert all(line.startswith("a function whose operations cannot") for line in lines)


def made(kind: str) -> tf.Tensor:
    """An operation of a kind, as networks have it."""
    raw, x = tf.raw_ops, tf.compat.v1.placeholder("float64", (3, 4))
    special = {
        "BiasAdd": lambda: raw.BiasAdd(value=x, bias=x[0]),
        "BiasAddGrad": lambda: raw.BiasAddGrad(out_backprop=x),
        "Identity": lambda: raw.Identity(input=x),
        "MatMul": lambda: raw.MatMul(a=x, b=x, transpose_b=True),
        "Mean": lambda: raw.Mean(input=x, axis=1),
        "Pack": lambda: raw.Pack(values=[x, x]),
        "Pad": lambda: raw.Pad(input=x, paddings=[[0, 1], [1, 0]]),
        "Relu": lambda: raw.Relu(features=x),
        "Reshape": lambda: raw.Reshape(tensor=x, shape=[12]),
        "Softplus": lambda: raw.Softplus(features=x),
        "StridedSlice": lambda: x[:2, ::2],
        "Sum": lambda: raw.Sum(input=x, axis=0),
        "Tile": lambda: raw.Tile(input=x, multiples=[2, 1]),
        "Transpose": lambda: raw.Transpose(x=x, perm=[1, 0]),
    }
    if kind in special:
        return special[kind]()
    if kind == "ReluGrad":
        return raw.ReluGrad(gradients=x, features=x)
    if kind.endswith("Grad"):
        return getattr(raw, kind)(y=x, dy=x)
    names = ("x", "y")[: len(operations.KNOWN[kind])]
    return getattr(raw, kind)(**dict.fromkeys(names, x))


@pytest.mark.parametrize("kind", operations.KNOWN)
def test_tensorflow_has_the_derivatives_that_are_not_asked_for(kind):
    with tf.Graph().as_default():
        op = made(kind).op
        assert op.type == kind
        for i in operations.KNOWN[kind]:
            assert operations._differentiates(op, [i], [0])
