"""NTKs by the variables of some layers: what they are, and what trains."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from test_layer_rules import gradient_error, jacobians_by_hand

import keras_kare as kk

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian"),
]

NTK = kk.kernels.NTK
D = networks.D


def nested(last=3):
    """A block of two layers in a network of three, all by name."""
    dense = keras.layers.Dense
    block = keras.Sequential(
        [keras.Input((6,)), dense(5, "tanh", name="inner"), dense(6, name="outer")],
        name="block",
    )
    inputs = keras.Input((D,))
    hidden = keras.layers.LayerNormalization(name="norm")(dense(6, name="first")(inputs))
    outputs = dense(last, name="last")(hidden + block(hidden))
    return keras.Model(inputs, outputs)


CASES = {
    "last": (nested, ["last"]),
    "first": (nested, ["first"]),
    "norm and a nested one": (nested, ["norm", "inner"]),
    "a block": (nested, ["block"]),
    "all": (nested, ["first", "norm", "block", "last"]),
}


@pytest.fixture(params=CASES, name="case")
def case_fixture(request, rng):
    make, names = CASES[request.param]
    network = make()
    for variable in network.variables:
        variable.assign_add(0.3 * rng.normal(size=variable.shape))
    return network, names


def named(network, names):
    """Return these layers."""
    layers = [*network.layers, *network.get_layer("block").layers]
    return [next(layer for layer in layers if layer.name == name) for name in names]


def by_hand(network, names, *rows):
    """Write out Jacobians by the variables of these layers: `(n, c, p)`, an array a set."""
    ids = {id(v) for layer in named(network, names) for v in layer.trainable_variables}
    sizes = [int(np.prod(v.shape)) for v in network.trainable_variables]
    kept = np.repeat([id(v) in ids for v in network.trainable_variables], sizes)
    return [j[..., kept] for j in jacobians_by_hand(network, *rows)]


def near(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.max(np.abs(expected)))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("outputs", ["sum", "trace", "full"])
def test_values_are_the_plain_definition(case, outputs, method, rng):
    network, names = case
    x1, x2 = rng.normal(size=(6, D)), rng.normal(size=(4, D))
    j1, j2 = by_hand(network, names, x1, x2)
    product = {
        "sum": lambda a, b: np.einsum("ikp,jlp->ij", a, b),
        "trace": lambda a, b: np.einsum("ikp,jkp->ij", a, b) / a.shape[1],
        "full": lambda a, b: np.einsum("ikp,jlp->ijkl", a, b),
    }[outputs]
    kernel = NTK(network, outputs, method, layers=names)
    near(kernel.gram(x1), product(j1, j1))
    near(kernel.cross(x1, x2), product(j1, j2))
    near(kernel.diag(x1), np.stack([product(j[None], j[None])[0, 0] for j in j1]))
    planned = {path for layer in kernel.plan(x1).layers for path in layer.variables}
    chosen = [v for layer in named(network, names) for v in layer.trainable_variables]
    assert planned == {v.path for v in chosen}


def test_features_are_derivatives_by_these_layers(case, rng):
    network, names = case
    x1, x2 = rng.normal(size=(6, D)), rng.normal(size=(4, D))
    (j1,) = by_hand(network, names, x1)
    kernel = NTK(network, "trace", layers=named(network, names))
    rows = kernel.feature_rows(x1).numpy()
    assert rows.shape[1] == kernel.feature_count(x1) == j1.shape[1] * j1.shape[2]
    near(rows @ rows.T, np.einsum("ikp,jkp->ij", j1, j1) / j1.shape[1])
    for m in (1, 3):
        v = rng.normal(size=(6, m))
        weights = kernel.vjp(x1, v)
        assert len(weights) == len(kernel.feature_variables())
        near(kernel.jvp(x2, weights), kernel.cross(x2, x1).numpy() @ v)
    single = NTK(nested(last=1), layers=["inner"])  # forward mode, one direction
    near(single.jvp(x2, single.vjp(x1, v[:, :1])), single.cross(x2, x1) @ v[:, :1])


@pytest.mark.parametrize("limit", [None, 60_000])
def test_the_gradient_of_kare_is_by_all_variables(case, rng, limit):
    network, names = case
    x = tf.constant(rng.normal(size=(12, D)))
    kernel = NTK(network, layers=names, memory_limit=limit)
    assert gradient_error(network, kernel.gram, x, rng) < 1e-5
    if names == ["last"]:
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(kernel.gram(x) ** 2)
        first = network.get_layer("first").kernel
        assert np.any(tape.gradient(value, first.value) != 0.0)


def test_parts_sum_to_the_whole_and_equal_frozen_others(rng):
    network, x = nested(), rng.normal(size=(7, D))
    whole = NTK(network, "trace").gram(x).numpy()
    parts = [["first", "norm"], ["block"], ["last"]]
    kernels = [NTK(network, "trace", layers=part) for part in parts]
    near(sum(kernel.gram(x).numpy() for kernel in kernels), whole)
    alone = kernels[1].gram(x).numpy()
    for name in ("first", "norm", "last"):
        network.get_layer(name).trainable = False
    near(NTK(network, "trace").gram(x), alone)
    near(kernels[1].gram(x), alone)
    with pytest.raises(ValueError, match=r"`layers` have no trainable variable.*'inner'"):
        kernels[2].gram(x)


def test_kernels_of_one_network_are_told_apart(rng):
    """Traces are shared between networks of an architecture, not between parts of one."""
    x = rng.normal(size=(5, D))
    for _ in range(2):
        network = nested()
        found = {}
        for names in (None, ["first"], ["last"], ["block"], ["inner", "outer"]):
            kernel = NTK(network, layers=names)
            kept = names or ["first", "norm", "block", "last"]
            (j,) = by_hand(network, kept, x)
            near(kernel.gram(x), np.einsum("ikp,jlp->ij", j, j))
            found[str(names)] = kernel.architecture()
        assert len(set(found.values())) == 5


def test_trained_saved_loaded_and_copied(rng, tmp_path):
    x = rng.normal(size=(40, D))
    y = np.sin(x[:, :1])
    network = nested()
    start = [v.numpy() for v in network.trainable_variables]
    model = kk.KAREModel(NTK(network, "trace", layers=["inner", "last"]))
    model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(0.1, relative=True))
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    moved = zip(start, network.trainable_variables, strict=True)
    assert all(
        np.any(before != v.numpy()) for before, v in moved if "last/bias" not in v.path
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.kernel.architecture() == model.kernel.architecture()
    near(loaded.kernel.gram(x), model.kernel.gram(x))
    near(loaded.predict(x), model.predict(x))
    copy = NTK.from_config(model.kernel.get_config())
    copy.network.set_weights(network.get_weights())
    near(copy.gram(x), model.kernel.gram(x))
    for form in ("primal", "dual"):
        other = kk.KAREModel(
            model.kernel, head=kk.NTKRidgeHead(model.head.report["ridge"], form=form)
        )
        other.fit_head(x, y)
        np.testing.assert_allclose(other.predict(x), model.predict(x), atol=1e-6)


def test_tied_variables_and_plain_jacobians(rng):
    network = networks.Tied()
    x = networks.rows_for(network, 6, rng)
    layer = next(each for each in network.layers if each.trainable_variables)
    ids = {id(v) for v in layer.trainable_variables}
    sizes = [int(np.prod(v.shape)) for v in network.trainable_variables]
    kept = np.repeat([id(v) in ids for v in network.trainable_variables], sizes)
    (j,) = jacobians_by_hand(network, x)
    kernel = NTK(network, layers=[layer])
    near(kernel.gram(x), np.einsum("ikp,jlp->ij", j[..., kept], j[..., kept]))
    assert gradient_error(network, kernel.gram, tf.constant(x), rng) < 1e-5


def test_a_sum_that_is_constant_in_these_layers_is_refused(rng):
    dense, inputs = keras.layers.Dense, keras.Input((D,))
    shares = keras.layers.Softmax()(dense(4, name="before")(inputs))
    parts = [shares, dense(2, name="beside")(inputs)]
    network = keras.Model(inputs, keras.layers.Concatenate()(parts))
    with pytest.raises(ValueError, match="summed outputs"):
        NTK(network, layers=["before"]).gram(rng.normal(size=(5, D)))


def test_bad_input():
    network = nested()
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    twice = keras.Sequential(
        [nested(), keras.Sequential([keras.layers.Dense(1, name="last")])]
    )
    twice.build((None, D))
    for layers, kind, says in (
        (["lost"], ValueError, "There are 'first', 'norm', .*'inner'.* Received: 'lost'"),
        ([keras.layers.Dense(1, name="other")], ValueError, "does not have.*'other'"),
        ([], ValueError, "`layers` names no layer. There are 'first'"),
        ("last", TypeError, "`layers` must be a list .*Received: layers='last'"),
        ([3], TypeError, "`layers` must be a list .*Received: 3"),
    ):
        with pytest.raises(kind, match=says):
            NTK(network, layers=layers)
    with pytest.raises(ValueError, match="`layers` needs a network that has been built"):
        NTK(unbuilt, layers=["dense"])
    with pytest.raises(ValueError, match="2 layers of `network` at once: pass the layer"):
        NTK(twice, layers=["last"])
