"""KARE's gradient against finite differences: method against method proves little,
where TensorFlow's own second derivatives are missing or wrong."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

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


def largest_error(network, x, y, rng, outputs="sum", method="structured", directions=3):
    """Directional derivatives of KARE against central differences, relative."""
    kernel = kk.kernels.NTK(network, outputs, method)
    variables = [v.value for v in network.trainable_variables]
    kernel.check(x)

    def risk():
        return kk.risk.kare(y, kernel.gram(x), 0.1)

    with tf.GradientTape() as tape:
        value = risk()
    gradients = tape.gradient(value, variables, unconnected_gradients="zero")
    start = [v.numpy() for v in variables]
    errors, scale = [], 1e-12
    for _ in range(directions):
        ways = [rng.normal(size=s.shape) for s in start]
        slope = sum(float(np.sum(g * w)) for g, w in zip(gradients, ways, strict=True))

        def moved(step, ways=ways):
            for v, s, w in zip(variables, start, ways, strict=True):
                v.assign(s + step * w)
            return float(risk())

        h = 1e-5
        measured = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        moved(0.0)
        errors.append(abs(slope - measured))
        scale = max(scale, abs(measured))
    return max(errors) / scale


def problem(rng, network, n=8):
    x = networks.rows_for(network, n, rng)
    return x, rng.normal(size=(n, 1))


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
            layers.Dense(6, function),
            layers.Dense(1),
        ]
    )
    # Away from kinks: zero biases put sparsemax exactly on one.
    network.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in network.get_weights()])
    x, y = problem(rng, network)
    assert largest_error(network, x, y, rng, method=method) < 1e-6


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
    x, y = problem(rng, network)
    assert largest_error(network, x, y, rng, outputs) < 1e-6


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
    x, y = problem(rng, network, n=6)
    assert largest_error(network, x, y, rng, method=method, directions=2) < 1e-6


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


def test_moments_elsewhere_are_announced(rng):
    class Standardise(layers.Layer):
        def call(self, x):
            mean, variance = keras.ops.moments(x, axes=[-1], keepdims=True)
            return (x - mean) * keras.ops.rsqrt(variance + 0.1)

    network = networks.with_layers(Standardise)()
    with pytest.warns(UserWarning, match="moments"):
        kk.kernels.NTK(network).gram(rng.normal(size=(4, networks.D)))
