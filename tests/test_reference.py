"""Against values that independent PyTorch code computed in float64."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.kernels.structured.features import FeatureMap

CASES = (
    "d3_w9_5x2_tanh",
    "d4_w8_1x1_gelu",
    "d5_w10_2x4_relu",
    "d6_w12_2x3_gelu",
    "d7_w16_3x1_gelu",
    "d8_w16_4x1_softplus",
    "d10_w64_1x1_gelu",
)
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
# The plain Jacobian, which is slow to trace, in one precision.
METHODS = [("float64", "structured"), ("float64", "jacobian"), ("float32", "structured")]
by_methods = pytest.mark.parametrize(("floatx", "method"), METHODS, indirect=["floatx"])


def exact_gelu(x):
    """`tf.nn.gelu` is off by 4e-9 in float64."""
    return 0.5 * x * (1.0 + tf.math.erf(x / math.sqrt(2.0)))


class Case:
    def __init__(self, path, floatx, gelu=exact_gelu):
        self.values = dict(np.load(path))
        self.floatx = floatx
        self.tolerance = TOLERANCE[floatx]
        self.depth = sum(name.startswith("kernel_") for name in self.values)
        self.activation = path.stem.rsplit("_", 1)[1]
        self.gelu = gelu
        self.kernel = functools.cache(self._kernel)

    def __getitem__(self, name):
        return self.values[name]

    def network(self):
        activation = self.gelu if self.activation == "gelu" else self.activation
        widths = [self[f"kernel_{i}"].shape[1] for i in range(self.depth)]
        network = keras.Sequential(
            [
                keras.Input((self["x"].shape[1],)),
                *[keras.layers.Dense(width, activation) for width in widths[:-1]],
                keras.layers.Dense(widths[-1]),
            ]
        )
        network.set_weights([self[name] for name in self.names()])
        return network

    def _kernel(self, outputs="sum", method="auto"):
        """Of weights that stay, planned and traced for all tests of them."""
        return kk.kernels.NTK(self.network(), outputs, method)

    def names(self, prefix=""):
        return [
            f"{prefix}{part}_{i}" for i in range(self.depth) for part in ("kernel", "bias")
        ]

    def check(self, value, name, tolerance=None):
        value, expected = np.asarray(value), self[name]
        assert value.shape == expected.shape
        error = np.max(np.abs(value - expected)) / np.max(np.abs(expected))
        assert error < (tolerance or self.tolerance), f"{name}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def cases(reference_folder):
    return functools.cache(lambda name, floatx: Case(reference_folder / name, floatx))


@pytest.fixture(params=CASES)
def case(request, cases, floatx):
    return cases(f"{request.param}.npz", floatx)


@by_methods
def test_kernels(case, method):
    x, x_test = (tf.constant(case[name], case.floatx) for name in ("x", "x_test"))
    kernel, full = case.kernel("sum", method), case.kernel("full", method)
    features = full._feature_map(x, None)  # not traced
    trace = FeatureMap(full.network, features.plan, "trace", features.dtype)
    case.check(kernel.gram(x), "gram_sum")
    case.check(trace.gram(x), "gram_trace")
    if method == "structured":
        case.check(full.gram(x), "gram_full")
        case.check(kernel.cross(x_test, x), "cross_sum")
        case.check(trace.cross(x_test, x), "cross_trace")
    else:
        case.check(features.gram(x), "gram_full")


def test_network_outputs(case):
    case.check(case.network()(case["x_test"]), "f_test")


def test_kare(case):
    gram = case.kernel().gram(case["x"])
    for ridge in ("0.001", "0.1", "1.0"):
        # rounding of float32 is as large as the machine adds, at a ridge so small
        within = 3.0 * case.tolerance if ridge == "0.001" else None
        found = kk.risk.kare(case["y"], gram, float(ridge))
        case.check(found, f"kare_sum_z{ridge}", within)
    relative = kk.losses.KARE(ridge=1.0, relative=True)
    case.check(relative(case["y"], gram), "kare_sum_relative_z1")
    trace = case.kernel("trace").gram(case["x"])
    case.check(kk.losses.KARE(ridge=0.1)(case["y"], trace), "kare_trace_z0.1")


@by_methods
def test_gradient_of_kare(case, method):
    """By every weight, relative to the largest entry of the whole gradient."""
    kernel = case.kernel("sum", method)
    with tf.GradientTape() as tape:
        loss = kk.losses.KARE(ridge=0.1)(case["y"], kernel.gram(case["x"]))
    variables = [v.value for v in kernel.network.trainable_variables]
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    names = [f"d{name}" for name in case.names()]
    largest = max(np.max(np.abs(case[name])) for name in names)
    for gradient, name in zip(gradients, names, strict=True):
        assert np.max(np.abs(gradient - case[name])) < case.tolerance * largest, name


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_head_over_the_ridge_grid(case, form):
    """Predictions, leave-one-out error and KARE for each relative ridge."""
    kernel = case.kernel()
    predictions, leave_one_out, kare = [], [], []
    for ridge in case["ridge_grid"]:
        head = kk.NTKRidgeHead(ridge=float(ridge), form=form)
        model = kk.KAREModel(kernel, head=head)
        model.fit_head(case["x"], case["y"])
        predictions.append(np.asarray(model(case["x_test"])))
        leave_one_out.append(model.head.report["leave_one_out_mse"])
        kare.append(model.head.report["kare"])
    case.check(np.stack(predictions), "pred_sum")
    case.check(np.array(leave_one_out), "loo_mse")
    case.check(np.array(kare), "kare_on_grid")


def test_leave_one_out_function(case):
    gram = case.kernel().gram(case["x"])
    unit = np.trace(gram) / len(gram) ** 2
    errors = [
        np.mean((case["y"] - kk.risk.leave_one_out(case["y"], gram, ridge * unit)) ** 2)
        for ridge in case["ridge_grid"]
    ]
    # The float32 Gram matrix itself limits what the smallest ridge can give.
    tolerance = 1e-9 if case.floatx == "float64" else 3e-3
    case.check(np.array(errors), "loo_mse", tolerance)


def test_ten_steps_of_sgd(case):
    network = case.network()
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(1.0), kk.losses.KARE(ridge=0.1))
    rows = len(case["x"])
    history = model.fit(case["x"], case["y"], epochs=10, batch_size=rows, verbose=0)
    tolerance = {"float64": 1e-6, "float32": 1e-4}[case.floatx]
    case.check(np.array(history.history["loss"]), "sgd10_losses", tolerance)
    for weight, name in zip(network.get_weights(), case.names("sgd10_"), strict=True):
        case.check(weight, name, tolerance)


def test_keras_gelu_in_float64(reference_folder, float64):
    """Keras's own GELU, within what `tf.nn.gelu` allows."""
    case = Case(reference_folder / "d7_w16_3x1_gelu.npz", "float64", gelu="gelu")
    gram = kk.kernels.NTK(case.network()).gram(case["x"])
    case.check(gram, "gram_sum", 1e-7)
    case.check(kk.risk.kare(case["y"], gram, 0.1), "kare_sum_z0.1", 1e-7)


def test_every_reference_file_is_tested(reference_folder):
    assert {path.stem for path in reference_folder.glob("*.npz")} == set(CASES)
