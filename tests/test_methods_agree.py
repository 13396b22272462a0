"""Every method against the plain definition, in float64, over many networks."""

from __future__ import annotations

import warnings

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")
ALL = {**networks.STRUCTURED, **networks.FALLBACK}


def relative(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def jacobian_by_hand(network, x):
    """`(n, c, P)`, one output of one row at a time: shares no code with the library."""
    variables = [v.value for v in network.trainable_variables]
    n = keras.tree.flatten(x)[0].shape[0]
    rows = []
    for i in range(n):
        with tf.GradientTape(persistent=True) as tape:
            row = keras.tree.map_structure(lambda t, i=i: tf.constant(t[i : i + 1]), x)
            f = tf.reshape(network(row, training=False), (-1,))
            outputs = [f[k] for k in range(f.shape[0])]
        rows.append(
            [
                np.concatenate(
                    [
                        np.zeros(v.shape).ravel() if g is None else np.asarray(g).ravel()
                        for v, g in zip(variables, tape.gradient(o, variables), strict=True)
                    ]
                )
                for o in outputs
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
def test_structured_equals_definition(name, rng):
    network = ALL[name]()
    x1, x2 = networks.rows_for(network, 6, rng), networks.rows_for(network, 4, rng)
    j1, j2 = jacobian_by_hand(network, x1), jacobian_by_hand(network, x2)
    c = j1.shape[1]
    blocks = np.einsum("ikp,jlp->ijkl", j1, j1)
    across = np.einsum("ikp,jlp->ijkl", j1, j2)
    for outputs, combine in (
        ("sum", lambda b: b.sum((2, 3))),
        ("trace", lambda b: np.trace(b, axis1=2, axis2=3) / c),
        ("full", lambda b: b),
    ):
        kernel = kk.kernels.NTK(network, outputs, method="structured")
        gram = kernel.gram(x1).numpy()
        assert relative(gram, combine(blocks)) < 1e-10
        assert relative(kernel.cross(x1, x2), combine(across)) < 1e-10
        swapped = gram.transpose(1, 0, 3, 2) if outputs == "full" else gram.T
        np.testing.assert_array_equal(gram, swapped)
        diagonal = np.einsum("ii...->i...", combine(blocks))
        assert relative(kernel.diag(x1), diagonal) < 1e-10


@pytest.mark.parametrize("name", networks.LOOPS)
def test_control_flow_equals_definition(name, rng):
    network = networks.LOOPS[name]()
    x = networks.rows_for(network, 4, rng)
    j = jacobian_by_hand(network, x)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        gram = kk.kernels.NTK(network).gram(x)
    assert relative(gram, np.einsum("ikp,jlp->ij", j, j)) < 1e-10


@pytest.mark.parametrize(
    "name", ["three outputs", "skip connection", "tied weights", "sequence"]
)
def test_jacobian_equals_definition(name, rng):
    network = ALL[name]()
    x = networks.rows_for(network, 5, rng)
    j = jacobian_by_hand(network, x)
    kernel = kk.kernels.NTK(network, "sum", method="jacobian")
    assert relative(kernel.gram(x), np.einsum("ikp,jlp->ij", j, j)) < 1e-10


@pytest.mark.parametrize("name", networks.STRUCTURED)
def test_structured_needs_no_fallback(name, rng):
    network = networks.STRUCTURED[name]()
    kernel = kk.kernels.NTK(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel.gram(networks.rows_for(network, 3, rng))


@pytest.mark.parametrize("name", networks.FALLBACK)
def test_fallback_is_announced(name, rng):
    network = networks.FALLBACK[name]()
    x = networks.rows_for(network, 3, rng)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        kk.kernels.NTK(network).gram(x)


@pytest.mark.parametrize(
    "name", ["skip connection", "shared layer", "wide sequence", "sequence", "tied weights"]
)
@pytest.mark.parametrize("outputs", ["sum", "trace"])
@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
def test_gradients_of_methods_agree(name, outputs, rng):
    """For an upstream gradient that is not symmetric."""
    network = ALL[name]()
    x = networks.rows_for(network, 5, rng)
    upstream = rng.normal(size=(5, 5))

    def gradients(method):
        kernel = kk.kernels.NTK(network, outputs, method=method)
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(kernel.gram(x) * upstream)
        variables = [v.value for v in network.trainable_variables]
        return tape.gradient(value, variables, unconnected_gradients="zero")

    for a, b in zip(gradients("structured"), gradients("jacobian"), strict=True):
        scale = max(1.0, np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, atol=1e-10 * scale, rtol=0)


@pytest.mark.parametrize(
    "name", ["three outputs", "two inputs", "sequence", "tied weights"]
)
@pytest.mark.parametrize("outputs", ["sum", "trace"])
@pytest.mark.parametrize("m", [1, 3])
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
    j = jacobian_by_hand(network, x)
    assert relative(after, np.einsum("ikp,jlp->ij", j, j)) < 1e-10
    assert relative(after, before) > 0.01


def test_weights_are_read_at_each_call(rng):
    network = networks.mlp()
    x = rng.normal(size=(4, networks.D))
    kernel = kk.kernels.NTK(network)
    kernel.gram(x)
    network.set_weights([w * 1.5 for w in network.get_weights()])
    j = jacobian_by_hand(network, x)
    assert relative(kernel.gram(x), np.einsum("ikp,jlp->ij", j, j)) < 1e-10


def test_first_use_inside_a_function(rng):
    """Planned on made-up rows, since the real ones are symbolic."""
    network = networks.Tied()
    x = networks.rows_for(network, 4, rng)
    kernel = kk.kernels.NTK(network)
    with pytest.warns(UserWarning, match="plain Jacobian"):
        gram = tf.function(kernel.gram)(tf.constant(x))
    j = jacobian_by_hand(network, x)
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
    j = jacobian_by_hand(network, x)[:, 0]
    gram = kk.kernels.NTK(network, method="jacobian").gram(x)
    assert relative(gram, j @ j.T) < 1e-12
