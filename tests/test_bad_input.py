"""Bad input: each case names the argument and what to do, before any long work."""

from __future__ import annotations

import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from gaussian import Gaussian
from keras import layers

import keras_kare as kk
from keras_kare.machine import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, networks.D)).astype("float32")
Y = RNG.normal(size=(12, 1)).astype("float32")
GRAM = (X @ X.T).astype("float64")


def with_value(array, value):
    array = array.copy()
    array.flat[3] = value
    return array


def model(network=None, **head):
    made = kk.KAREModel(
        network or networks.mlp(), head=kk.NTKRidgeHead(**{"ridge": 1.0, **head})
    )
    made.compile("sgd", "kare")
    return made


def fit(x=X, y=Y, network=None, **kwargs):
    made = model(network)
    before = [v.numpy() for v in made.trainable_variables]
    try:
        made.fit(x, y, verbose=0, **kwargs)
    finally:
        for a, b in zip(made.trainable_variables, before, strict=False):
            np.testing.assert_array_equal(a, b)  # refused before any training


def head(x=X, y=Y, network=None, **kwargs):
    model(network).fit_head(x, y, **kwargs)


def generator():
    yield X, Y


def nan_network():
    network = networks.mlp()
    weights = network.get_weights()
    weights[0][0, 0] = np.nan
    network.set_weights(weights)
    return network


def frozen_network():
    network = networks.mlp()
    network.trainable = False
    return network


def softmax_network():
    return keras.Sequential(
        [keras.Input((networks.D,)), layers.Dense(5, "tanh"), layers.Dense(3, "softmax")]
    )


def centred_rows():
    x = keras.Input((networks.D,))
    h = layers.Dense(3)(x)
    h = layers.Lambda(lambda t: t - keras.ops.mean(t, axis=0, keepdims=True))(h)
    return keras.Model(x, layers.Dense(1)(h))


class AlwaysTraining(layers.Layer):
    """A layer that ignores `training=False`."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x, training=True)


class Previous(layers.Layer):
    """Adds the row before, so that the first row depends on none."""

    def call(self, x):
        return x + keras.ops.concatenate([keras.ops.zeros_like(x[:1]), x[:-1]], axis=0)


def previous_rows():
    return networks.with_layers(Previous)()


def random_outputs():
    return networks.with_layers(lambda: AlwaysTraining(layers.Dropout(0.5)))()


def training_batch_norm():
    return networks.with_layers(lambda: AlwaysTraining(layers.BatchNormalization()))()


def two_outputs():
    x = keras.Input((networks.D,))
    return keras.Model(x, [layers.Dense(1)(x), layers.Dense(1)(x)])


def cut_off():
    x = keras.Input((networks.D,))
    h = layers.Lambda(lambda t: keras.ops.stop_gradient(t))(layers.Dense(3)(x))
    return keras.Model(x, layers.Lambda(lambda t: keras.ops.sum(t, -1, keepdims=True))(h))


def dead_network():
    network = networks.mlp(activation="relu")
    network.set_weights([-np.abs(w) - 1.0 for w in network.get_weights()])
    return network


def batches(x=X, y=Y, size=4):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


DATA = {
    "y with fewer rows": (lambda f: f(y=Y[:-1]), "`y` must have one row for each"),
    "y with more rows": (lambda f: f(x=X[:5]), "`y` must have one row for each"),
    "no y": (lambda f: f(y=None), "`y` is missing"),
    "scalar y": (lambda f: f(y=np.float32(1.0)), "`y` must have one row"),
    "y without columns": (lambda f: f(y=np.zeros((12, 0))), "no columns"),
    "NaN in x": (lambda f: f(x=with_value(X, np.nan)), "`x` holds NaN"),
    "Inf in x": (lambda f: f(x=with_value(X, np.inf)), "`x` holds NaN or Inf"),
    "NaN in y": (lambda f: f(y=with_value(Y, np.nan)), "`y` holds NaN"),
    "Inf in y": (lambda f: f(y=with_value(Y, -np.inf)), "`y` holds NaN or Inf"),
    "NaN in a weight": (lambda f: f(network=nan_network()), "weight .*kernel.* holds NaN"),
    "labels of one class": (lambda f: f(y=np.ones(12, "uint8")), "at least two classes"),
    "text of one class": (lambda f: f(y=np.array(["a"] * 12)), "at least two classes"),
    "holes for labels": (
        lambda f: f(y=np.array([None] * 12)),
        "without holes",
    ),
    "labels in part": (lambda f: f(y=np.array(["a", None] * 6)), "without holes"),
    "dates": (lambda f: f(y=np.zeros(12, "datetime64[s]")), "must hold numbers or labels"),
    "several labels a row": (lambda f: f(y=np.ones((12, 2), bool)), "several classes, or"),
    "columns of counts": (lambda f: f(y=np.full((12, 2), 7)), "no one-hot classes"),
    "text inputs": (lambda f: f(x=np.array([["a"] * 4] * 12)), "`x` must hold numbers"),
    "empty x": (lambda f: f(x=X[:0], y=Y[:0]), "`x` has no rows"),
    "no inputs": (lambda f: f(x=[]), "`x` is empty"),
    "x missing": (lambda f: f(x=None), "`x` is missing"),
    "one row": (lambda f: f(x=X[:1], y=Y[:1]), "at least two rows"),
    "uneven inputs": (
        lambda f: f(x=[X, X[:5, :3]], network=networks.two_inputs()),
        "same number of rows",
    ),
    "no trainable variable": (
        lambda f: f(network=frozen_network()),
        "no trainable variable",
    ),
    "outputs cut off": (lambda f: f(network=cut_off()), "depend on none"),
    "softmax": (lambda f: f(network=softmax_network()), 'outputs="trace"'),
    "rows interact": (lambda f: f(network=centred_rows()), "depend on the other rows"),
    "rows follow rows": (lambda f: f(network=previous_rows()), "depend on the other rows"),
    "another width": (lambda f: f(x=X[:, :3]), "`x` does not fit the network"),
    "a list of numbers": (lambda f: f(x=X[0].tolist()), "`y` must have one row for each"),
    "single rows": (
        lambda f: f(x=tf.data.Dataset.from_tensor_slices((X, Y[:, 0])), y=None),
        "single rows",
    ),
    "batch statistics": (lambda f: f(network=training_batch_norm()), "depend on the other"),
    "random outputs": (lambda f: f(network=random_outputs()), "or are random"),
    "two output tensors": (lambda f: f(network=two_outputs()), "must return one tensor"),
    "a generator": (lambda f: f(x=generator(), y=None), "can be read only once"),
    "an empty dataset": (lambda f: f(x=batches().take(0), y=None), "empty dataset"),
    "y with a dataset": (lambda f: f(x=batches()), "`y` must not be given with a dataset"),
    "a dataset without y": (
        lambda f: f(x=tf.data.Dataset.from_tensor_slices(X).batch(4), y=None),
        "must yield \\(x, y\\)",
    ),
    "an endless dataset": (lambda f: f(x=batches().repeat(), y=None), "endless"),
    "validation of another width": (
        lambda f: f(validation_data=(X, np.ones((12, 2), "float32"))),
        "as many columns",
    ),
    "NaN in validation": (
        lambda f: f(validation_data=(with_value(X, np.nan), Y)),
        "`validation x` holds NaN",
    ),
    "validation of no known form": (
        lambda f: f(validation_data=X),
        "`validation_data` must be",
    ),
}


@pytest.mark.parametrize("verb", [fit, head], ids=["fit", "fit_head"])
@pytest.mark.parametrize("case", DATA)
def test_data(case, verb):
    call, message = DATA[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(verb)


FIT = {
    "a batch of one": ({"batch_size": 1}, "at least 2"),
    "a batch of none": ({"batch_size": 0}, "at least 2"),
    "a fractional batch": ({"batch_size": 4.5}, "whole number"),
    "a last batch of one": ({"batch_size": 11}, "last batch of one row"),
    "no rows to validate on": ({"validation_split": 0.99}, "too few rows"),
    "negative weights in validation": (
        {"validation_data": (X, Y, -np.ones(12))},
        "`validation sample_weight` must not be negative",
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_arguments_of_fit(case):
    arguments, message = FIT[case]
    with pytest.raises(ValueError, match=message):
        fit(**arguments)


def test_batches_of_datasets():
    with pytest.raises(ValueError, match="batch of 1 rows"):
        fit(batches(size=11), None)
    with pytest.raises(ValueError, match="needs arrays"):
        fit(batches(), None, validation_split=0.5)
    weighted = tf.data.Dataset.from_tensor_slices((X, Y, -np.abs(Y[:, 0]))).batch(4)
    with pytest.raises(ValueError, match="sample_weight"):
        fit(weighted, None)
    with pytest.raises(ValueError, match="need arrays"):
        fit(batches(), None, sample_weight=np.ones(12))


@pytest.mark.parametrize("ridge", [0, -1.0, np.nan, np.inf, "automatic", None, True, [0.1]])
def test_ridges(ridge):
    for call in (
        lambda: kk.NTKRidgeHead(ridge=ridge),
        lambda: kk.losses.KARE(ridge=ridge),
        lambda: kk.risk.kare(Y, GRAM, ridge),
        lambda: kk.risk.leave_one_out(Y, GRAM, ridge),
    ):
        with pytest.raises(
            (ValueError, TypeError), match="`ridge` must be a positive finite"
        ):
            call()


GRAMS = {
    "not square": (lambda: (Y, GRAM[:5], 0.1), "square matrix"),
    "a vector": (lambda: (Y, GRAM[0], 0.1), "square matrix"),
    "integers": (lambda: (Y, np.eye(12, dtype=int), 0.1), "must hold floats"),
    "one row": (lambda: (Y[:1], GRAM[:1, :1], 0.1), "at least two rows"),
    "other rows in y": (lambda: (Y[:5], GRAM, 0.1), "`y` must have one row"),
    "NaN": (lambda: (Y, with_value(GRAM, np.nan), 0.1), "`gram` holds NaN"),
    "not symmetric": (lambda: (Y, np.triu(GRAM), 0.1), "must be symmetric"),
    "Inf in y": (lambda: (with_value(Y, np.inf), GRAM, 0.1), "`y` holds NaN or Inf"),
    "a negative tensor as ridge": (lambda: (Y, GRAM, tf.constant(-1.0)), "positive finite"),
}


@pytest.mark.parametrize("case", GRAMS)
def test_risk(case):
    arguments, message = GRAMS[case]
    for function in (kk.risk.kare, kk.risk.leave_one_out):
        with pytest.raises(ValueError, match=message):
            function(*arguments())


LOSSES = {
    "a name": "mse",
    "another name": "binary_crossentropy",
    "an instance": keras.losses.MeanSquaredError(),
    "a class": keras.losses.Huber,
    "a number": 3,
    "nothing": None,
    "a configuration": keras.saving.serialize_keras_object(keras.losses.MeanSquaredError()),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_that_are_no_gram_losses(loss):
    with pytest.raises(ValueError, match="`loss` must be a loss of a Gram"):
        model().compile("sgd", loss)


def test_arguments_of_compile():
    with pytest.raises(ValueError, match="loss_weights"):
        model().compile("sgd", "kare", loss_weights=[2.0])
    with pytest.raises(ValueError, match="jit_compile"):
        model().compile("sgd", "kare", jit_compile=True)
    with pytest.raises(ValueError, match="sample_weight"):
        kk.losses.KARE()(Y, GRAM, sample_weight=-np.ones(12))
    with pytest.raises(ValueError, match="no weights of rows"):
        kk.losses.HoldoutKARE()(Y, GRAM, sample_weight=np.ones(12))
    with pytest.raises(ValueError, match="at least four rows"):
        kk.losses.HoldoutKARE()(Y[:3], GRAM[:3, :3])


CONSTRUCTORS = {
    "unknown outputs": (
        lambda: kk.kernels.NTK(networks.mlp(), outputs="mean"),
        "`outputs`",
    ),
    "unknown method": (lambda: kk.kernels.NTK(networks.mlp(), method="fast"), "`method`"),
    "no network": (lambda: kk.kernels.NTK(layers.Dense(3)), "`network` must be"),
    "no kernel": (lambda: kk.KAREModel(lambda x: x), "`kernel` must be"),
    "no head": (lambda: kk.KAREModel(networks.mlp(), head="auto"), "`head` must be"),
    "unknown form": (lambda: kk.NTKRidgeHead(form="both"), "`form` must be one of"),
    "dual without anchors": (
        lambda: kk.NTKRidgeHead(form="dual", keep_anchors=False),
        "needs the primal form",
    ),
    "validation_anchors": (
        lambda: kk.KAREModel(networks.mlp(), validation_anchors=1),
        "`validation_anchors`",
    ),
    "a rule class": (
        lambda: kk.kernels.register_rule(layers.Dense, kk.kernels.LayerRule),
        "an instance",
    ),
    "a rule for no layer": (
        lambda: kk.kernels.register_rule(networks.mlp, object()),
        "`layer_type` must be a class",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructors(case):
    call, message = CONSTRUCTORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


class TestOrderOfCalls:
    @pytest.mark.parametrize("verb", ["predict", "predict_on_batch", "__call__"])
    def test_predict_before_any_head(self, verb):
        with pytest.raises(ValueError, match="fit_head"):
            getattr(model(), verb)(X)

    def test_evaluate_and_export_before_any_head(self, tmp_path):
        with pytest.raises(ValueError, match="fit_head"):
            model().evaluate(X, Y, verbose=0)
        with pytest.raises(ValueError, match="fit_head"):
            model().test_on_batch(X, Y)
        with pytest.raises(ValueError, match="fit_head"):
            model().export(tmp_path / "m")

    def test_fit_before_compile(self):
        with pytest.raises(ValueError, match="compile"):
            kk.KAREModel(networks.mlp()).fit(X, Y)

    def test_a_full_kernel_has_no_head(self):
        full = kk.kernels.NTK(networks.mlp(c=2), "full")
        with pytest.raises(ValueError, match=r'`kernel` must .*outputs="full"'):
            kk.KAREModel(full)
        with pytest.raises(ValueError, match='outputs="full"'):
            kk.NTKRidgeHead().on(full).solve(Rows(X, Y))
        with pytest.raises(ValueError, match='outputs="full"'):
            full.vjp(X, Y)

    def test_nothing_to_train(self):
        fixed = kk.KAREModel(Gaussian())
        fixed.compile("adam", kk.losses.KARE(0.1))
        with pytest.raises(ValueError, match="`fit_head`"):
            fixed.fit(X, Y)
        with pytest.raises(ValueError, match="`fit_head`"):
            fixed.train_on_batch(X, Y)
        fixed.fit_head(X, Y)
        assert fixed.predict(X, verbose=0).shape == (len(X), Y.shape[1])

    @pytest.mark.parametrize("streamed", [False, True])
    def test_primal_without_features(self, streamed):
        fixed = kk.KAREModel(Gaussian(), kk.NTKRidgeHead(1.0, solver="primal"))
        rows = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
        with pytest.raises(ValueError, match="finite feature map"):
            fixed.fit_head(rows) if streamed else fixed.fit_head(X, Y)

    def test_a_zero_kernel_has_no_head(self):
        with pytest.raises(ValueError, match="kernel is zero"):
            head(network=dead_relu())

    def test_unknown_export(self, tmp_path):
        made = model()
        made.fit_head(X, Y)
        with pytest.raises(ValueError, match="`format`"):
            made.export(tmp_path / "m", format="h5")
        with pytest.raises(ValueError, match="`form`"):
            made.export(tmp_path / "m", form="both")

    @pytest.mark.parametrize("verb", ["predict", "predict_on_batch"])
    def test_bad_rows_at_prediction(self, verb):
        made = model()
        made.fit_head(X, Y)
        with pytest.raises(ValueError, match="`x` holds NaN"):
            getattr(made, verb)(with_value(X, np.nan))
        with pytest.raises(ValueError, match="`x` has no rows"):
            getattr(made, verb)(X[:0])

    def test_inside_functions(self):
        """Where values are known only when the function runs."""
        kernel = kk.kernels.NTK(networks.mlp())
        bad_x, bad_y = (
            tf.constant(with_value(X, np.nan)),
            tf.constant(with_value(Y, np.nan)),
        )
        for call, message in (
            (lambda: tf.function(kernel.gram)(bad_x), "NaN"),
            (lambda: tf.function(kk.risk.kare)(bad_y, GRAM, 0.1), "`y` holds NaN"),
            (
                lambda: tf.function(kk.risk.kare)(Y, GRAM, tf.constant(-0.1)),
                "positive finite",
            ),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                call()

    def test_other_columns_at_evaluation(self):
        made = model()
        made.fit_head(X, np.repeat(Y, 3, axis=1))
        with pytest.raises(ValueError, match="as many columns"):
            made.evaluate(X, Y, verbose=0)
        with pytest.raises(ValueError, match="as many columns"):
            made.test_on_batch(X, Y)

    def test_bad_rows_in_kernels(self):
        kernel = kk.kernels.NTK(networks.mlp())
        with pytest.raises(ValueError, match="`x` holds NaN"):
            kernel.gram(with_value(X, np.nan))
        with pytest.raises(ValueError, match="`x2` holds NaN"):
            kernel.cross(X, with_value(X, np.nan))
        with pytest.raises(ValueError, match="`x` must have rows"):
            kernel.gram(np.float32(3.0))

    def test_divergence_is_named(self):
        network = networks.mlp(activation="softplus")
        made = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
        made.compile(keras.optimizers.SGD(1e20), "kare")
        with pytest.raises(
            (ValueError, tf.errors.InvalidArgumentError), match="smaller learning"
        ):
            made.fit(X, Y, epochs=20, verbose=0)


def dead_relu():
    network = keras.Sequential(
        [
            keras.Input((networks.D,)),
            layers.Dense(3, "relu", bias_initializer=keras.initializers.Constant(-100.0)),
            layers.Dense(1, use_bias=False),
        ]
    )
    return network


class TestGoodInput:
    """What looks odd but is right must not be refused."""

    def test_constant_y(self):
        made = model()
        made.fit(X, np.ones(12, "float32"), verbose=0)
        assert np.all(np.isfinite(made.predict(X)))

    def test_signed_integers(self):
        made = model()
        made.fit_head(X, np.where(Y[:, 0] > 0, 1, -1))
        assert made.predict(X).shape == (12, 1)

    def test_one_hot_integers(self):
        head(y=2 * np.eye(3, dtype=int)[np.arange(12) % 3] - 1)

    def test_data_frames(self):
        pandas = pytest.importorskip("pandas")
        made = model()
        made.fit(pandas.DataFrame(X), pandas.Series(Y[:, 0]), verbose=0)
        np.testing.assert_allclose(made.predict(pandas.DataFrame(X)), made.predict(X))

    def test_integer_inputs_and_tensors(self):
        head(x=tf.constant(X), y=tf.constant(Y))
        head(x=(X * 10).astype("int64"))

    def test_softmax_by_trace(self):
        kernel = kk.kernels.NTK(softmax_network(), outputs="trace")
        assert np.all(np.isfinite(kernel.gram(X)))

    def test_dropout_and_batch_norm_at_rest(self):
        network = networks.with_layers(
            lambda: layers.Dropout(0.5), lambda: layers.GaussianNoise(0.1)
        )()
        head(network=network)


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_another_backend(backend):
    code = "import keras_kare"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"KERAS_BACKEND": backend, "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "KERAS_BACKEND=tensorflow" in done.stderr
    assert backend in done.stderr


@pytest.mark.parametrize("batch_size", [0, -3, 1.5, True])
def test_batch_sizes_of_predictions(batch_size):
    solved = model()
    solved.fit_head(X, Y)
    for verb in (
        lambda: solved.predict(X, batch_size=batch_size),
        lambda: solved.evaluate(X, Y, batch_size=batch_size),
    ):
        with pytest.raises(ValueError, match="`batch_size` must be a positive whole"):
            verb()


def test_files_that_cannot_hold_a_head(tmp_path):
    with pytest.raises(ValueError, match=r"must end in `\.keras`"):
        model().save(tmp_path / "model.h5")


def test_a_dataset_where_arrays_are_asked_for():
    with pytest.raises(ValueError, match="must be arrays here"):
        model().kernel.gram(batches())
