"""What counts as solved, traced or written for a network: all that it is."""

from __future__ import annotations

import functools
from typing import Any

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import D, mlp

import keras_kare as kk
from keras_kare.kernels.identity import architecture

pytestmark = pytest.mark.usefixtures("float64")


def data(rng: np.random.Generator, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(n, D))
    return x, np.sin(x[:, :1])


def model_of(network: Any, **kwargs: Any) -> kk.KAREModel:
    return kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0, **kwargs))


def solved(network: Any, x: Any, y: Any, **kwargs: Any) -> kk.KAREModel:
    model = model_of(network, **kwargs)
    model.fit_head(x, y)
    return model


def twins() -> tuple[Any, Any]:
    """Two networks with the same weights and other activations."""
    first, second = mlp(depth=1), mlp(depth=1, activation="relu")
    second.set_weights(first.get_weights())
    return first, second


def predicted(model: Any, x: Any) -> np.ndarray:
    return model.predict(x, verbose=0)


class TestOtherNetworks:
    def test_head_of_another_network(self, rng):
        x, y = data(rng)
        first, second = twins()
        model = kk.KAREModel(second, head=solved(first, x, y).head)
        assert not model.machine.is_fresh()
        expected = predicted(solved(second, x, y), x)
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)

    def test_file_of_another_network(self, rng, tmp_path):
        x, _ = data(rng)
        first, second = twins()
        kk.kernels.NTK(first).gram(x, out=tmp_path / "gram.npy")
        with pytest.raises(ValueError, match="something else"):
            kk.kernels.NTK(second).gram(x, out=tmp_path / "gram.npy")

    def test_weights_of_another_network(self, rng, tmp_path):
        x, y = data(rng)
        first, second = twins()
        solved(first, x, y).save_weights(tmp_path / "m.weights.h5")
        model = model_of(second)
        model.load_weights(tmp_path / "m.weights.h5")
        expected = predicted(solved(second, x, y), x)
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)

    @pytest.mark.parametrize("outputs", ["trace"])
    def test_other_outputs(self, rng, outputs):
        x, y = data(rng)
        network = mlp(depth=1, c=2)
        head = solved(network, x, y).head
        assert head.on(kk.kernels.NTK(network)).is_fresh()
        assert not head.on(kk.kernels.NTK(network, outputs=outputs)).is_fresh()


class Leaky:
    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, h: Any) -> Any:
        return keras.ops.leaky_relu(h, self.slope)

    def of(self, h: Any) -> Any:
        return self(h)


class TestChanges:
    def test_normalization_is_adapted_again(self, rng):
        x, y = data(rng)
        normalization = layers.Normalization()
        normalization.adapt(x)
        parts = [normalization, layers.Dense(5, "tanh"), layers.Dense(1)]
        network = keras.Sequential([keras.Input((D,)), *parts])
        model = solved(network, x, y)
        before = predicted(model, x)
        normalization.adapt(3.0 * x + 5.0)
        expected = predicted(solved(network, x, y), x)
        assert np.max(np.abs(expected - before)) > 1e-2
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)
        model.fit_head(x, y)
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)

    def test_an_attribute(self, rng):
        x, y = data(rng)
        network = mlp(depth=1)
        kernel, model = kk.kernels.NTK(network), solved(network, x, y)
        kernel.gram(x)
        network.layers[0].activation = keras.activations.relu
        np.testing.assert_allclose(
            kernel.gram(x), kk.kernels.NTK(network).gram(x), rtol=1e-12
        )
        expected = predicted(solved(network, x, y), x)
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)

    def test_an_inner_function(self):
        def network(factor: float) -> Any:
            parts = [layers.Lambda(lambda t: factor * t), layers.Dense(1)]
            return keras.Sequential([keras.Input((D,)), *parts])

        assert architecture(network(2.0)) == architecture(network(2.0))
        assert architecture(network(2.0)) != architecture(network(3.0))

    def test_what_is_private(self, rng):
        class Scaled(layers.Layer):
            _scale = 1.0

            def call(self, x: Any) -> Any:
                return keras.ops.tanh(self._scale * x)

        x, y = data(rng)
        parts = [layers.Dense(4), Scaled(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((D,)), *parts])
        model = solved(network, x, y)
        parts[1]._scale = 3.0
        expected = predicted(solved(network, x, y), x)
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-9)

    @pytest.mark.parametrize("kind", ["partial", "object", "method", "default", "closure"])
    def test_what_functions_hold(self, kind):
        def activation(slope: float) -> Any:
            def by_default(h: Any, s: float = slope) -> Any:
                return keras.ops.leaky_relu(h, s)

            leaky = functools.partial(keras.ops.leaky_relu, negative_slope=slope)
            return {
                "partial": leaky,
                "object": Leaky(slope),
                "method": Leaky(slope).of,
                "default": by_default,
                "closure": lambda h: leaky(h),
            }[kind]

        def network(slope: float) -> Any:
            parts = [layers.Dense(4, activation=activation(slope)), layers.Dense(1)]
            return keras.Sequential([keras.Input((D,)), *parts])

        assert architecture(network(0.1)) != architecture(network(0.7))
        assert kk.kernels.NTK(network(0.1)).gram(np.ones((2, D))).shape == (2, 2)

    def test_what_cannot_be_read(self):
        class Slots:
            __slots__ = ("value",)

        class Holds(layers.Layer):
            def __init__(self, held: Any):
                super().__init__()
                self.held = held

        one, other = Slots(), Slots()
        assert architecture(Holds(one)) == architecture(Holds(one))
        assert architecture(Holds(one)) != architecture(Holds(other))

    def test_connections(self):
        def network(skips: bool) -> Any:
            x = keras.Input((D,))
            h = layers.Dense(D, "tanh")(x)
            return keras.Model(x, layers.Add()([h, x if skips else h]))

        assert architecture(network(True)) == architecture(network(True))
        assert architecture(network(True)) != architecture(network(False))

    def test_types(self):
        def network(dtype: str) -> Any:
            return keras.Sequential([keras.Input((D,)), layers.Dense(1, dtype=dtype)])

        assert architecture(network("float32")) != architecture(network("mixed_bfloat16"))


@keras.saving.register_keras_serializable(package="tests")
class Own(layers.Layer):
    def __init__(self, factor: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return self.factor * x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


def normalized() -> Any:
    normalization = layers.Normalization(name="normal")
    normalization.adapt(np.random.default_rng(5).normal(size=(9, D)))
    h = layers.Dense(4, "tanh", kernel_regularizer="l2")(
        normalization(x := keras.Input((D,)))
    )
    h = layers.Add()([Own(3.0)(h), layers.Dense(4, activation=layers.PReLU())(h)])
    return keras.Model(x, layers.Dense(1)(h))


def adapted() -> Any:
    network = mlp(depth=1)
    network.layers[0].enable_lora(2)
    update = network.layers[0].lora_kernel_b
    update.assign(np.random.default_rng(6).normal(size=update.shape))
    return network


KINDS = {
    "sequential": mlp,
    "subclassed": networks.Subclassed,
    "functional": normalized,
    "LoRA": adapted,
}


@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_loaded_is_as_fresh_as_it_was_saved(name, form, rng, tmp_path):
    """And predicts the same, also where nothing is left to solve again on."""
    x, y = data(rng)
    network = KINDS[name]()
    network(x)
    model = solved(network, x, y, form=form, keep_anchors=form == "dual")
    expected = predicted(model, x)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.machine.is_fresh()
    np.testing.assert_allclose(predicted(loaded, x), expected, rtol=1e-12)


def test_lora_of_another_rank_is_refused(rng, tmp_path):
    x, y = data(rng)
    with pytest.warns(UserWarning, match="no layer rule"):
        model = solved(adapted(), x, y)
    model.save_weights(tmp_path / "m.weights.h5")
    other = model_of(mlp(depth=1))
    other.load_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="enable_lora"):
        other.predict(x)


def test_features_held_of_other_variables_are_refused():
    network = mlp()
    kernel = kk.kernels.NTK(network)
    held = kernel.held(np.ones((3, D)))
    network.layers[0].trainable = False
    with pytest.raises(ValueError, match="no longer those of `held`"):
        kernel.pull(held, tf.ones((3, 1)))
