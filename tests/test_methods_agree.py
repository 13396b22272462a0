"""Every method against the plain definition, in float64, over many networks."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from test_layer_rules import (
    COMBINATIONS,
    blocks_of,
    held_of,
    jacobians_by_hand,
    op_by_op,
    relative,
    rules_serve,
    values,
)

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")
ALL = {**networks.STRUCTURED, **networks.FALLBACK}

FIRST, LAST = slice(0, 6), slice(3, 7)
"""Rows, of seven."""


@pytest.mark.parametrize("name", ALL)
def test_structured_equals_definition_and_announces_each_fallback(name, rng):
    """The kernel of the sum by the public methods, and all op by op."""
    network = ALL[name]()
    x = networks.rows_for(network, 7, rng)
    x1, x2 = (keras.tree.map_structure(lambda t, r=r: t[r], x) for r in (FIRST, LAST))
    (j,) = jacobians_by_hand(network, x)
    j1, j2, c = j[FIRST], j[LAST], j.shape[1]
    kernel = kk.kernels.NTK(network, method="structured")
    with rules_serve(name not in networks.FALLBACK):
        found = [("sum", kernel.gram(x1), kernel.cross(x1, x2), kernel.diag(x1))]
        by_outputs = op_by_op(kernel, x1, c)
    t1, t2 = (keras.tree.map_structure(tf.constant, x) for x in (x1, x2))
    for outputs, features in by_outputs.items():
        if outputs != "full" or c > 1:  # else that of the sum
            held = held_of(features, t1, t2)
        found.append((outputs, *values(features, held)))
    for outputs, gram, cross, diagonal in found:
        combine = COMBINATIONS[outputs]
        expected = combine(blocks_of(j1, j1))
        assert relative(gram, expected) < 1e-10
        assert relative(cross, combine(blocks_of(j1, j2))) < 1e-10
        swapped = (1, 0, 3, 2) if outputs == "full" else (1, 0)
        np.testing.assert_array_equal(gram, np.transpose(gram, swapped))
        assert relative(diagonal, np.einsum("ii...->i...", expected)) < 1e-10


@pytest.mark.parametrize("name", networks.LOOPS)
def test_control_flow_equals_definition(name, rng):
    network = networks.LOOPS[name]()
    x = networks.rows_for(network, 4, rng)
    (j,) = jacobians_by_hand(network, x)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        gram = kk.kernels.NTK(network).gram(x)
    assert relative(gram, np.einsum("ikp,jlp->ij", j, j)) < 1e-10


@pytest.mark.parametrize(
    "name", ["three outputs", "skip connection", "tied weights", "sequence"]
)
def test_jacobian_equals_definition(name, rng):
    network = ALL[name]()
    x = networks.rows_for(network, 5, rng)
    (j,) = jacobians_by_hand(network, x)
    kernel = kk.kernels.NTK(network, "sum", method="jacobian")
    assert relative(kernel.gram(x), np.einsum("ikp,jlp->ij", j, j)) < 1e-10


@pytest.mark.parametrize(
    "name", ["skip connection", "shared layer", "wide sequence", "sequence", "tied weights"]
)
@pytest.mark.parametrize("outputs", ["sum", "trace"])
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
def test_gradients_of_methods_agree(name, outputs, rng):
    """For an upstream gradient that is not symmetric."""
    network = ALL[name]()
    x = keras.tree.map_structure(tf.constant, networks.rows_for(network, 5, rng))
    upstream = rng.normal(size=(5, 5))

    def gradients(method):
        kernel = kk.kernels.NTK(network, outputs, method=method)
        features = kernel._feature_map(x, None)
        gram = kernel.gram if features.plan.jacobian else features.gram  # op by op
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(gram(x) * upstream)
        variables = [v.value for v in network.trainable_variables]
        return tape.gradient(value, variables, unconnected_gradients="zero")

    for a, b in zip(gradients("structured"), gradients("jacobian"), strict=True):
        scale = max(1.0, np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, atol=1e-10 * scale, rtol=0)


@pytest.mark.parametrize("m", [1, 3])  # one after the other, which shares plans
@pytest.mark.parametrize(
    "name", ["three outputs", "two inputs", "sequence", "tied weights"]
)
@pytest.mark.parametrize("outputs", ["sum", "trace"])
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
def test_vjp_and_jvp_are_the_feature_map(name, outputs, m, rng):
    network = ALL[name]()
    x1, x2 = networks.rows_for(network, 6, rng), networks.rows_for(network, 4, rng)
    v = rng.normal(size=(6, m))
    kernel = kk.kernels.NTK(network, outputs)
    weights = kernel.vjp(x1, v)
    shapes = [tuple(w.shape[2:]) for w in weights]
    assert shapes == [tuple(v.shape) for v in network.trainable_variables]
    expected = kernel.cross(x2, x1).numpy() @ v
    np.testing.assert_allclose(kernel.jvp(x2, weights), expected, atol=1e-10)


def test_trainable_can_change_later(rng):
    network = networks.mlp()
    x = rng.normal(size=(4, networks.D))
    kernel = kk.kernels.NTK(network)
    before = kernel.gram(x).numpy()
    network.layers[0].trainable = False
    after = kernel.gram(x).numpy()
    (j,) = jacobians_by_hand(network, x)
    assert relative(after, np.einsum("ikp,jlp->ij", j, j)) < 1e-10
    assert relative(after, before) > 0.01


def test_weights_are_read_at_each_call(rng):
    network = networks.mlp()
    x = rng.normal(size=(4, networks.D))
    kernel = kk.kernels.NTK(network)
    kernel.gram(x)
    network.set_weights([w * 1.5 for w in network.get_weights()])
    (j,) = jacobians_by_hand(network, x)
    assert relative(kernel.gram(x), np.einsum("ikp,jlp->ij", j, j)) < 1e-10


def test_first_use_inside_a_function(rng):
    """Planned on made-up rows, since the real ones are symbolic."""
    network = networks.Tied()
    x = networks.rows_for(network, 4, rng)
    kernel = kk.kernels.NTK(network)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        gram = tf.function(kernel.gram)(tf.constant(x))
    (j,) = jacobians_by_hand(network, x)
    assert relative(gram, np.einsum("ikp,jlp->ij", j, j)) < 1e-10


def test_layers_work_as_before_after_capture(rng):
    original = keras.layers.Dense.call
    network = networks.mlp()
    kk.kernels.NTK(network).gram(rng.normal(size=(3, networks.D)))
    assert keras.layers.Dense.call is original


def test_memory_of_the_definition_is_one_variable_at_a_time(rng):
    """The share of a variable is done before the next Jacobian begins."""
    network = networks.mlp(depth=3)
    kernel = kk.kernels.NTK(network, method="jacobian")
    x = rng.normal(size=(3, networks.D))
    kernel.check(x)
    graph = tf.function(kernel.gram).get_concrete_function(tf.constant(x)).graph
    waiting = [op for op in graph.get_operations() if op.control_inputs]
    assert waiting, "no share waits for another"


def test_jacobian_that_tensorflow_cannot_vectorise(rng):
    """One output at a time instead, without the user's help."""
    network = keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="b"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    x = rng.normal(size=(4, 5, 3))
    j = jacobians_by_hand(network, x)[0][:, 0]
    gram = kk.kernels.NTK(network, method="jacobian").gram(x)
    assert relative(gram, j @ j.T) < 1e-12
