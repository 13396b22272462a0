"""What was once a silently wrong kernel: values by hand, on rows that no plan has seen.

Each network is one of a kind; `test_generated.py` has the kinds.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from test_layer_rules import blocks_of, jacobians_by_hand, relative

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")


@contextlib.contextmanager
def plain_jacobian_announced(expected: bool = True) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(w.message) for w in caught if "plain Jacobian" in str(w.message)]
    assert bool(said) is expected, said


def by_hand(network: Any, x: Any) -> np.ndarray:
    variables = [v.value for v in network.trainable_variables]
    parts = keras.tree.flatten(x)

    def row(i: int) -> np.ndarray:
        one = keras.tree.map_structure(lambda t: tf.constant(t[i : i + 1]), x)
        with tf.GradientTape() as tape:
            f = tf.reduce_sum(network(one, training=False))
        found = tape.gradient(f, variables, unconnected_gradients="zero")
        return np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in found])

    j = np.stack([row(i) for i in range(len(parts[0]))])
    return j @ j.T


def check(network: Any, x: Any, first: Any = None, announced: bool = True) -> None:
    kernel = kk.kernels.NTK(network)
    with plain_jacobian_announced(announced):
        if first is not None:
            kernel.gram(first)
        gram = kernel.gram(x)
    assert relative(gram, by_hand(network, x)) < 1e-9


class Kernel(layers.Layer):
    """`x` times the kernel of another layer."""

    def __init__(self, other: Any):
        super().__init__()
        self.other = other

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.other.kernel)


def mostly_zero(rng: np.random.Generator, n: int = 20) -> np.ndarray:
    """Column 3 is zero but in rows that no even spread of four picks."""
    x = rng.normal(size=(n, 4))
    x[:, 3] = 0.0
    x[[2, 9, 11], 3] = (1.0, -2.0, 0.5)
    return x


class TestRoads:
    def test_second_use_behind_a_gate(self, rng):
        i, d = keras.Input((4,)), layers.Dense(4, "tanh")
        h = d(i)
        both = layers.Concatenate()([h, Kernel(d)(h) * i[:, 3:4]])
        network = keras.Model(i, layers.Dense(1)(both))
        x = mostly_zero(rng)
        check(network, x)
        kernel = kk.kernels.NTK(network)
        v = rng.normal(size=(len(x), 2))
        with plain_jacobian_announced():
            dual = kernel.gram(x) @ v
        assert relative(kernel.jvp(x, kernel.vjp(x, v)), dual) < 1e-9

    def test_second_input_that_is_often_missing(self, rng):
        a, b, d = keras.Input((4,)), keras.Input((4,)), layers.Dense(4, "tanh")
        h = d(a) + Kernel(d)(b)
        network = keras.Model([a, b], layers.Dense(1)(ops.tanh(h)))
        x = [rng.normal(size=(20, 4)), np.zeros((20, 4))]
        x[1][[3, 8]] = rng.normal(size=(2, 4))
        check(network, x)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_first_call_on_rows_that_say_nothing(self, rng, value):
        i, d = keras.Input((4,)), layers.Dense(4, use_bias=False)
        network = keras.Model(i, layers.Dense(1)(ops.tanh(d(i) * Kernel(d)(i))))
        check(network, rng.normal(size=(6, 4)), first=np.full((5, 4), value))

    def test_routing_to_experts(self, rng):
        """Two experts; the second, also a part of the router, meets few rows."""
        i = keras.Input((4,))
        first, second = layers.Dense(4, "tanh"), layers.Dense(4, "tanh")
        gate = ops.cast(i[:, 3:4] > 0.7, "float64")
        h = (1 - gate) * first(i) + gate * (second(i) + Kernel(second)(first(i)))
        check(keras.Model(i, layers.Dense(1)(h)), mostly_zero(rng))

    def test_rare_tokens_with_tied_embeddings(self, rng):
        i = keras.Input((5,), dtype="int32")
        table = layers.Embedding(9, 3)

        class Logits(layers.Layer):
            def call(self, h: Any, tokens: Any) -> Any:
                rare = ops.cast(ops.any(tokens == 8, axis=1, keepdims=True), h.dtype)
                return rare * ops.matmul(h, ops.transpose(table.embeddings))

        h = layers.GlobalAveragePooling1D()(table(i))
        network = keras.Model(i, layers.Dense(1)(ops.tanh(Logits()(h, i)) + h[:, :1]))
        x = rng.integers(0, 8, size=(12, 5))
        x[[2, 7], 1] = 8
        check(network, x)

    def test_last_unit_that_is_dead_on_most_rows(self, rng):
        last = layers.Dense(1, "relu", bias_initializer=keras.initializers.Constant(-1.0))
        network = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), last])
        x = np.zeros((20, 4))
        x[[4, 13]] = 3.0 * rng.normal(size=(2, 4))
        network.layers[1].set_weights([np.full((5, 1), 1.0), np.array([-1.0])])
        x[4] *= np.sign(np.sum(np.tanh(x[4] @ network.layers[0].kernel.numpy())))
        assert by_hand(network, x).any()
        check(network, x, announced=False)

    def test_one_variable_of_two_layers(self, rng):
        i, first, second = keras.Input((4,)), layers.Dense(4, "tanh"), layers.Dense(4)
        first.build((None, 4))
        second.build((None, 4))
        second.__dict__["_kernel"] = first._kernel
        network = keras.Model(i, layers.Dense(1)(second(first(i))))
        check(network, rng.normal(size=(6, 4)))

    def test_a_use_behind_another_that_is_not_watched(self, rng):
        i, d = keras.Input((4,)), layers.Dense(4, "tanh")
        network = keras.Model(i, layers.Dense(1)(d(Kernel(d)(d(i)))))
        check(network, rng.normal(size=(6, 4)))

    def test_blank_rows_are_no_softmax(self, rng):
        parts = [layers.Dense(8, "relu", use_bias=False), layers.Dense(3, use_bias=False)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        x = rng.normal(size=(7, 4))
        x[[0, 2, 4, 6]] = 0.0
        check(network, x, announced=False)

    def test_a_softmax_is_refused(self, rng):
        parts = [layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
        network = keras.Sequential([keras.Input((4,)), *parts])
        with pytest.raises(ValueError, match=r'outputs="trace"'):
            kk.kernels.NTK(network).gram(rng.normal(size=(7, 4)))

    def test_branches_on_a_number_of_rows(self, rng):
        class Branching(layers.Layer):
            def __init__(self) -> None:
                super().__init__()
                self.inner = layers.Dense(3)

            def build(self, shape: Any) -> None:
                self.inner.build(shape)

            def call(self, x: Any) -> Any:
                if x.shape[0] is not None and 1 < x.shape[0] < 20:
                    return self.inner(x)
                weighted = ops.matmul(x, self.inner.kernel) + self.inner.bias
                return 0.5 * (weighted + self.inner(x))

        parts = [layers.Dense(4, "tanh"), Branching(), layers.Dense(1)]
        check(keras.Sequential([keras.Input((4,)), *parts]), rng.normal(size=(9, 4)))

    @pytest.mark.parametrize("method", ["auto", "jacobian"])
    def test_rows_that_are_equal_still_interact(self, rng, method):
        class Centred(layers.Layer):
            def call(self, h: Any) -> Any:
                return h - ops.mean(h, axis=0, keepdims=True)

        i = keras.Input((5,), dtype="int32")
        h = Centred()(layers.Flatten()(layers.Embedding(7, 2)(i)))
        network = keras.Model(i, layers.Dense(1)(h))
        with pytest.raises(ValueError, match="depend on the other rows"):
            kk.kernels.NTK(network, method=method).gram(np.ones((6, 5), int))


class InnerFunction(layers.Layer):
    """A layer used in a `tf.function` of its own and beside it."""

    def __init__(self, beside: bool):
        super().__init__()
        self.inner = layers.Dense(4, "tanh")
        self.function = tf.function(lambda x: 2.0 * self.inner(x))
        self.beside = beside

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return self.function(x) + self.inner(x) if self.beside else self.function(x)


class TracedCall(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = layers.Dense(4, "tanh"), layers.Dense(1)

    @tf.function
    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))


class TracedLayer(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = layers.Dense(4, "tanh"), layers.Dense(1)
        self.function = tf.function(self.hidden.__call__)

    def call(self, x: Any) -> Any:
        return self.out(self.function(x))


def traces(function: Any) -> int:
    return int(function.experimental_get_tracing_count())


class TestFunctionsInside:
    @pytest.mark.parametrize("beside", [True, False])
    def test_of_a_layer(self, rng, beside):
        parts = [layers.Dense(4, "tanh"), InnerFunction(beside), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        x = rng.normal(size=(6, 4))
        kernel = kk.kernels.NTK(network)
        before = traces(parts[1].function)
        with plain_jacobian_announced(False):
            gram = kernel.gram(x)
        assert traces(parts[1].function) == before
        assert relative(gram, by_hand(network, x)) < 1e-9

    @pytest.mark.parametrize("make", [TracedCall, TracedLayer])
    @pytest.mark.parametrize("method", ["auto", "jacobian"])
    def test_of_a_model_that_was_called_before(self, rng, make, method):
        network, x = make(), rng.normal(size=(6, 4))
        outputs = network(x)
        function = network.call if make is TracedCall else network.function
        before = traces(function)
        kernel = kk.kernels.NTK(network, method=method)
        with plain_jacobian_announced(False):
            gram = kernel.gram(x)
        assert traces(function) == before
        np.testing.assert_array_equal(network(x), outputs)
        network(x[:4])
        assert relative(gram, by_hand(network, x)) < 1e-9

    def test_predictions(self, rng):
        """Forward mode, too, leaves the user's function alone."""
        network, x = TracedCall(), rng.normal(size=(6, 4))
        network(x)
        before = traces(network.call)
        head = kk.NTKRidgeHead(ridge=1.0, form="primal")
        model = kk.KAREModel(network, head=head)
        with plain_jacobian_announced(False):
            model.fit_head(x, x[:, :1])
        predicted = model.predict(x, verbose=0)
        assert traces(network.call) == before
        gram = by_hand(network, x)
        system = gram + np.trace(gram) / 6 * np.eye(6)
        assert relative(predicted, gram @ np.linalg.solve(system, x[:, :1])) < 1e-6

    def test_compiled_by_xla(self, rng):
        """Stays a function of its own, whose variables take the plain Jacobian."""

        class Compiled(layers.Layer):
            def __init__(self) -> None:
                super().__init__()
                self.inner = layers.Dense(4, "tanh")
                self.function = tf.function(lambda x: self.inner(x), jit_compile=True)

            def build(self, shape: Any) -> None:
                self.inner.build(shape)

            def call(self, x: Any) -> Any:
                return self.function(x) + self.inner(x)

        parts = [layers.Dense(4, "tanh"), Compiled(), layers.Dense(1)]
        network, x = keras.Sequential([keras.Input((4,)), *parts]), rng.normal(size=(5, 4))
        before = traces(parts[1].function)
        kernel = kk.kernels.NTK(network)
        with plain_jacobian_announced():
            gram = kernel.gram(x)
        assert traces(parts[1].function) == before
        assert relative(gram, by_hand(network, x)) < 1e-9

    def test_a_method_given_to_it(self, rng):
        class Doubled(layers.Layer):
            def __init__(self) -> None:
                super().__init__()
                self.inner = layers.Dense(4, "tanh")
                self.function = tf.function(self.twice)

            def build(self, shape: Any) -> None:
                self.inner.build(shape)

            def twice(self, x: Any) -> Any:
                return 2.0 * self.inner(x)

            def call(self, x: Any) -> Any:
                return self.function(x)

        parts = [layers.Dense(4), Doubled(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        check(network, rng.normal(size=(5, 4)), announced=False)

    def test_python_of_tensors(self, rng):
        """`if` and `for` of tensors, as in any `tf.function`."""

        class Steps(layers.Layer):
            @tf.function
            def call(self, x: Any) -> Any:
                for _ in tf.range(2):
                    x = 0.5 * x
                if tf.shape(x)[0] > 100:
                    return -x
                return ops.tanh(x)

        parts = [layers.Dense(4), Steps(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        check(network, rng.normal(size=(5, 4)), announced=False)


class TestVariablesMadeLate:
    def test_by_an_activation(self, rng):
        activation = layers.PReLU(alpha_initializer="uniform")
        parts = [layers.Dense(5, activation=activation), layers.Dense(1)]
        check(
            keras.Sequential([keras.Input((4,)), *parts]),
            rng.normal(size=(6, 4)),
            announced=False,
        )

    def test_by_a_model_that_was_only_built(self, rng):
        class Network(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.hidden, self.out = layers.Dense(5, "tanh"), layers.Dense(1)

            def build(self, shape: Any) -> None:
                self.built = True

            def call(self, x: Any) -> Any:
                return self.out(self.hidden(x))

        network = Network()
        network.build((None, 4))
        check(network, rng.normal(size=(6, 4)), announced=False)


class TestPlans:
    """No plan depends on the values of the rows that it was made with."""

    def plans(self, make: Any, *rows: Any) -> list[Any]:
        network = make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [kk.kernels.NTK(network).plan(x) for x in rows]
            symbolic = kk.kernels.NTK(network)
            tf.function(symbolic.gram).get_concrete_function(
                tf.TensorSpec((None, *rows[0].shape[1:]), rows[0].dtype)
            )
            found.append(symbolic.plan(rows[0]))
        return [
            [(part.variables, part.path, part.why, part.flops) for part in plan.layers]
            for plan in found
        ]

    def gated(self) -> Any:
        i, d = keras.Input((4,)), layers.Dense(4, "tanh")
        h = d(i)
        both = layers.Concatenate()([h, Kernel(d)(h) * i[:, 3:4]])
        return keras.Model(i, layers.Dense(1, "relu")(both))

    def convolution(self) -> Any:
        parts = [layers.Conv1D(3, 2), layers.LSTM(2), layers.Dense(2, "softmax")]
        return keras.Sequential([keras.Input((5, 2)), *parts, layers.Dense(1)])

    @pytest.mark.parametrize("make", ["gated", "convolution"])
    def test_same_plan(self, rng, make):
        shape = (6, 4) if make == "gated" else (6, 5, 2)
        rows = np.zeros(shape), np.ones(shape), rng.normal(size=shape)
        first, *others = self.plans(getattr(self, make), *rows)
        assert all(other == first for other in others)

    def test_reasons(self, rng):
        (layers_of_plan, *_) = self.plans(self.gated, rng.normal(size=(6, 4)))
        whys = {names: why for names, _, why, _ in layers_of_plan}
        assert sorted(whys.values()) == ["", "", "another road"]
        (tied,) = [names for names, why in whys.items() if why]
        assert [name.split("/")[-1] for name in tied] == ["kernel"]


def padded(rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(6, 3, 4))
    x[1, 2:] = 0.0
    x[2, 1:] = 0.0
    return x


class TestMasks:
    @pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU, layers.SimpleRNN])
    def test_both_directions(self, rng, cell):
        """Keras, unrolled backwards, blanks the wrong steps."""
        i = keras.Input((3, 4))
        h = layers.Bidirectional(cell(3, return_sequences=True))(layers.Masking()(i))
        network = keras.Model(i, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))
        x = padded(rng)
        check(network, x, first=rng.normal(size=(4, 3, 4)), announced=False)

    def test_states_are_refused(self, rng):
        i = keras.Input(batch_shape=(4, 3, 2))
        network = keras.Model(i, layers.Dense(1)(layers.LSTM(2, stateful=True)(i)))
        with pytest.raises(ValueError, match="stateful=False"):
            kk.kernels.NTK(network).gram(rng.normal(size=(4, 3, 2)))


@tf.custom_gradient
def doubled_backwards(t: Any) -> Any:
    return tf.tanh(t), lambda upstream: 2.0 * upstream


class Functions(keras.Model):
    """A layer, and functions round it that forward mode cannot follow."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.hidden, self.out = kind, layers.Dense(4), layers.Dense(1)
        self.hidden.build((None, 4))
        signature = [tf.TensorSpec([None, 4], "float64")]
        self.given = tf.function(lambda x: self.hidden(x) * 2.0, input_signature=signature)
        self.compiled_ = tf.function(lambda x: self.hidden(x) * 2.0, jit_compile=True)

    def call(self, x: Any) -> Any:
        if self.kind == "custom gradient":
            return self.out(doubled_backwards(self.hidden(x)))
        function = self.given if self.kind == "signature" else self.compiled_
        return self.out(ops.tanh(function(x) + self.hidden(x)))


@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
@pytest.mark.parametrize("kind", ["custom gradient", "signature", "compiled"])
def test_one_direction_at_a_time(kind, rng):
    """As primal predictions are made: what forward mode would not see."""
    network, x = Functions(kind), rng.normal(size=(5, 4))
    network(x)
    kernel, v = kk.kernels.NTK(network), rng.normal(size=(5, 1))
    assert relative(kernel.jvp(x, kernel.vjp(x, v)), by_hand(network, x) @ v) < 1e-9


class Reordered(keras.Model):
    def __init__(self, way: str):
        super().__init__()
        self.way, self.hidden, self.out = way, layers.Dense(4, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        if self.way == "sorted":
            order = tf.argsort(tf.cast(x[:, 0] < -900.0, tf.int32), stable=True)
            h = tf.gather(self.hidden(0.01 * tf.gather(x, order)), tf.argsort(order))
        elif self.way == "flipped" and x.shape[0] is None:
            h = tf.reverse(self.hidden(tf.reverse(x, [0])), [0])
        else:
            h = self.hidden(x)
        return self.out(h)


@pytest.mark.parametrize("way", ["sorted", "flipped"])
def test_rows_in_another_order(way, rng):
    network, x = Reordered(way), rng.normal(size=(9, 4))
    network(x)
    kernel = kk.kernels.NTK(network)
    with plain_jacobian_announced():
        kernel.gram(x)
    x[[2, 5, 7], 0] = -999.0
    assert relative(kernel.gram(x), by_hand(network, x)) < 1e-9


def test_a_concrete_function_beside_its_layer(rng):
    class Concrete(layers.Layer):
        def build(self, shape: Any) -> None:
            self.inner = layers.Dense(4, "tanh")
            self.inner.build(shape)
            spec = tf.TensorSpec([None, 4], "float64")
            self.function = tf.function(self.inner.__call__).get_concrete_function(spec)

        def call(self, x: Any) -> Any:
            return self.function(x) + 2.0 * self.inner(x)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    network = keras.Sequential([keras.Input((4,)), Concrete(), layers.Dense(1)])
    check(network, rng.normal(size=(5, 4)))


def test_a_function_of_no_source(rng):
    class Partial(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.function = tf.function(functools.partial(ops.multiply, 2.0))

        def call(self, x: Any) -> Any:
            return self.function(x)

    network = keras.Sequential([keras.Input((4,)), layers.Dense(3), Partial()])
    check(network, rng.normal(size=(5, 4)), announced=False)


def test_a_rule_that_is_registered_later(rng):
    """Kernels made before are planned anew, and try it."""

    class Shift(layers.Layer):
        def build(self, shape: Any) -> None:
            self.shift = self.add_weight(shape=(shape[-1],))

        def call(self, x: Any) -> Any:
            return x + self.shift

    class Wrong(kk.kernels.LayerRule):
        def call(self, layer: Any, watch: Any, inputs: Any) -> Any:
            def factor(variables: Any, gradients: Any) -> Any:
                return kk.kernels.FullFactor(2.0 * gradients)

            return watch(inputs + layer.shift, [layer.shift], factor)

    parts = [layers.Dense(3), Shift(), layers.Activation("tanh"), layers.Dense(1)]
    network, x = keras.Sequential([keras.Input((4,)), *parts]), rng.normal(size=(5, 4))
    kernel, v = kk.kernels.NTK(network), rng.normal(size=(5, 2))
    with plain_jacobian_announced():
        kernel.gram(x)
    kk.kernels.register_rule(Shift, Wrong())
    with plain_jacobian_announced():
        product = kernel.jvp(x, kernel.vjp(x, v))
    assert relative(product, by_hand(network, x) @ v) < 1e-9


class TestMixedTypes:
    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
    @pytest.mark.parametrize("outputs", [1, 3])
    def test_layers_inside_a_float32_model(self, rng, policy, outputs):
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        parts = [layers.Dense(8, "tanh", dtype=policy), layers.Dense(outputs)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        x = rng.normal(size=(6, 4)).astype("float32")
        with plain_jacobian_announced(False):
            gram = kk.kernels.NTK(network).gram(x)
        assert relative(gram, by_hand(network, x)) < 2e-2

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_one_output_under_a_global_policy(self, rng, policy):
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
        parts = [layers.Dense(8, "tanh"), layers.Dense(8, "gelu"), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4,)), *parts])
        x = rng.normal(size=(6, 4)).astype("float32")
        with plain_jacobian_announced(False):
            gram = kk.kernels.NTK(network).gram(x)
        assert relative(gram, by_hand(network, x)) < 5e-2


class TestRowsWithoutOutputs:
    def network(self) -> Any:
        i = keras.Input((5,), dtype="int32")
        h = layers.GlobalAveragePooling1D()(layers.Embedding(7, 4, mask_zero=True)(i))
        return keras.Model(i, layers.Dense(1)(h))

    def rows(self, rng: np.random.Generator) -> np.ndarray:
        x = rng.integers(1, 7, size=(8, 5))
        x[3] = 0
        return x

    @pytest.mark.parametrize("verb", ["gram", "diag", "check"])
    def test_are_named(self, rng, verb):
        kernel = kk.kernels.NTK(self.network())
        with pytest.raises(ValueError, match="outputs for row 3 of `x` are NaN"):
            getattr(kernel, verb)(self.rows(rng))

    def test_are_named_beside_others(self, rng):
        x = self.rows(rng)
        with pytest.raises(ValueError, match="row 3 of `x2`"):
            kk.kernels.NTK(self.network()).cross(x[:2], x)

    def test_are_named_before_training(self, rng):
        model = kk.KAREModel(self.network())
        model.compile("sgd", "kare")
        with pytest.raises(ValueError, match="row 3 of `x`"):
            model.fit(self.rows(rng), rng.normal(size=(8, 1)), verbose=0)


def test_jacobians_of_both_tests_agree(rng):
    """The reference here and that of the rules' tests are written apart."""
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)]
    )
    x = rng.normal(size=(3, 4))
    (j,) = jacobians_by_hand(network, x)
    assert relative(by_hand(network, x), blocks_of(j, j)[..., 0, 0]) < 1e-12


class SetsBias(layers.Layer):
    """Sets a bias that is computed from the kernel beside it, for rows of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def build(self, shape: Any) -> None:
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        bias = self.dense.bias
        opened = ops.relu(1.0 - 1e4 * ops.square(x[:, :1] - 7.3))
        self.dense.bias = bias + opened * ops.sum(self.dense.kernel, axis=0)
        try:
            return ops.tanh(self.dense(x))
        finally:
            self.dense.bias = bias


def test_a_bias_that_is_computed_from_the_kernel(rng):
    network = keras.Sequential([keras.Input((4,)), SetsBias(), layers.Dense(1)])
    x = rng.normal(size=(5, 4))
    x[:2, 0] = 7.3, 7.301
    check(network, x, first=rng.normal(size=(4, 4)), announced=True)


class Scaled(keras.Model):
    """A number that its function has traced, for a number of rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.factor = layers.Dense(2), 2.0
        self.function = tf.function(lambda x: self.factor * self.dense(x))

    def call(self, x: Any) -> Any:
        return self.function(x)


def test_only_traces_for_such_rows_may_be_stale(rng):
    network = Scaled()
    network.dense.build((None, 4))
    network(rng.normal(size=(2, 4)))
    network.factor = 3.0  # the function keeps the old one for two rows alone
    check(network, rng.normal(size=(5, 4)), announced=False)
    network(tf.constant(rng.normal(size=(13, 4))))
    network.factor = 4.0
    with pytest.raises(ValueError, match="something else than its layers' Python"):
        kk.kernels.NTK(network).gram(rng.normal(size=(13, 4)))
