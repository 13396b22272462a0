"""Networks whose layers hand on a mask are served by layer rules, however they begin."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk

LENGTH = 5
BEHIND = {
    "pooling": lambda: [layers.GlobalAveragePooling1D()],
    "dense, pooling": lambda: [layers.Dense(3, "tanh"), layers.GlobalAveragePooling1D()],
    "recurrent": lambda: [layers.GRU(3)],
    "each step": lambda: [
        layers.TimeDistributed(layers.Dense(3)),
        layers.GlobalAveragePooling1D(),
    ],
    "masked again": lambda: [layers.Masking(), layers.GlobalAveragePooling1D()],
}


def network(name, dtype, length=LENGTH):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((length,), dtype=dtype),
            layers.Embedding(9, 3, mask_zero=True),
            *BEHIND[name](),
            layers.Dense(1),
        ]
    )


def rows(dtype):
    x = np.random.default_rng(0).integers(1, 9, size=(12, LENGTH))
    x[::3, 2:] = 0
    return x.astype(dtype)


@pytest.fixture(autouse=True)
def no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("first", ["eager", "fixed", "open"])
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "int32") for name in BEHIND), ("pooling", "float32")]
)
def test_at_the_first_use(float64, name, first, dtype):
    x, kernel = tf.constant(rows(dtype)), kk.kernels.NTK(network(name, dtype))
    if first == "eager":
        gram = kernel.gram(x)
    else:
        spec = x if first == "fixed" else tf.TensorSpec([None, LENGTH], x.dtype)
        function = tf.function(kernel.gram, autograph=False)
        gram = function.get_concrete_function(spec)(x)
    plain = kk.kernels.NTK(kernel.network, method="jacobian").gram(x)
    np.testing.assert_allclose(gram, plain, rtol=1e-9, atol=1e-9 * np.max(plain))
    assert all(not share.why for share in kernel._plan(x).shares)


@pytest.mark.parametrize("use", ["predict", "evaluate", "fit", "in a function"])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_after_loading(tmp_path, form, use):
    x, y = rows("int32"), np.sign(np.sin(np.arange(12.0)))[:, None]
    head = kk.NTKRidgeHead(ridge=0.1, form=form)
    model = kk.KAREModel(network("pooling", "int32", None), head=head)
    model.compile(keras.optimizers.Adam(0.01), loss="kare")
    model.fit(x, y, epochs=1, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    {
        "predict": lambda: loaded.predict(x, verbose=0),
        "evaluate": lambda: loaded.evaluate(x, y, verbose=0),
        "fit": lambda: loaded.fit(x, y, epochs=1, verbose=0),
        "in a function": lambda: tf.function(loaded)(tf.constant(x)),
    }[use]()
    assert all(not share.why for share in loaded.kernel._plan(tf.constant(x)).shares)
