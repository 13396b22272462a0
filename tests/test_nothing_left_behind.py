"""After any call of ours, failed ones too, a user's network is as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from snapshot import differences, snapshot

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")

D, ROWS = 3, 6


def sequential() -> Any:
    return keras.Sequential([keras.Input((D,)), layers.Dense(2, "tanh"), layers.Dense(1)])


def functional() -> Any:
    x, shared = keras.Input((D,)), layers.Dense(D, "tanh")
    return keras.Model(x, layers.Dense(1)(layers.Add()([shared(x), shared(shared(x))])))


class Subclassed(keras.Model):
    def __init__(self, layer: Any = None):
        super().__init__()
        self.inner = layer or layers.Dense(2, "tanh")
        self.out = layers.Dense(1)
        self.seen: dict[str, Any] = {}

    def call(self, x: Any) -> Any:
        return self.out(self.inner(x))


def nested() -> Any:
    return keras.Sequential([keras.Input((D,)), sequential(), layers.Dense(1)])


class TracedCall(Subclassed):
    @tf.function
    def call(self, x: Any) -> Any:
        return self.out(self.inner(x))


class TracedMethod(Subclassed):
    """A `tf.function` beside direct use of the layer that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.function = tf.function(lambda x: 2.0 * self.inner(x))

    def call(self, x: Any) -> Any:
        return self.out(self.function(x) + self.inner(0.5 * x))


def regularised() -> Any:
    return keras.Sequential(
        [
            keras.Input((D,)),
            layers.Dense(2, "tanh", activity_regularizer="l2", kernel_regularizer="l2"),
            layers.ActivityRegularization(l1=0.1),
            layers.Dense(1),
        ]
    )


class AddsLoss(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(ops.square(x)))
        return x


class Counts(layers.Layer):
    """Counts its calls, and keeps the last mean that it saw."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1.0)
        self.mean.assign(ops.mean(x))
        return x


class Remembers(layers.Layer):
    """Keeps Python objects of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._log: list[Any] = []
        self._last: Any = None

    def call(self, x: Any) -> Any:
        return x if x.shape[-1] == D else ops.tanh(x)


def between(*make: Callable[[], Any]) -> Callable[[], Any]:
    def network() -> Any:
        first = [keras.Input((D,)), layers.Dense(2, "tanh")]
        return keras.Sequential([*first, *(m() for m in make), layers.Dense(1)])

    return network


def recurrent(layer: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: keras.Sequential([keras.Input((2, D)), layer(), layers.Dense(1)])


def low_rank() -> Any:
    network = sequential()
    network.layers[0].enable_lora(1)
    return network


def tied_embedding() -> Any:
    x, table = keras.Input((2,), dtype="int32"), layers.ReversibleEmbedding(5, 3)
    h = table(layers.Dense(3, "tanh")(table(x)), reverse=True)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(h)))


KINDS: dict[str, Callable[[], Any]] = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": Subclassed,
    "nested": nested,
    "traced call": TracedCall,
    "traced method": TracedMethod,
    "regularised": regularised,
    "adds a loss": between(AddsLoss),
    "dropout": between(lambda: layers.Dropout(0.5), lambda: layers.GaussianNoise(0.1)),
    "batch norm": between(layers.BatchNormalization),
    "counts": between(Counts),
    "remembers": between(Remembers),
    "recurrent": recurrent(lambda: layers.SimpleRNN(2)),
    "low rank": low_rank,
}
if hasattr(layers, "ReversibleEmbedding"):  # since Keras 3.12
    KINDS["tied embedding"] = tied_embedding


def rows_for(kind: str, n: int = ROWS, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if kind == "tied embedding":
        return rng.integers(0, 5, size=(n, 2)).astype("int32")
    return rng.normal(size=(n, 2, D) if kind == "recurrent" else (n, D))


def made(kind: str) -> Any:
    """A network that was used before we saw it."""
    keras.utils.set_random_seed(0)
    network = KINDS[kind]()
    network(rows_for(kind))
    return network


def machine(network: Any) -> kk.KAREModel:
    return kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))


class Witness:
    """Compares a network with what it was, after each of our calls."""

    def __init__(self, network: Any):
        self.network = network
        self.before = snapshot(network)

    def check(self, what: str, trained: bool = False) -> None:
        """`trained`: the values of trainable variables may have changed."""
        now = snapshot(self.network)
        changed = differences(self.before, now)
        if trained:
            changed = [d for d in changed if not d.startswith(("trainable", "losses"))]
        assert not changed, f"{what} left behind: " + "; ".join(changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_kernel_calls(kind):
    network, x = made(kind), rows_for(kind)
    witness, kernel = Witness(network), kk.kernels.NTK(network)
    for what, call in {
        "check": lambda: kernel.check(x),
        "plan": lambda: kernel.plan(x),
        "gram": lambda: kernel.gram(x),
        "gram again": lambda: kernel.gram(x),
        "cross": lambda: kernel.cross(x, x[:3]),
        "jvp": lambda: kernel.jvp(x, kernel.vjp(x, np.ones((ROWS, 1)))),
    }.items():
        call()
        witness.check(what)
    check_works(network, kind)


TOUCHED = """sequential, traced call, traced method, regularised, adds a loss, dropout,
batch norm, counts, recurrent""".replace("\n", " ").split(", ")
"""Kinds that training and predicting could leave something behind in."""


@pytest.mark.parametrize("kind", TOUCHED)
@pytest.mark.filterwarnings("ignore")
def test_model_calls(kind):
    network, x = made(kind), rows_for(kind)
    y, witness = np.ones((ROWS, 1)), Witness(network)
    model = machine(network)
    model.fit_head(x, y)
    witness.check("fit_head")
    model.predict(x[:2], verbose=0)
    witness.check("predict")
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=kk.losses.KARE(0.1))
    witness.check("compile")
    model.fit(x, y, epochs=1, verbose=0)
    witness.check("fit", trained=True)
    check_works(network, kind)


def check_works(network: Any, kind: str) -> None:
    """The network takes rows of any number, the plan's too, as a copy of it does."""
    copy = made(kind)
    copy.set_weights(network.get_weights())
    for n in (1, 2, 4, ROWS, 7):
        x = rows_for(kind, n, seed=n)
        np.testing.assert_array_equal(network(x), copy(x))


class Broken(layers.Layer):
    """Raises while a graph is traced."""

    def call(self, x: Any) -> Any:
        if not tf.executing_eagerly():
            raise RuntimeError("a user's error")
        return x

    def compute_output_shape(self, shape: Any) -> Any:
        return shape  # Keras would call it to find out


def coupled() -> Any:
    return between(lambda: layers.Lambda(lambda h: h - ops.mean(h, axis=0)))()


def constant_sum() -> Any:
    return keras.Sequential([keras.Input((D,)), sequential(), layers.Dense(2, "softmax")])


def frozen() -> Any:
    network = sequential()
    network.trainable = False
    return network


def two_outputs() -> Any:
    x = keras.Input((D,))
    h = layers.Dense(2, "tanh", activity_regularizer="l2")(x)
    return keras.Model(x, [layers.Dense(1)(h), layers.Dense(1)(h)])


REFUSED: dict[str, Callable[[], Any]] = {
    "coupled rows": coupled,
    "constant sum": constant_sum,
    "nothing trains": frozen,
    "two outputs": two_outputs,
    "user's error": lambda: Subclassed(Broken()),
    "recorded, then user's error": between(
        lambda: layers.Dense(2, activity_regularizer="l2"), Broken
    ),
}
VERBS: dict[str, Callable[[Any, Any], Any]] = {
    "check": lambda kernel, x: kernel.check(x),
    "gram": lambda kernel, x: kernel.gram(x),
    "plan": lambda kernel, x: kernel.plan(x),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused_networks(kind):
    keras.utils.set_random_seed(0)
    network, x = REFUSED[kind](), rows_for(kind)
    network(x)
    before = [np.asarray(f) for f in keras.tree.flatten(network(x))]
    witness, kernel = Witness(network), kk.kernels.NTK(network)
    for what, call in VERBS.items():
        with pytest.raises((ValueError, RuntimeError)):
            call(kernel, x)
        witness.check(what)
    with pytest.raises((ValueError, RuntimeError)):
        kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1)).fit_head(
            x, np.ones((ROWS, 1))
        )
    witness.check("fit_head")
    after = keras.tree.flatten(network(x))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def bad_rows(kind: str) -> dict[str, Any]:
    x = rows_for(kind)
    if x.dtype.kind == "i":
        return {"wrong shape": x[:, :, None], "no rows": x[:0]}
    holes = x.copy()
    holes[2] = np.nan
    return {
        "NaN": holes,
        "wrong shape": x[..., :-1],
        "no rows": x[:0],
        "text": x.astype("U3"),
    }


@pytest.mark.parametrize("kind", ["regularised", "traced method", "counts", "batch norm"])
@pytest.mark.filterwarnings("ignore")
def test_bad_rows(kind):
    network, x = made(kind), rows_for(kind)
    witness, kernel = Witness(network), kk.kernels.NTK(network)
    for planned in (False, True):
        for what, bad in bad_rows(kind).items():
            for verb, call in VERBS.items():
                if planned and (verb, what) == ("plan", "wrong shape"):
                    continue  # a plan that is made needs no rows
                with contextlib.suppress(ValueError, TypeError, tf.errors.OpError):
                    call(kernel, bad)
                    pytest.fail(f"{what} was taken")
                witness.check(what)
        if not planned:
            kernel.gram(x)
            witness.check("gram")
    check_works(network, kind)


@pytest.mark.filterwarnings("ignore")
def test_too_little_memory():
    network, x = made("regularised"), rows_for("regularised")
    witness = Witness(network)
    with pytest.raises(MemoryError):
        kk.kernels.NTK(network, memory_limit=1).gram(x)
    witness.check("gram")


def test_a_snapshot_sees_what_is_left():
    """Each kind of change that the tests above look for."""
    network = made("traced method")
    layer, x = network.inner, rows_for("traced method", 3)
    changes: dict[str, Callable[[], Any]] = {
        "attribute": lambda: setattr(layer, "activation", keras.activations.relu),
        "new attribute": lambda: setattr(layer, "_extra", 1),
        "method of the object": lambda: setattr(layer, "call", layer.call),
        "cache": lambda: network.seen.update({"a": 1}),
        "weight": lambda: layer.kernel.assign(layer.kernel + 1.0),
        "trace": lambda: network.function(x),
        "trainable": lambda: setattr(layer, "trainable", False),
        "class": lambda: setattr(TracedMethod, "call", lambda self, x: x),
    }
    original = TracedMethod.call
    try:
        for what, change in changes.items():
            before = snapshot(network)
            assert not differences(before, snapshot(network))
            change()
            assert differences(before, snapshot(network)), what
    finally:
        TracedMethod.call = original


def test_a_snapshot_sees_symbolic_losses():
    network, x = made("regularised"), tf.constant(rows_for("regularised"))
    before = snapshot(network)
    tf.function(lambda t: network(t)).get_concrete_function(x)
    assert any("losses" in d for d in differences(before, snapshot(network)))


def test_warnings_are_as_before():
    filters = list(warnings.filters)
    kk.kernels.NTK(made("sequential")).gram(rows_for("sequential"))
    assert list(warnings.filters) == filters
