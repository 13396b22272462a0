"""Networks of infinite width: three roads to their kernels agree; gradients are right.

`fixtures/infinite_width.npz` holds values of neural-tangents 0.6.5 (JAX 0.4.23, float64)
for its rows `x`, of which some are equal, parallel or opposite: an array for each
activation, kind, `W_std` and `b_std`, of depth 1 to 5, `(5, 6, 6)`, made by

    layers = [stax.Dense(1, w, b), activation()] * depth + [stax.Dense(1, w, b)]
    stax.serial(*layers)[2](x, None, kind)
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import quad
from scipy.special import erf, ndtr

import keras_kare as kk

InfiniteWidth = kk.kernels.InfiniteWidth

STORED = dict(np.load(Path(__file__).parent / "fixtures" / "infinite_width.npz"))
X = STORED.pop("x")

ACTIVATIONS = ("relu", "erf", "gelu")
KINDS = ("ntk", "nngp")

SMOOTH = {
    "erf": (erf, lambda u: 2.0 / np.sqrt(np.pi) * np.exp(-(u**2))),
    "gelu": (
        lambda u: u * ndtr(u),
        lambda u: ndtr(u) + u * np.exp(-(u**2) / 2.0) / np.sqrt(2.0 * np.pi),
    ),
}
"""Activations that have a derivative, and it."""


def over_a_plane(f, p, q, k):
    """`E[f(u) f(v)]` by the trapezoidal rule in two dimensions, exact for smooth `f`."""
    nodes, step = np.linspace(-9.0, 9.0, 241, retstep=True)
    weights = step * np.exp(-(nodes**2) / 2.0)
    r = np.clip(k / np.sqrt(p * q), -1.0, 1.0)
    u = np.sqrt(p) * nodes[:, None]
    v = np.sqrt(q) * (r * nodes[:, None] + np.sqrt(1.0 - r**2) * nodes)
    return weights @ (f(u) * f(v)) @ weights / (2.0 * np.pi)


def over_angles(power, p, q, k):
    """`E[f(u) f(v)]` of `f(u) = max(0, u)^power`: an integral where both are positive."""
    angle = np.arccos(np.clip(k / np.sqrt(p * q), -1.0, 1.0))
    around = quad(
        lambda phi: (np.cos(phi) * np.cos(phi - angle)) ** power,
        angle - np.pi / 2.0,
        np.pi / 2.0,
    )[0]
    return np.sqrt(p * q) ** power * 2.0**power * around / (2.0 * np.pi)


def expectations(activation, *covariance):
    if activation == "relu":
        return over_angles(1, *covariance), over_angles(0, *covariance)
    return tuple(over_a_plane(f, *covariance) for f in SMOOTH[activation])


def plain(x1, x2, depth, activation, kind, w, b):
    """The kernel of two rows by the recursion as it is written, with no closed form."""
    p, q, k = (w**2 * s @ t / len(x1) + b**2 for s, t in ((x1, x1), (x2, x2), (x1, x2)))
    tangent = k
    for _ in range(depth):
        value, slope = expectations(activation, p, q, k)
        p, q = (expectations(activation, s, s, s)[0] for s in (p, q))
        p, q, k = (w**2 * s + b**2 for s in (p, q, value))
        tangent = k + w**2 * tangent * slope
    return tangent if kind == "ntk" else k


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.usefixtures("float64")
class TestValues:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_are_those_of_the_recursion_by_quadrature(self, activation, depth, kind):
        for w, b in ((1.5, 0.3), (0.9, 0.0)):
            kernel = InfiniteWidth(depth, activation, kind, w, b)
            rows = X[:3]
            expected = [
                [plain(s, t, depth, activation, kind, w, b) for t in rows] for s in rows
            ]
            np.testing.assert_allclose(kernel.gram(rows), expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("case", STORED)
    def test_are_those_of_neural_tangents(self, case):
        """To 1e-12, but where it takes the angle of parallel rows from their cosine."""
        activation, kind, w, b = case.split()
        tolerance = 3e-8 if (activation, kind) == ("relu", "ntk") else 1e-12
        for depth, expected in enumerate(STORED[case], start=1):
            kernel = InfiniteWidth(depth, activation, kind, float(w), float(b))
            for found in (kernel.gram(X), kernel.cross(X, X)):
                apart = np.max(np.abs(found - expected))
                assert apart < tolerance * np.max(np.abs(expected))
            assert np.array_equal(np.diag(kernel.gram(X)), kernel.diag(X))

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_hold_for_nearly_equal_and_for_large_rows(self, activation):
        """Where a cosine has no digits left: the slope of ReLU falls as the angle."""
        kernel, flat = (InfiniteWidth(1, activation, weight_std=1.5) for _ in range(2))
        x, across = np.array([[1.0, 2.0]]), np.array([[-2.0, 1.0]])
        value = float(flat.diag(x)[0])
        for angle in (1e-5, 1e-7, 1e-9):
            near = float(flat.cross(x, x + angle * across)[0, 0])
            fall = 2.25 * 2.25 * 2.5 / (2.0 * np.pi) if activation == "relu" else 0.0
            assert (value - near) / angle == pytest.approx(fall, rel=1e-4, abs=2e-4)
        found = kernel.gram(np.concatenate([1e8 * X[:3], 1e-8 * X[:3]]))
        assert np.all(np.isfinite(found))
        assert np.linalg.eigvalsh(found)[0] >= -1e-12 * np.max(found)

    @pytest.mark.filterwarnings("ignore:divide by zero")
    @pytest.mark.parametrize("kind", KINDS)
    def test_float32_values_of_very_large_rows(self, kind, rng):
        """GELU is ReLU there; erf, whose values saturate, is Williams' arcsine."""
        x = (1e10 * rng.normal(size=(8, 3))).astype("float32")
        relu = InfiniteWidth(2, "relu", kind, dtype="float64").gram(x.astype("float64"))
        found = InfiniteWidth(2, "gelu", kind, dtype="float32").gram(x)
        assert error(found.numpy(), relu) < 5e-5
        kernel = InfiniteWidth(2, "erf", kind, dtype="float32")
        wide = x.astype("longdouble")
        expected = tangent = wide @ wide.T / 3
        for _ in range(2):
            size = 1 + 2 * np.diag(expected)
            size = np.sqrt(np.outer(size, size))
            slopes = 4 / np.pi / np.sqrt(size**2 - 4 * expected**2)
            expected = 2 / np.pi * np.arcsin(2 * expected / size)
            tangent = expected + tangent * slopes
        apart = ~np.eye(8, dtype=bool)  # the plain formula loses the digits of the rest
        expected = expected if kind == "nngp" else tangent
        assert (
            error(kernel.gram(x).numpy()[apart], expected[apart].astype("float64")) < 1e-4
        )
        assert np.all(np.isfinite(kernel.diag(x)))

    def test_tiles_change_nothing(self, rng):
        x = rng.normal(size=(70, 4))
        whole, few = InfiniteWidth(2), InfiniteWidth(2, memory_limit=16 * 20 * 8 * 70)
        np.testing.assert_allclose(few.gram(x), whole.gram(x), rtol=1e-12)

    def test_float32(self):
        for activation in ACTIVATIONS:
            kernel = InfiniteWidth(5, activation, bias_std=0.2)
            expected = kernel.gram(X, dtype="float64")
            assert error(kernel.gram(X, dtype="float32").numpy(), expected.numpy()) < 1e-6


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_wide_networks_come_near(activation):
    """`σ_w = 1.5`, `σ_b = 1`: the error of the empirical NTK falls as `width^(-1/2)`."""
    x = X.astype("float32")
    expected = InfiniteWidth(2, activation, "ntk", 1.5, 1.0).gram(x).numpy()
    errors, rng = [], np.random.default_rng(0)
    for width in (64, 256, 1024):
        layers = [keras.Input((4,))]
        for fan_in, units in ((4, width), (width, width), (width, 1)):
            layers += [
                keras.layers.Rescaling(1.5 / np.sqrt(fan_in)),
                keras.layers.Dense(units, activation if units > 1 else None),
            ]
        network = keras.Sequential(layers)
        kernel, found = kk.kernels.NTK(network), []
        for _ in range(10):
            network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
            found.append(kernel.gram(x).numpy())
        errors.append(np.mean([error(gram, expected) for gram in found]))
    assert error(np.mean(found, axis=0), expected) < 0.05
    assert errors[0] > errors[1] > errors[2]
    assert 0.125 < errors[2] / errors[0] < 0.5  # 0.25


@pytest.mark.usefixtures("float64")
class TestGradients:
    """Of rows among which are equal, parallel and opposite ones, and zeros."""

    ROWS = np.concatenate([X, np.zeros((2, 4)), X[:1] * (1.0 + 1e-9)])

    @pytest.mark.parametrize("bias", [0.0, 0.4])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("depth", [1, 3])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_by_variables_are_finite_differences(self, activation, depth, kind, bias, rng):
        kernel = InfiniteWidth(depth, activation, kind, 1.3, bias)
        weights = rng.normal(size=(9, 9))

        def value():
            return tf.reduce_sum(weights * kernel.gram(self.ROWS))

        kernel.build((None, 4))
        for variable in kernel.trainable_variables:
            with tf.GradientTape() as tape:
                found = value()
            gradient = float(tape.gradient(found, variable.value))
            start = float(variable)
            variable.assign(start + 1e-5)
            above = float(value())
            variable.assign(start - 1e-5)
            slope = (above - float(value())) / 2e-5
            variable.assign(start)
            assert gradient == pytest.approx(slope, rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_by_rows(self, activation, kind, rng):
        kernel = InfiniteWidth(2, activation, kind, 1.3, 0.4)
        x, weights, along = X[:3], rng.normal(size=(3, 3)), rng.normal(size=(3, 4))

        def value(x):
            return tf.reduce_sum(weights * kernel.gram(x))

        with tf.GradientTape() as tape:
            rows = tf.constant(x)
            tape.watch(rows)
            found = value(rows)
        slope = float(value(x + 1e-5 * along) - value(x - 1e-5 * along)) / 2e-5
        assert np.sum(tape.gradient(found, rows) * along) == pytest.approx(slope, rel=1e-6)
        for bias in (0.0, 0.4):
            kernel.bias_std.assign(bias)
            with tf.GradientTape() as tape:
                rows = tf.constant(self.ROWS)
                tape.watch(rows)
                found = tf.reduce_sum(kernel.gram(rows) ** 2)
            assert np.all(np.isfinite(tape.gradient(found, rows)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "`depth`"),
        ({"depth": 1.5}, "`depth`"),
        ({"activation": "tanh"}, "`activation` must be one of"),
        ({"kind": "gp"}, "`kind` must be one of"),
        ({"weight_std": 0.0}, "`weight_std` must be a positive finite number"),
        ({"weight_std": "one"}, "`weight_std` must be a positive finite number"),
        ({"bias_std": -0.1}, "`bias_std` must be a number of at least 0"),
        ({"bias_std": np.inf}, "`bias_std` must be a number of at least 0"),
        ({"memory_limit": 0}, "`memory_limit`"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        InfiniteWidth(**{"depth": 1, **arguments})
