"""What a plan says, and the windows of convolutions against TensorFlow's own."""

from __future__ import annotations

import contextlib
import itertools

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk
from keras_kare.kernels import memory
from keras_kare.kernels.factors import FullFactor, LookupFactor, OuterFactor, Windows
from keras_kare.kernels.factors.window_products import outer_products

pytestmark = pytest.mark.usefixtures("float64")


def path_of(plan, word):
    return next(layer for layer in plan.layers if any(word in v for v in layer.variables))


class TestTable:
    def plan(self, rng, rows=10, **kwargs):
        network = keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                layers.Embedding(50, 4, name="table"),
                layers.Dense(3, "tanh", name="each"),
                networks.OwnWeight(name="own"),
                layers.Flatten(),
                layers.Dense(100, "tanh", name="wide"),
                layers.Dense(100, "tanh", name="wider"),
                layers.Dense(1, name="last"),
            ]
        )
        kernel = kk.kernels.NTK(network, **kwargs)
        with pytest.warns(UserWarning, match="own/variable"):
            return kernel.plan(rng.integers(0, 9, size=(rows, 6)))

    def test_paths(self, rng):
        plan = self.plan(rng)
        assert path_of(plan, "table").path == "lookup"
        assert path_of(plan, "each").path == "products"
        assert path_of(plan, "wider").path == "positions"
        assert path_of(plan, "last").path == "products"
        fallbacks = [layer for layer in plan.layers if layer.fallback]
        assert [layer.path for layer in fallbacks] == ["jacobian"]
        assert "own/variable" in fallbacks[0].variables[0]

    def test_counts(self, rng):
        """`n²` pairs of `p + q` multiply-adds and one product each: `2 (p + q + 1)`."""
        layer = path_of(self.plan(rng), "wider")
        assert layer.flops == 10**2 * 2 * (100 + 100 + 1)
        assert layer.bytes == 10 * (100 + 100) * 8

    def test_more_outputs_cost_more(self, rng):
        network = networks.mlp(width=100, c=5)
        x = rng.normal(size=(10, networks.D))
        one, five = (kk.kernels.NTK(network, o).plan(x) for o in ("sum", "trace"))
        assert five.layers[1].flops == 10**2 * 2 * (100 + 5 * 100 + 1)
        assert one.flops < five.flops

    def test_table_for_people(self, rng):
        text = str(self.plan(rng))
        head, *rows, total = text.splitlines()
        assert head.split() == ["variables", "path", "GFLOP", "held", "fallback"]
        assert len(rows) == 6
        assert sum(row.endswith("no layer rule") for row in rows) == 1
        assert total.startswith("10 rows, all at once")
        tiled = str(self.plan(rng, rows=5000, memory_limit=10**9))
        assert "5000 rows, in tiles of" in tiled
        assert "limit 1 GB" in tiled

    def test_bad_rows(self, rng):
        kernel = kk.kernels.NTK(networks.mlp())
        with pytest.raises(ValueError, match=r"no rows|empty"):
            kernel.plan(np.zeros((0, networks.D)))


GEOMETRIES = list(
    itertools.product(
        [(1, 1), (2, 3), (3, 2)],  # size
        [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 3))],  # strides, dilation
        ["valid", "same"],
    )
)


@pytest.mark.parametrize(("size", "steps", "padding"), GEOMETRIES)
def test_windows(size, steps, padding, rng):
    """A convolution is a product of windows; its gradients are those of the products."""
    strides, dilation = steps
    windows = Windows(size, strides, dilation, padding)
    x = tf.constant(rng.normal(size=(2, 8, 9, 3)))
    kernel = tf.constant(rng.normal(size=(*size, 3, 4)))

    def convolve(x):
        return tf.nn.convolution(x, kernel, strides, padding.upper(), dilations=dilation)

    expected = convolve(x)
    count = expected.shape[1:3]
    flat = tf.reshape(kernel, (-1, 4))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        by_windows = tf.tensordot(windows.stacked(x, count), flat, 1)
        weighted = tf.reduce_sum(tf.sin(by_windows))
        plain = tf.reduce_sum(tf.sin(convolve(x)))
    np.testing.assert_allclose(by_windows, expected, atol=1e-12)
    np.testing.assert_allclose(
        tape.gradient(weighted, x), tape.gradient(plain, x), atol=1e-12
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("padding", "steps"),
    itertools.product(["valid", "same", "causal"], [(1, 1), (2, 1), (1, 2)]),
)
@pytest.mark.parametrize("known", [True, False])
def test_windows_against_slices(padding, steps, known, dtype, rng):
    """Windows of one axis, tap by tap; first and second derivatives are as linear maps'."""
    (stride, dilation), size, length = steps, 3, 9
    x = rng.normal(size=(2, length, 4)).astype(dtype)
    reach = dilation * (size - 1)
    if padding == "valid":
        sides, count = (0, 0), (length - reach - 1) // stride + 1
    else:
        count = -(-length // stride)
        missing = max((count - 1) * stride + reach + 1 - length, 0)
        sides = (reach, 0) if padding == "causal" else (missing // 2, missing)
    padded = np.pad(x, [(0, 0), sides, (0, 0)])
    starts = np.arange(count) * stride
    expected = np.concatenate(
        [padded[:, starts + tap * dilation] for tap in range(size)], axis=-1
    )
    windows = Windows((size,), (stride,), (dilation,), padding)

    def derivatives(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                seen = windows.stacked(x, [count if known else tf.shape(expected)[1]])
                total = tf.reduce_sum(seen**3)
            first = inner.gradient(total, x)
            weighted = tf.reduce_sum(first * x)
        return seen, first, outer.gradient(weighted, x)

    shape = (None, length, 4) if known else (None, None, 4)
    traced = tf.function(derivatives, input_signature=[tf.TensorSpec(shape, dtype)])
    seen, first, second = traced(x)
    uses = np.zeros(sides[0] + length + sides[1])
    np.add.at(uses, starts[:, None] + dilation * np.arange(size), 1.0)
    uses = uses[sides[0] : sides[0] + length, None]
    np.testing.assert_array_equal(seen, expected)
    tolerance = {"rtol": 1e-12 if dtype == "float64" else 1e-5, "atol": 1e-12}
    np.testing.assert_allclose(first, 3.0 * uses * x**2, **tolerance)
    np.testing.assert_allclose(second, 9.0 * uses * x**2, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_windows_of_three_axes(dtype, rng):
    x = rng.normal(size=(2, 4, 5, 6, 2)).astype(dtype)
    kernel = rng.normal(size=(2, 1, 3, 2, 3)).astype(dtype)
    windows = Windows((2, 1, 3), (2, 1, 1), (1, 1, 1), "same")
    expected = tf.nn.conv3d(x, kernel, (1, 2, 1, 1, 1), "SAME")
    seen = windows.stacked(tf.constant(x), expected.shape[1:4])
    np.testing.assert_allclose(
        tf.tensordot(seen, kernel.reshape(-1, 3), 1), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("at_once", [0, 2**20])
@pytest.mark.parametrize(("size", "steps", "padding"), GEOMETRIES[::3])
def test_products_of_few_rows_at_a_time(size, steps, padding, at_once, rng, monkeypatch):
    """Values and gradients of the same products with an array of all windows."""
    monkeypatch.setattr("keras_kare.kernels.factors.window_products.CHUNK", 1)
    monkeypatch.setattr("keras_kare.kernels.factors.window_products.AT_ONCE", at_once)
    windows = Windows(size, *steps, padding)
    x = tf.constant(rng.normal(size=(2, 8, 9, 3)))
    count = tf.nn.convolution(
        x, tf.zeros((*size, 3, 1), x.dtype), steps[0], padding.upper(), dilations=steps[1]
    ).shape[1:3]
    b = tf.constant(rng.normal(size=(2, *count, 5)))

    def with_all_windows(x, b):
        a = tf.reshape(windows.stacked(x, count), (2, 1, -1, 3 * windows.taps))
        return OuterFactor(a, tf.reshape(b, (2, 1, -1, 1, 5))).formed().j

    def by_rows(x, b):
        return tf.reshape(outer_products(windows, x, b), (2, 1, -1))

    results = []
    for function in (with_all_windows, by_rows):
        with tf.GradientTape() as tape:
            tape.watch([x, b])
            j = function(x, b)
            total = tf.reduce_sum(tf.sin(j))
        results.append([j, *tape.gradient(total, [x, b])])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_lookup(count, rng):
    """Words as rare and as frequent as in text, against a dense table of gradients."""
    n1, n2, steps, q, size = 60, 41, 9, 2, 200
    words = [np.minimum(rng.zipf(1.3, (n, steps)), size) - 1 for n in (n1, n2)]
    users = [np.sum(np.any(words[0] == v, axis=1)) for v in np.unique(words[0])]
    assert min(users) == 1  # entries of one row, of a few rows, and of most
    assert any(4 < u < n1 / 4 for u in users)
    assert max(users) > n1 / 4
    b = [tf.constant(rng.normal(size=(n, steps, count, q))) for n in (n1, n2)]

    def dense(ids, b):
        one_hot = tf.one_hot(ids, size, dtype=b.dtype)
        return FullFactor(tf.einsum("itv,itkq->ikvq", one_hot, b))

    def lookup(ids, b):
        return LookupFactor(tf.constant(ids), b, size)

    one, other = (
        [make(*pair) for pair in zip(words, b, strict=True)] for make in (lookup, dense)
    )
    pairs = [
        (one[0].gram(), other[0].gram()),
        (one[0].cross(one[1]), other[0].cross(other[1])),
        (one[0].blocks(one[1]), other[0].blocks(other[1])),
        (one[0].diag(), other[0].diag()),
        (one[0].diag_blocks(), other[0].diag_blocks()),
    ]
    for a, expected in pairs:
        np.testing.assert_allclose(a, expected, atol=1e-11)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(b[0])
        totals = [
            tf.reduce_sum(tf.sin(make(words[0], b[0]).gram())) for make in (lookup, dense)
        ]
    got, expected = (tape.gradient(total, b[0]) for total in totals)
    np.testing.assert_allclose(got, expected, atol=1e-10)


class TestRules:
    def test_a_rule_that_computes_something_else(self, rng):
        class Twice(layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

            def call(self, inputs):
                return 2.0 * inputs * self.scale

        class WrongRule(kk.kernels.LayerRule):
            def call(self, layer, watch, inputs):
                def factor(variables, gradients):
                    return kk.kernels.FullFactor(inputs[:, None] * gradients)

                return watch(inputs * layer.scale, [layer.scale], factor)

        kk.kernels.register_rule(Twice, WrongRule())
        network = networks.with_layers(Twice)()
        with pytest.raises(ValueError, match=r"other outputs than without.*WrongRule of"):
            kk.kernels.NTK(network).gram(rng.normal(size=(4, networks.D)))

    @pytest.mark.parametrize(
        ("wrong", "error", "told"),
        [
            ("variable", TypeError, "rule Rule of layer 'own.*list of the variables"),
            ("tensor", TypeError, "rule Rule of layer 'own.*must make a factor"),
            ("shape", ValueError, r"own.*of \[\d+\] numbers.*once for each"),
        ],
    )
    def test_a_wrong_rule_is_named(self, rng, wrong, error, told):
        class Own(networks.OwnWeight):
            pass

        class Rule(kk.kernels.LayerRule):
            def call(self, layer, watch, inputs):
                def factor(variables, gradients):
                    found = inputs[:, None] * gradients
                    found = found[:, :, :-1] if wrong == "shape" else found
                    return found if wrong == "tensor" else kk.kernels.FullFactor(found)

                given = layer.scale if wrong == "variable" else [layer.scale]
                return watch(inputs * layer.scale, given, factor)

        kk.kernels.register_rule(Own, Rule())
        own = Own(name="own")
        network = keras.Sequential([keras.Input((3,)), own, layers.Dense(1)])
        with pytest.raises(error, match=told):
            kk.kernels.NTK(network).gram(rng.normal(size=(4, 3)))

    @pytest.mark.usefixtures("float64")
    def test_a_factor_that_computes_its_arrays_has_gradients(self, rng):
        """Each time they are asked for, as a user's factor may: once, on the tape."""

        class Own(networks.OwnWeight):
            pass

        class Lazy(kk.kernels.FullFactor):
            def __init__(self, inputs, gradients):
                self.inputs, self.gradients = inputs, gradients

            @property
            def j(self):
                return self.inputs[:, None] * self.gradients

            def with_parts(self, parts):
                return kk.kernels.FullFactor(parts[0])

        class Rule(kk.kernels.LayerRule):
            def call(self, layer, watch, inputs):
                h = inputs * layer.scale
                return watch(h, [layer.scale], lambda _, gradients: Lazy(inputs, gradients))

        kk.kernels.register_rule(Own, Rule())
        parts = [layers.Dense(4, "tanh"), Own(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((3,)), *parts])
        x, upstream = rng.normal(size=(7, 3)), rng.normal(size=(7, 7))
        found = []
        for method in ("structured", "jacobian"):
            kernel = kk.kernels.NTK(network, method=method)
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(upstream * kernel.gram(x))
            weights = [v.value for v in network.trainable_variables[:-1]]
            found.append(tape.gradient(value, weights))
        for ours, plain in zip(*found, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-12)

    def test_a_rule_that_declines(self, rng):
        """`NotImplemented` runs the layer's own call; its variables fall back."""

        class Own(networks.OwnWeight):
            pass

        class Declines(kk.kernels.LayerRule):
            def call(self, layer, watch, inputs):
                return NotImplemented

        kk.kernels.register_rule(Own, Declines())
        network = networks.with_layers(Own)()
        with pytest.warns(UserWarning, match="plain Jacobian"):
            kk.kernels.NTK(network).gram(rng.normal(size=(4, networks.D)))

    def test_lengths_that_are_not_known(self, rng):
        """What is unrolled needs them, as in Keras; a loop does not."""
        for unroll in (False, True):
            network = keras.Sequential(
                [keras.Input((None, 2)), layers.LSTM(2, unroll=unroll), layers.Dense(1)]
            )
            kernel = kk.kernels.NTK(network)
            kernel.check(rng.normal(size=(4, 3, 2)))
            spec = tf.TensorSpec((None, None, 2), "float64")
            refused = pytest.raises(ValueError, match="time dimension is undefined")
            with refused if unroll else contextlib.nullcontext():
                tf.function(kernel.gram).get_concrete_function(spec)


def test_memory_of_loops_is_counted():
    """What a loop keeps of each round for its gradient, where their number is known."""

    def of_rounds(rounds):
        def graph(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                _, h = tf.while_loop(
                    lambda t, h: t < rounds,
                    lambda t, h: (t + 1, tf.tanh(tf.sin(h))),
                    (0, x),
                    maximum_iterations=rounds,
                )
            return h, tape.gradient(h, x)

        function = tf.function(graph, autograph=False)
        traced = function.get_concrete_function(tf.TensorSpec((10, 8), "float32"))
        operations = traced.graph.get_operations()
        results = list(traced.outputs)
        count = len(operations)
        return memory.footprint(operations, traced.inputs, results, count, 1, 10)

    each = 2 * 8 * 4  # the arguments and the results of the two that are not linear
    assert of_rounds(200) - of_rounds(100) == pytest.approx(100 * each, rel=0.01)
