"""Numbers at the ends of float32: right, or refused by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk

RIDGE = 1e-3
N = 30


def linear_network(scale=1.0):
    """`f(x) = x V u`, whose kernel is a line of NumPy."""
    dense = keras.layers.Dense
    network = keras.Sequential(
        [keras.Input((4,)), dense(6, use_bias=False), dense(1, use_bias=False)]
    )
    network.set_weights([scale * w for w in network.get_weights()])
    return network


def expected(network, x, y, new):
    """`(1/n) K(x', X) (K/n + λI)⁻¹ y` with `K = (x xᵀ)|u|² + (x V)(x V)ᵀ`."""
    v, u = (w.astype("float64") for w in network.get_weights())
    x, new = x.astype("float64"), new.astype("float64")

    def kernel(a, b):
        return (a @ b.T) * np.sum(u**2) + (a @ v) @ (b @ v).T

    gram, n = kernel(x, x), len(x)
    ridge = RIDGE * np.trace(gram) / n**2
    return kernel(new, x) @ np.linalg.solve(gram / n + ridge * np.eye(n), y) / n


def data(rng, x=1.0, y=1.0):
    rows = x * rng.normal(size=(N + 5, 4)).astype("float32")
    return rows[:N], y * np.sin(rng.normal(size=(N, 1))), rows[N:]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "scales",
    [
        {"x": 1e-30, "y": 1e10},  # w overflows
        {"x": 1e10, "y": 1e-29},  # w vanishes
        {"weights": 1e37},  # w is near the smallest normal number
        {"weights": 1e-18},
    ],
    ids=repr,
)
class TestPredictions:
    @pytest.mark.parametrize("form", ["primal", "dual"])
    def test_extreme_scales(self, rng, scales, form):
        scales = dict(scales)
        network = linear_network(scales.pop("weights", 1.0))
        x, y, new = data(rng, **scales)
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=RIDGE, form=form))
        model.fit_head(x, y)
        assert model.head.report["form"] == form
        wanted = expected(network, x, y, new)
        close(model(new), wanted)
        other = model.machine.in_form("primal" if form == "dual" else "dual")
        close(other(new), wanted)


def test_wide_weights_are_saved_and_exported(rng, tmp_path):
    network = linear_network()
    x, y, new = data(rng, x=1e-30, y=1e10)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=RIDGE))
    model.fit_head(x, y)
    wanted = expected(network, x, y, new)
    model.save(tmp_path / "m.keras")
    close(keras.saving.load_model(tmp_path / "m.keras")(new), wanted)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    close(served.serve(new), wanted)


def test_usual_weights_stay_narrow(rng):
    x, y, _ = data(rng)
    model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE, form="primal"))
    model.fit_head(x, y)
    assert {v.dtype for v in model.machine.state.read()} == {tf.float32}


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_predictions_that_overflow_are_an_error(rng, form):
    x, y, new = data(rng, y=1e30)
    model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE, form=form))
    model.fit_head(x, y)
    assert np.all(np.isfinite(model.predict(new)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="A prediction is not finite"):
        model.predict(1e10 * new)


class TestArguments:
    @pytest.mark.parametrize("size", [1e39, 1e-40])
    def test_targets_that_do_not_fit(self, rng, size):
        x, y, _ = data(rng, y=size)
        model = kk.KAREModel(linear_network())
        with pytest.raises(ValueError, match="`y` does not fit float32"):
            model.fit_head(x, y)
        both = np.concatenate([np.ones_like(y), y], axis=1)
        with pytest.raises(ValueError, match="`y` does not fit float32"):
            model.fit_head(x, both)

    def test_targets_of_zero_fit(self, rng):
        x, y, new = data(rng, y=0.0)
        model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
        model.fit_head(x, y)
        assert np.all(model.predict(new) == 0.0)

    def test_inputs_that_do_not_fit(self, rng):
        x, y, _ = data(rng)
        with pytest.raises(ValueError, match="`x` overflows float32"):
            kk.KAREModel(linear_network()).fit_head(1e39 * x.astype("float64"), y)

    def test_float64_takes_them(self, float64, rng):
        network = linear_network()
        x, y, new = data(rng, y=1e39)
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=RIDGE))
        model.fit_head(x, y)
        np.testing.assert_allclose(
            model.predict(new), expected(network, x, y, new), rtol=1e-8
        )


class Broken(kk.losses.FullKARE):
    """A loss that supplies its gradients, of which one is not finite."""

    def value_and_gradients(self, kernel, x, y_true, step, sample_weight=None):
        gradients = [tf.ones_like(v) for v in kernel.trainable_variables]
        gradients[-1] *= np.inf
        return 1.0, gradients, np.zeros(y_true.shape)


def relu_network():
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((4,)), dense(6, "relu"), dense(1)])


class TestTraining:
    @pytest.mark.parametrize(
        ("loss", "size"),
        [(kk.losses.KARE(1e-4), 1e17), (Broken(), 1.0)],
        ids=["kare", "supplied"],
    )
    def test_gradients_that_are_not_finite_change_nothing(self, rng, loss, size):
        x, y, _ = data(rng, y=size)  # |A⁻¹y|² is more than float32 holds
        model = kk.KAREModel(relu_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
        model.compile(keras.optimizers.SGD(1.0, momentum=0.9), loss)
        before = model.get_weights()
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="no weight has been changed"
        ):
            model.fit(x, y, epochs=3, verbose=0)
        for now, then in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)
        assert int(model.optimizer.iterations) == 0

    @pytest.mark.parametrize("size", [1e8, 1e20])
    def test_inputs_too_large_are_not_blamed_on_the_learning_rate_alone(self, rng, size):
        x, y, _ = data(rng, x=size)
        model = kk.KAREModel(relu_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
        model.compile(keras.optimizers.SGD(1.0), "kare")
        before = model.get_weights()
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"first step of training.* scale inputs"
        ):
            model.fit(x, y, verbose=0)
        for now, then in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)

    @pytest.mark.parametrize(("size", "word"), [(1e-20, "vanish"), (1e19, "overflow")])
    def test_squares_beyond_the_type_of_the_loss(self, rng, size, word):
        x, y, _ = data(rng, y=size)
        fine = x, y / size
        model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
        model.compile("sgd", "kare")
        model.fit_head(x, y)  # no square is formed in float32
        for call in (
            lambda: model.fit(x, y, verbose=0),
            lambda: model.fit(*fine, validation_data=(x, y), verbose=0),
            lambda: model.train_on_batch(x, y),
            lambda: model.evaluate(x, y, verbose=0),
            lambda: model.test_on_batch(x, y),
        ):
            with pytest.raises(ValueError, match=f"y` has squares that {word} in float32"):
                call()

    def test_squares_beyond_float64(self):
        for size, word in ((1e200, "overflow"), (1e-200, "vanish")):
            y = np.full((3, 1), size)
            with pytest.raises(ValueError, match=f"y` has squares that {word} in float64"):
                kk._validation.check_squares("y", y, "float64")

    def test_small_targets_train_as_scaled_ones(self, rng):
        losses = []
        for size in (1.0, 2.0**-40):
            x, y, _ = data(np.random.default_rng(1), y=size)
            keras.utils.set_random_seed(2)
            model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
            model.compile(keras.optimizers.SGD(0.0), "kare")
            losses += model.fit(x, y, verbose=0).history["loss"]
        np.testing.assert_allclose(losses[1], losses[0] * 2.0**-80, rtol=1e-5)

    def test_targets_of_zero_train(self, rng):
        x, y, _ = data(rng, y=0.0)
        model = kk.KAREModel(linear_network(), head=kk.NTKRidgeHead(ridge=RIDGE))
        model.compile("sgd", "kare")
        assert model.fit(x, y, verbose=0).history["loss"] == [0.0]
