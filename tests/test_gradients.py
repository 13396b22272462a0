"""KARE's gradient against finite differences: method against method proves little,
where TensorFlow's own second derivatives are missing or wrong."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_layer_rules import blocks_of, gradient_error, jacobians_by_hand

import keras_kare as kk

pytestmark = pytest.mark.usefixtures("float64")

ACTIVATIONS = (
    "celu elu exponential gelu glu hard_sigmoid hard_silu hard_swish leaky_relu linear "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu softmax softplus softsign "
    "sparse_plus squareplus swish tanh tanh_shrink hard_tanh hard_shrink soft_shrink "
    "sparse_sigmoid sparsemax threshold"
).split()

NEEDS_ARGUMENTS = {
    "threshold": lambda x: keras.activations.threshold(x, 0.1, 0.2),
    # Halves the features, which `Dense` does not expect of its own activation.
    "glu": lambda x: keras.ops.concatenate([keras.activations.glu(x)] * 2, axis=-1),
}


def error(network, x, rng, outputs="sum", method="structured"):
    """Of KARE's gradient. Op by op where rules serve: only plain Jacobians are traced."""
    kernel, x = kk.kernels.NTK(network, outputs, method), tf.constant(x)
    features = kernel._feature_map(x, None)
    gram = kernel.gram if features.plan.jacobian else features.gram
    return gradient_error(network, gram, x, rng)


def available(name):
    return hasattr(keras.activations, name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_activations(activation, method, rng):
    if not available(activation):
        pytest.skip(f"Keras {keras.__version__} has no {activation}")
    function = NEEDS_ARGUMENTS.get(activation, activation)
    network = keras.Sequential(
        [
            keras.Input((networks.D,)),
            layers.Dense(6, function),
            layers.Dense(6, function, use_bias=False),
            layers.Dense(1, use_bias=False),
        ]
    )
    # Away from kinks: zero biases put sparsemax exactly on one.
    network.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in network.get_weights()])
    x = networks.rows_for(network, 8, rng)
    assert error(network, x, rng, method=method) < 1e-6


def test_every_keras_activation_is_tested():
    known = {
        name
        for name in dir(keras.activations)
        if not name.startswith("_") and name not in ("deserialize", "get", "serialize")
    }
    assert known <= set(ACTIVATIONS)


@pytest.mark.parametrize(
    "name", ["skip connection", "shared layer", "sequence", "wide sequence", "two towers"]
)
@pytest.mark.parametrize("outputs", ["sum", "trace"])
def test_architectures(name, outputs, rng):
    network = networks.STRUCTURED[name]()
    assert error(network, networks.rows_for(network, 8, rng), rng, outputs) < 1e-6


@pytest.mark.filterwarnings("ignore:The NTK takes the plain Jacobian")
@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNormalization(),
        lambda: layers.LayerNormalization(center=False, scale=False, epsilon=0.1),
        lambda: layers.GroupNormalization(groups=2),
        lambda: layers.Activation("softsign"),
        lambda: layers.BatchNormalization(),
    ],
    ids=["layer norm", "bare layer norm", "group norm", "softsign", "batch norm"],
)
def test_layers_with_wrong_second_derivatives(make, method, rng):
    network = networks.with_layers(make)()
    x = networks.rows_for(network, 6, rng)
    assert error(network, x, rng, method=method) < 1e-6


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.LayerNormalization(axis=-1), (3, 4)),
        (lambda: layers.LayerNormalization(axis=[1, 2]), (3, 4)),
        (lambda: layers.LayerNormalization(axis=1), (3, 4)),
        (lambda: layers.GroupNormalization(groups=2), (3, 2, 4)),
        (lambda: layers.GroupNormalization(groups=2, axis=1), (4, 3)),
        (lambda: layers.GroupNormalization(groups=-1), (3, 4)),
        (lambda: layers.GroupNormalization(groups=4, scale=False, center=False), (4,)),
    ],
)
def test_corrected_layers_compute_the_same(make, shape, rng):
    """Our formula's first derivative and value are those of the layer."""
    layer = make()
    network = keras.Sequential(
        [keras.Input(shape), layer, layers.Flatten(), layers.Dense(1)]
    )
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    x = rng.normal(size=(3, *shape))
    expected = network(x, training=False)
    from keras_kare.kernels.structured.capture import Recorder, recording

    with tf.GradientTape() as tape, recording(Recorder(tape, lambda layer: False)):
        np.testing.assert_allclose(network(x, training=False), expected, atol=1e-12)


class Standardise(layers.Layer):
    def call(self, x):
        mean, variance = keras.ops.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * keras.ops.rsqrt(variance + 0.1)


class Warped(layers.Layer):
    def call(self, x):
        turn = np.array([[0.9, 0.2, 0.1, -0.2, 0.9, 0.3, 0.0, 0.0]])
        turns = keras.ops.tile(turn, [keras.ops.shape(x)[0], 1])
        return keras.ops.image.affine_transform(x, keras.ops.cast(turns, x.dtype))


class TestWrongDerivatives:
    """What TensorFlow differentiates wrongly is refused by name, before any training."""

    def test_second_derivatives(self, rng):
        network, x = networks.with_layers(Standardise)(), rng.normal(size=(6, networks.D))
        kernel = kk.kernels.NTK(network)
        gram = kernel.gram(x)  # right, since its first derivative is
        (j,) = jacobians_by_hand(network, x)
        np.testing.assert_allclose(gram, blocks_of(j, j)[..., 0, 0], rtol=1e-9)
        with (
            tf.GradientTape() as tape,
            pytest.raises(ValueError, match=r"moments.*register_rule"),
        ):
            tape.gradient(kernel.gram(x), network.trainable_variables[0].value)

    def test_before_training(self, rng):
        network, x = networks.with_layers(Standardise)(), rng.normal(size=(6, networks.D))
        before = network.get_weights()
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
        model.compile("sgd", "kare")
        for train in (model.fit, model.train_on_batch):
            with pytest.raises(ValueError, match=r"moments.*fit_head"):
                train(x, x[:, :1])
        model.fit_head(x, x[:, :1])
        for a, b in zip(network.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_first_derivatives(self, rng):
        parts = [layers.Conv2D(2, 1), Warped(), layers.Flatten(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4, 4, 1)), *parts])
        with pytest.raises(ValueError, match="wrong ones, of ImageProjectiveTransform"):
            kk.kernels.NTK(network).gram(rng.normal(size=(3, 4, 4, 1)))

    def test_resizing_trains_rightly(self, rng):
        up = layers.UpSampling2D(2, interpolation="bilinear")
        parts = [layers.Conv2D(2, 2, activation="tanh"), up, layers.Conv2D(2, 2)]
        head = [layers.Activation("tanh"), layers.Flatten(), layers.Dense(1)]
        network = keras.Sequential([keras.Input((4, 4, 1)), *parts, *head])
        x = tf.constant(rng.normal(size=(4, 4, 4, 1)))
        gram = kk.kernels.NTK(network).gram
        # TensorFlow resizes in float32, whatever the network's type.
        assert gradient_error(network, gram, x, rng, step=1e-3) < 1e-3
