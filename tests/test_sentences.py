"""What a check in a graph says reaches the user as one sentence, its trace behind it."""

from __future__ import annotations

import traceback

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare._sentences import alone, first_line, found_in

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, networks.D)).astype("float32")
Y = np.sin(X[:, :1])
HUGE = np.float32(1e19) * X * np.float32(1e10)


def model(learning_rate=1e-3):
    made = kk.KAREModel(networks.mlp(activation="gelu"), head=kk.NTKRidgeHead(ridge=1.0))
    made.compile(keras.optimizers.SGD(learning_rate), "kare")
    return made


def batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(4)


LIGHT = np.full(12, 0.1, "float32")

CALLS = {
    "fit diverges": (
        lambda: model(1e20).fit(X, Y, epochs=20, verbose=0),
        "The Gram matrix",
    ),
    "fit of light rows": (
        lambda: model().fit(X, Y, sample_weight=LIGHT, verbose=0),
        "The weights sum",
    ),
    "train_on_batch": (
        lambda: model().train_on_batch(X, Y, sample_weight=LIGHT),
        "The weights sum",
    ),
    "predict": (lambda: model().fit_head(X, Y).predict(HUGE, verbose=0), "A prediction"),
    "predict_on_batch": (
        lambda: model().fit_head(X, Y).predict_on_batch(HUGE),
        "A prediction",
    ),
    "a call": (lambda: model().fit_head(X, Y)(HUGE), "The kernel's values"),
    "predict of batches": (
        lambda: model().fit_head(X, Y).predict(batches(np.nan * X), verbose=0),
        "An input of the kernel",
    ),
    "evaluate of batches": (
        lambda: model().fit_head(X, Y).evaluate(batches(np.nan * X, Y), verbose=0),
        "An input of the kernel",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_one_sentence_at_the_end_of_the_trace(case):
    call, begins = CALLS[case]
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)) as caught:
        call()
    (last,) = traceback.format_exception_only(caught.value)
    assert last.partition(": ")[2].startswith(begins)
    assert last.count("\n") == 1
    assert "node" not in last
    assert "[" not in last
    assert caught.value.__cause__ is not None


class Refusing(keras.layers.Layer):
    """A layer with a check of its user's."""

    def call(self, x):
        check = tf.debugging.assert_less(x, 0.0, "the user's own check")
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(x)


class Owner:
    @alone
    def raises(self, error):
        raise error


def test_errors_of_others_are_left_as_they_are():
    for error in (
        tf.errors.InvalidArgumentError(None, None, "Graph execution error:\n\nof others"),
        ValueError("of others"),
        KeyError("of others"),
        ValueError(
            "Exception encountered when calling Dense.call().\n\n\x1b[1mof others"
            "\x1b[0m\n\nArguments received by Dense.call():"
        ),
    ):
        with pytest.raises(type(error)) as caught:
            Owner().raises(error)
        assert caught.value is error


def test_a_check_of_the_user_keeps_its_trace():
    network = networks.with_layers(Refusing)()
    with pytest.raises(tf.errors.InvalidArgumentError, match="own check"):
        kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0)).fit_head(X, Y)


def test_what_stands_around_a_sentence():
    said = "`y` holds NaN or Inf : Tensor had NaN values"
    assert (
        found_in(f"Graph execution error:\n\nat node\n{said}\n\t [[{{{{node a}}}}]]")
        == said
    )
    assert found_in(f"{said} [Op:CheckNumericsV2] name: ") == said
    ridge = "`ridge` must be a positive finite number. Received: ridge="
    assert found_in(f"assertion failed: [{ridge}] [-1]\n\t [[") == f"{ridge} -1"
    assert found_in("something else") is None
    assert first_line("something\nelse") == "something"
    assert first_line(f"Graph execution error:\n\n{said}\n") == said
