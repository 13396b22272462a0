"""Each layer rule against the plain definition and against finite differences.

Tracing would take most of the time. So all networks are computed op by op, and a sample
of them is traced, as users' networks are.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_networks import FALLBACK, NETWORKS, randomise, rows_for

import keras_kare as kk
from keras_kare.kernels.row_faults import check_outputs
from keras_kare.kernels.structured.features import FeatureMap

pytestmark = pytest.mark.usefixtures("float64")

COMPILED = [name for name in NETWORKS if "groups" in name]
"""Grouped convolutions, which Keras compiles anew at each call that is not traced."""

TRACED = [
    *COMPILED,
    "dense: at two lengths",
    "dense: unknown length",
    "einsum: abc,bcd->abd",
    "einsum: ab...,bc->ac...",
    "conv1d: causal, dilation",
    "conv1d: unknown length",
    "conv2d: unknown size",
    "conv2d: wide",
    "conv3d: strides, same",
    "depthwise: 2D, multiplier",
    "separable: 1D, multiplier, strides",
    "transposed: 2D, output padding, same",
    "embedding: unknown length",
    "embedding: twice",
    "normalization: batch, axis 1",
    "normalization: layer, unknown length",
    "normalization: group",
    "prelu: rank 3",
    "attention: causal",
    "attention: grouped, mask",
    "recurrent: rnn, backwards",
    "recurrent: lstm, padded, sequences",
    "recurrent: gru, reset before",
    "time distributed: model",
]

OUTPUTS_TRACED = [
    "einsum: abc,bcd->abd bias d",
    "conv1d: valid",
    "conv2d: groups, strides, same",
    "depthwise: 2D, no bias",
    "transposed: 2D",
    "embedding: tokens",
    "normalization: layer, rank 2",
    "attention: self",
    "recurrent: lstm, sequences",
]

FIRST, LAST = slice(0, 5), slice(3, 6)
"""Rows of the tests, of six."""

Combine = Callable[[np.ndarray], np.ndarray]
COMBINATIONS: dict[str, Combine] = {
    "sum": lambda blocks: blocks.sum((-2, -1)),
    "trace": lambda blocks: np.trace(blocks, axis1=-2, axis2=-1) / blocks.shape[-1],
    "full": lambda blocks: blocks,
}


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def jacobians_by_hand(network: Any, *inputs: Any) -> list[np.ndarray]:
    """`(n, c, P)`, backwards from one output of one row at a time, forwards from all rows.

    Shares no code with the library.
    """
    variables = [v.value for v in network.trainable_variables]

    def of_rows(x: Any) -> np.ndarray:
        with tf.GradientTape(persistent=True) as tape:
            f = network(keras.tree.map_structure(tf.constant, x), training=False)
            outputs = tf.unstack(tf.reshape(f, (-1,)))
        written = []
        for output in outputs:
            parts = tape.gradient(output, variables, unconnected_gradients="zero")
            dense = [tf.convert_to_tensor(part) for part in parts]  # not rows of a table
            written.append(np.concatenate([np.ravel(part) for part in dense]))
        return np.reshape(written, (f.shape[0], -1, len(written[0])))

    return [of_rows(x) for x in inputs]


def blocks_of(j1: np.ndarray, j2: np.ndarray) -> np.ndarray:
    return np.einsum("ikp,jlp->ijkl", j1, j2)


@contextlib.contextmanager
def rules_serve(promised: bool = True) -> Iterator[None]:
    """The plain Jacobian is taken, and announced, only where no rules are promised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(w.message) for w in caught if "plain Jacobian" in str(w.message)]
    assert bool(messages) is not promised, messages


def op_by_op(kernel: Any, x: Any, c: int) -> dict[str, FeatureMap]:
    """What the kernel traces, not traced, by `outputs`.

    "trace" and "full" have one plan, and with one output "sum" has the same. So it is made
    once: most of the time of these tests is for planning.
    """
    found = {"sum": kernel._feature_map(x, None)}
    if c > 1:  # with one output, the cotangents are those of the sum
        with mock.patch.object(kernel, "outputs", "trace"):
            found["trace"] = kernel._feature_map(x, None)
    last = list(found.values())[-1]
    found["full"] = FeatureMap(last.network, last.plan, "full", last.dtype)
    return found


def held_of(features: FeatureMap, *inputs: Any) -> list[Any]:
    """What kernels hold of rows, for all values; factors where plain Jacobians are."""
    if not features.plan.jacobian:
        return [features.held(x) for x in inputs]
    return [
        [factor.condensed().cast(features.dtype) for _, factor in features.shares(x)]
        for x in inputs
    ]


def values(features: FeatureMap, held: list[Any]) -> tuple[tf.Tensor, ...]:
    """Gram, cross and diagonal of what is held of two inputs."""
    if features.plan.jacobian:
        gram = features.symmetric(features.gram_of(held[0]))
        return gram, features.cross_of(*held), features.diag_of(held[0])
    gram, cross = features.gram_of_held(held[0]), features.cross_of_held(*held)
    return gram, cross, features.diag_of_held(held[0])


def gradient_error(
    network: Any,
    gram: Callable[[Any], Any],
    x: Any,
    rng: np.random.Generator,
    step: float = 1e-5,
    expected: np.ndarray | None = None,
) -> float:
    """KARE's derivative in one direction against a central difference, relative.

    The direction is along the gradient of each variable, and as far at random: one
    variable with a wrong gradient shows. The kernel is the expected one, if given.
    """
    variables = [v.value for v in network.trainable_variables]
    n = keras.tree.flatten(x)[0].shape[0]
    y = rng.normal(size=(n, 1))

    with tf.GradientTape() as tape:
        matrix = gram(x)
        ridge = 0.1 * float(np.trace(matrix)) / n**2
        value = kk.risk.kare(y, matrix, ridge)
    assert expected is None or relative(matrix, expected) < 1e-10
    found = tape.gradient(value, variables, unconnected_gradients="zero")
    gradients = [tf.convert_to_tensor(g).numpy() for g in found]  # not rows of a table
    ways = [unit(g) + unit(rng.normal(size=g.shape)) for g in gradients]
    slope = sum(float(np.sum(g * w)) for g, w in zip(gradients, ways, strict=True))
    start = [v.numpy() for v in variables]

    def moved(distance: float) -> float:
        for v, s, w in zip(variables, start, ways, strict=True):
            v.assign(s + distance * w)
        return float(kk.risk.kare(y, gram(x), ridge))

    measured = (moved(step) - moved(-step)) / (2 * step)
    moved(0.0)
    return abs(slope - measured) / abs(measured)


def unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x)
    return x / length if length else x


class Problem(NamedTuple):
    """A kernel, five rows and three, of which two are the same, and their Jacobians."""

    kernel: Any
    x1: Any
    x2: Any
    j1: np.ndarray
    j2: np.ndarray


@functools.cache
def problem(name: str) -> Problem:
    """Made, and planned, once for all tests of a network. In float64."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    network = randomise(NETWORKS[name](), rng)
    x = rows_for(network, 6, rng)
    x1, x2 = (keras.tree.map_structure(lambda t, r=r: t[r], x) for r in (FIRST, LAST))
    (j,) = jacobians_by_hand(network, x)
    return Problem(kk.kernels.NTK(network), x1, x2, j[FIRST], j[LAST])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in COMPILED])
def test_kernel_and_gradient(name, rng):
    kernel, x1, x2, j1, j2 = problem(name)
    t1, t2 = (keras.tree.map_structure(tf.constant, x) for x in (x1, x2))
    c, held = j1.shape[1], []
    with rules_serve(name not in FALLBACK):
        by_outputs = op_by_op(kernel, t1, c)
    for outputs, features in by_outputs.items():
        combine = COMBINATIONS[outputs]
        gram, cross = combine(blocks_of(j1, j1)), combine(blocks_of(j1, j2))
        if outputs != "full" or c > 1:  # else that of the sum, whose gradients are the same
            held = held_of(features, t1, t2)
        found = values(features, held)
        diagonal = np.einsum("ii...->i...", gram)
        for value, expected in zip(found, (gram, cross, diagonal), strict=True):
            assert relative(value, expected) < 1e-10, outputs
        if outputs != "full":
            v = tf.constant(rng.normal(size=(3, 2)))
            plain = features.plan.jacobian
            w = features.vjp(t2, v) if plain else features.vjp_of_held(held[1], v)
            assert relative(features.jvp(t1, w), cross @ v) < 1e-10, outputs
        if outputs == "sum":
            check_outputs(features.network_outputs, features.diag, name, t1, 1e-9)
            error = gradient_error(kernel.network, features.gram, t1, rng, expected=gram)
            assert error < 1e-6


@pytest.mark.parametrize("name", TRACED)
def test_traced(name, rng):
    """By the public method, which traces for any number of rows."""
    kernel, x, _, j, _ = problem(name)
    with rules_serve():
        kernel.check(x)
    expected = COMBINATIONS["sum"](blocks_of(j, j))
    error = gradient_error(kernel.network, kernel.gram, x, rng, expected=expected)
    assert error < 1e-6


@pytest.mark.parametrize("name", OUTPUTS_TRACED)
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_outputs_traced(name, outputs, rng):
    known, x1, x2, j1, j2 = problem(name)
    kernel, combine = kk.kernels.NTK(known.network, outputs), COMBINATIONS[outputs]
    assert j1.shape[1] > 1
    gram, cross = combine(blocks_of(j1, j1)), combine(blocks_of(j1, j2))
    assert relative(kernel.gram(x1), gram) < 1e-10
    assert relative(kernel.cross(x1, x2), cross) < 1e-10
    assert relative(kernel.diag(x1), np.einsum("ii...->i...", gram)) < 1e-10
    if outputs == "trace":
        v = rng.normal(size=(3, 2))
        assert relative(kernel.jvp(x1, kernel.vjp(x2, v)), cross @ v) < 1e-10


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """Networks made here compute in another type than float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("name", OUTPUTS_TRACED)
@pytest.mark.parametrize(
    ("dtype_policy", "bound"), [("float32", 1e-4), ("mixed_bfloat16", 5e-2)]
)
def test_low_precision(name, dtype_policy, bound, rng):
    kernel, x, _, j, _ = problem(name)
    expected = COMBINATIONS["sum"](blocks_of(j, j))
    with policy(dtype_policy):
        copy = NETWORKS[name]()
        copy.set_weights(kernel.network.get_weights())
        features = kk.kernels.NTK(copy)._feature_map(x, None)
        with tf.GradientTape() as tape:
            gram = features.gram(keras.tree.map_structure(tf.constant, x))
            risk = kk.risk.kare(rng.normal(size=(5, 1)), gram, 0.1)
        variables = [v.value for v in copy.trainable_variables]
        found = tape.gradient(risk, variables, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g).numpy() for g in found]
    assert gram.dtype == tf.float32
    assert relative(gram, expected) < bound
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert any(np.any(g != 0.0) for g in gradients)
