"""Gated ReLU networks as multiple kernel learning."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from gated_problems import SEEDS, objective, problem

import keras_kare as kk
from keras_kare.mkl import lowest_kare
from keras_kare.mkl.group_lasso import GroupLasso
from keras_kare.mkl.masks import MaskedRows, different, open_rows

HERE = Path(__file__).parent
MINIMA = json.loads((HERE / "fixtures" / "gated_relu.json").read_text())


def machine(of, **options):
    """A network of the problem, fitted."""
    given = {"gates": of.gates, "regularization": of.regularization, **options}
    return kk.mkl.GatedReLU(**given).fit(of.x, of.y)


def masks_of(fitted, x):
    return open_rows(x, fitted.gates_)


@pytest.fixture(scope="module", params=SEEDS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def of(seed):
    return problem(seed)


@pytest.fixture(scope="module")
def fitted(of):
    return machine(of)


def test_the_minimum_is_that_of_cvxpy(seed, of, fitted):
    reached = objective(of, fitted.coefficients_)
    np.testing.assert_allclose(reached, MINIMA["minima"][str(seed)], rtol=1e-6)
    np.testing.assert_allclose(fitted.report["objective"], reached, rtol=1e-12)


def test_nothing_known_by_another_solver_is_lower(seed, fitted):
    """The gap is a bound: the minimum is not below the objective by more than that."""
    report, other = fitted.report, MINIMA["minima"][str(seed)]
    assert report["objective"] - report["gap"] <= other * (1.0 + 1e-14)


def test_the_duality_gap_closes(fitted):
    report = fitted.report
    assert report["converged"]
    assert 0.0 <= report["relative_gap"] <= 1e-8
    assert report["relative_gap"] == report["gap"] / report["objective"]


def test_the_optimality_conditions_hold(of):
    fitted = machine(of, tolerance=1e-12)
    residual = of.y - fitted.predict(of.x)
    slopes = np.einsum("pn,nd,nc->pdc", masks_of(fitted, of.x), of.x, residual)
    norms = np.linalg.norm(slopes, axis=(1, 2)) / of.regularization
    active = fitted.weights_ > 0.0
    assert fitted.report["active"] == active.sum()
    assert norms.max() <= 1.0 + 1e-6
    np.testing.assert_allclose(norms[active], 1.0, rtol=1e-6)


def test_weights_are_norms_of_coefficients(fitted):
    norms = np.linalg.norm(fitted.coefficients_, axis=(1, 2))
    np.testing.assert_allclose(fitted.weights_, norms, atol=1e-5 * norms.max())


def test_predictions_are_those_of_the_weighted_kernel(of, fitted):
    gram = fitted.gram(of.x)
    by_hand = sum(
        eta * np.outer(mask, mask) * (of.x @ of.x.T)
        for eta, mask in zip(fitted.weights_, masks_of(fitted, of.x), strict=True)
    )
    np.testing.assert_allclose(gram, by_hand, atol=1e-12)
    ridge = of.regularization * np.eye(len(of.x))
    np.testing.assert_allclose(
        fitted.predict(of.x), gram @ np.linalg.solve(gram + ridge, of.y), atol=1e-7
    )


def test_the_ntk_is_not_better_at_any_scale(of, fitted):
    least = fitted.report["objective"] * (1.0 - 1e-8)
    ntk = machine(of, weights="ntk")
    assert least <= ntk.report["objective"]
    rows = MaskedRows(of.x, masks_of(ntk, of.x))
    lasso = GroupLasso(rows, of.y, of.regularization)
    for scale in np.geomspace(1e-4, 1e4, 33):
        point = lasso.at(scale * ntk.weights_)
        assert least <= objective(of, point.coefficients)
        assert least <= point.value  # of the weighted squares, which is not less


def test_the_gap_of_other_weights_is_a_bound(of, fitted):
    report = machine(of, weights="ntk").report
    assert report["gap"] >= report["objective"] - fitted.report["objective"] - 1e-12


def test_cvxpy_agrees_where_it_is_installed():
    cp = pytest.importorskip("cvxpy")
    of = problem(100)
    fitted = machine(of)
    d = of.x.shape[1]
    columns = np.hstack([mask[:, None] * of.x for mask in masks_of(fitted, of.x)])
    w = cp.Variable((columns.shape[1] // d, d))
    error = 0.5 * cp.sum_squares(columns @ cp.vec(w, order="C") - of.y[:, 0])
    penalty = of.regularization * cp.sum(cp.norm(w, 2, axis=1))
    theirs = cp.Problem(cp.Minimize(error + penalty)).solve(cp.CLARABEL)
    np.testing.assert_allclose(fitted.report["objective"], theirs, rtol=1e-6)


def test_derivatives_by_the_weights_are_those_of_the_value(rng):
    of = problem(3)
    gates, _ = different(of.x, of.gates)
    lasso = GroupLasso(MaskedRows(of.x, open_rows(of.x, gates)), of.y, of.regularization)
    weights = rng.uniform(0.5, 1.5, len(gates))
    point = lasso.at(weights)
    gradient = 0.5 * of.regularization * (1.0 - point.norms**2)
    for i in range(3):
        step = 1e-5 * np.eye(len(weights))[i]
        slope = (lasso.at(weights + step).value - lasso.at(weights - step).value) / 2e-5
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("beta", [1e-6, 1e-2, 10.0])
def test_many_gates_and_any_scale(rng, scale, beta):
    """More masks than rows, and a regularisation from nearly none to nearly all."""
    x = scale * rng.normal(size=(40, 6))
    y = np.sin(2.0 * x[:, 0] / scale) + 0.1 * rng.normal(size=40)
    fitted = kk.mkl.GatedReLU(300, beta * scale, random_state=0).fit(x, y)
    assert fitted.report["relative_gap"] <= 1e-8
    assert fitted.report["iterations"] < 100


@pytest.mark.parametrize("beta", [1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("shape", [(60, 3), (100, 2)])
def test_targets_out_of_reach_and_hardly_any_regularization(rng, shape, beta):
    """Masked rows that do not span all targets: a part of `y` is in every residual."""
    x = rng.normal(size=shape)
    y = np.sin(2.0 * x[:, 0]) + 0.1 * rng.normal(size=len(x))
    fitted = kk.mkl.GatedReLU(40, beta, random_state=0).fit(x, y)
    assert fitted.report["relative_gap"] <= 1e-8
    columns = np.hstack([mask[:, None] * x for mask in masks_of(fitted, x)])
    assert np.linalg.matrix_rank(columns) < len(x)
    least = 0.5 * np.sum((columns @ np.linalg.lstsq(columns, y, rcond=None)[0] - y) ** 2)
    assert fitted.report["objective"] >= least
    assert fitted.report["objective"] - fitted.report["gap"] <= least + 1e4 * beta


def test_a_large_regularization_leaves_nothing(rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    fitted = kk.mkl.GatedReLU(30, 1e3, random_state=0).fit(x, y)
    assert fitted.report["active"] == fitted.report["iterations"] == 0
    np.testing.assert_array_equal(fitted.predict(x), np.zeros(20))
    assert fitted.report["objective"] == pytest.approx(0.5 * np.sum(y**2))
    nothing = kk.mkl.GatedReLU(30, random_state=0).fit(x, 0.0 * y)
    assert nothing.report["relative_gap"] == nothing.report["objective"] == 0.0


def test_the_kernel_of_equal_weights_is_the_ntk_of_the_network(float64, rng):
    """Of the network itself, in Keras, whose outer weights are one over the root of p."""
    x, gates = rng.normal(size=(15, 4)), rng.normal(size=(40, 4))
    gates[7] = gates[3]  # two gates with one mask count twice
    inputs = keras.Input((4,))
    opened = keras.layers.Dense(40, use_bias=False, trainable=False, name="gates")
    is_open = keras.ops.cast(opened(inputs) >= 0.0, "float64")
    hidden = keras.layers.Dense(40, use_bias=False)(inputs) * is_open
    outer = keras.layers.Dense(1, use_bias=False, trainable=False, name="outer")
    network = keras.Model(inputs, outer(hidden))
    network.get_layer("gates").set_weights([gates.T])
    outer.set_weights([np.full((40, 1), 40.0**-0.5)])
    given = kk.mkl.GatedReLU(gates, 0.1, weights="ntk").fit(x, x[:, 0])
    assert len(given.weights_) < 40
    np.testing.assert_allclose(given.weights_.sum(), 1.0)
    np.testing.assert_allclose(given.gram(x), kk.kernels.NTK(network).gram(x), rtol=1e-10)


def test_ntk_weights_do_not_depend_on_targets(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(2, 30))
    ntk, optimal = (
        [kk.mkl.GatedReLU(40, 0.1, rule, random_state=1).fit(x, v).weights_ for v in y]
        for rule in ("ntk", "optimal")
    )
    np.testing.assert_array_equal(*ntk)
    assert np.abs(optimal[0] - optimal[1]).max() > 0.01


def test_kare_falls(rng):
    x = rng.normal(size=(60, 3))
    y = np.stack([np.maximum(x[:, 0], 0.0) - x[:, 1], x[:, 2]], axis=1)
    y += 0.1 * rng.normal(size=y.shape)
    fitted = kk.mkl.GatedReLU(20, 0.6, "kare", random_state=0).fit(x, y)
    ntk = kk.mkl.GatedReLU(20, 0.6, "ntk", random_state=0).fit(x, y)
    risk = kk.risk.kare(y, fitted.gram(x), 0.01)
    np.testing.assert_allclose(fitted.report["kare"], risk, rtol=1e-9)
    np.testing.assert_allclose(
        fitted.report["kare_of_ntk"], kk.risk.kare(y, ntk.gram(x), 0.01), rtol=1e-9
    )
    assert fitted.report["converged"]
    assert fitted.report["kare"] < 0.9 * fitted.report["kare_of_ntk"]
    assert np.all(fitted.weights_ > 0.0)


def test_the_gradient_of_kare_is_that_of_its_value(rng):
    of = problem(2)
    gates, _ = different(of.x, of.gates)
    rows = MaskedRows(of.x, open_rows(of.x, gates))
    logs = rng.normal(size=len(gates))
    _, gradient = lowest_kare._kare(rows, of.y, 0.1, logs)
    for i in range(3):
        step = 1e-5 * np.eye(len(logs))[i]
        above, below = (
            lowest_kare._kare(rows, of.y, 0.1, logs + sign * step)[0] for sign in (1, -1)
        )
        np.testing.assert_allclose(gradient[i], (above - below) / 2e-5, rtol=1e-5)


def test_a_descent_that_cannot_go_down_ends():
    rows = MaskedRows(np.eye(2), np.ones((1, 2)))
    descent = lowest_kare.lowest_kare(rows, np.zeros((2, 1)), 0.1, np.ones(1), 5)
    assert descent.values[-1] == 0.0


def test_predictions_by_hand():
    """One gate a half line: each side has its own slope, shrunk by the penalty."""
    x, y = np.array([[1.0], [2.0], [-1.0], [-3.0]]), np.array([2.0, 4.0, 5.0, 15.0])
    fitted = kk.mkl.GatedReLU([[1.0], [-1.0]], 0.5).fit(x, y)
    right, left = (10.0 - 0.5) / 5.0, (-50.0 + 0.5) / 10.0
    np.testing.assert_allclose(fitted.coefficients_, [[right], [left]], rtol=1e-6)
    np.testing.assert_allclose(
        fitted.predict([[4.0], [-2.0], [0.0]]), [4.0 * right, -2.0 * left, 0.0], rtol=1e-6
    )


def test_duplicates_and_empty_masks_are_left_out():
    x = np.array([[1.0, 0.0], [2.0, 1.0]])
    gates = np.array([[-1.0, 0.0], [1.0, 0.0], [3.0, 1.0], [-1.0, 1.5]])
    fitted = kk.mkl.GatedReLU(gates, 0.1, "ntk").fit(x, [1.0, 2.0])
    np.testing.assert_array_equal(fitted.gates_, gates[[1]])
    np.testing.assert_array_equal(fitted.weights_, [1.0])


AGAIN = """
import pickle, sys
import numpy as np
sys.modules["keras_kare"] = None  # what Python raises ImportError for
import keras
x = np.load("x.npy")
np.save("keras.npy", keras.saving.load_model("gated.keras")(x))
del sys.modules["keras_kare"]
with open("gated.pickle", "rb") as file:
    np.save("pickle.npy", pickle.load(file).predict(x))
"""
"""A fresh process: Keras alone, then ours."""


def test_saved_and_served(rng, tmp_path):
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    fitted = kk.mkl.GatedReLU(60, 0.1, random_state=0).fit(x, y)
    network, expected = fitted.to_keras("float64"), fitted.predict(x)
    assert len(network.get_layer("gates").get_weights()[0].T) == fitted.report["active"]
    network.save(tmp_path / "gated.keras")
    (tmp_path / "gated.pickle").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "x.npy", x)
    network.export(tmp_path / "exports" / "gated" / "served", verbose=False)
    np.savez(tmp_path / "exports" / "gated" / "inputs.npz", inputs=x)
    for command in (["-c", AGAIN], [HERE / "plain_tensorflow.py", tmp_path / "exports"]):
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "pickle.npy"), expected)
    np.testing.assert_allclose(np.load(tmp_path / "keras.npy"), expected, rtol=1e-12)
    served = np.load(tmp_path / "exports" / "gated" / "plain.npz")
    for source in ("serve", "serving_default", "cli serving_default"):
        np.testing.assert_allclose(served[f"{source} output_0"], expected, rtol=1e-12)


def test_a_network_of_keras_computes_the_same(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    fitted = kk.mkl.GatedReLU(40, 0.1, random_state=0).fit(x, y)
    network, expected = fitted.to_keras("float64"), fitted.predict(x)[:, None]
    np.testing.assert_allclose(network(x), expected, rtol=1e-12)
    narrow = fitted.to_keras().predict(x, verbose=0)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, expected, atol=1e-5)
    assert len(network.trainable_variables) == 1, "gates stay as they are"
    gram = kk.kernels.NTK(network).gram(x)
    active = open_rows(x, fitted.gates_[fitted.weights_ > 0.0])
    equal = MaskedRows(x, active).kernel(np.ones(len(active)))
    np.testing.assert_allclose(gram, equal, atol=1e-5)
    nothing = kk.mkl.GatedReLU(30, 1e3, random_state=0).fit(x, y).to_keras()
    np.testing.assert_array_equal(nothing.predict(x, verbose=0), np.zeros((30, 1)))


def test_shapes_of_targets(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    network = kk.mkl.GatedReLU(20, 0.1, random_state=0)
    one, column = (network.fit(x, v).predict(x) for v in (y[:, 0], y[:, :1]))
    assert one.shape == (30,)
    assert column.shape == (30, 1)
    np.testing.assert_array_equal(one, column[:, 0])
    assert network.fit(x, y).predict(x[:7]).shape == (7, 2)
    assert network.coefficients_.shape == (*network.gates_.shape, 2)
    assert network.fit(x, y[:, 0]).coefficients_.shape == network.gates_.shape


def test_seeds_and_forms_of_rows(rng):
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 5, 30)
    network = kk.mkl.GatedReLU(20, 0.1, random_state=3)
    first = network.fit(x, y).predict(x)
    same = kk.mkl.GatedReLU(20, 0.1, random_state=np.random.default_rng(3))
    np.testing.assert_array_equal(first, same.fit(x.tolist(), y.tolist()).predict(x))
    np.testing.assert_array_equal(first, network.fit(tf.constant(x), y).predict(x))
    other = kk.mkl.GatedReLU(20, 0.1, random_state=4).fit(x, y).predict(x)
    assert np.abs(first - other).max() > 0.0


def test_a_tolerance_that_is_not_reached_is_said(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    with pytest.warns(RuntimeWarning, match=r"after 3 iterations: .*tolerance=1.0e-08"):
        fitted = kk.mkl.GatedReLU(20, 0.1, max_iterations=3, random_state=0).fit(x, y)
    assert not fitted.report["converged"]
    assert fitted.report["relative_gap"] > 1e-8


def test_a_few_steps_down_kare_are_a_choice(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    few = kk.mkl.GatedReLU(20, 0.1, "kare", max_iterations=2, random_state=0).fit(x, y)
    assert few.report["iterations"] == 2
    assert not few.report["converged"]
    assert few.report["kare"] < few.report["kare_of_ntk"]


def test_an_aim_below_rounding_ends(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    network = kk.mkl.GatedReLU(20, 0.1, tolerance=1e-300, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        report = network.fit(x, y).report
    assert report["relative_gap"] < 1e-12
    assert report["iterations"] < 50


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gates": 0}, "`gates` must be a whole number of at least 1.*gates=0"),
        ({"gates": True}, "`gates` must be a whole number.*gates=True"),
        ({"gates": [1.0, 2.0]}, "`gates` must have rows and columns.*shape \\(2,\\)"),
        ({"gates": [[np.nan]]}, "`gates` holds NaN.*Received: gates"),
        ({"gates": [["a"]]}, "`gates` must hold numbers.*Received: gates"),
        ({"regularization": 0.0}, "`regularization` must be.*regularization=0.0"),
        ({"regularization": np.nan}, "`regularization` must be.*regularization=nan"),
        ({"weights": "best"}, "`weights` must be one of.*weights='best'"),
        ({"tolerance": -1.0}, "`tolerance` must be.*tolerance=-1.0"),
        ({"max_iterations": 0}, "`max_iterations` must be.*max_iterations=0"),
        ({"random_state": "a"}, "`random_state` must be.*random_state='a'"),
        ({"random_state": -1}, "`random_state` must be.*random_state=-1"),
    ],
)
def test_bad_arguments_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        kk.mkl.GatedReLU(**options)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (None, [1.0], "`x` is missing.*x=None"),
        ([1.0, 2.0], [1.0, 2.0], "`x` must have rows and columns.*shape \\(2,\\)"),
        (np.ones((0, 2)), [], "`x` must have rows and columns.*shape \\(0, 2\\)"),
        ([[1.0, np.nan]], [1.0], "`x` holds NaN.*Received: x"),
        ([["a"]], [1.0], "`x` must hold numbers.*Received: x"),
        (np.ones((2, 2)), None, "`y` is missing.*y=None"),
        (np.ones((2, 2)), [1.0], "`y` must have one row for each.*shape \\(1,\\)"),
        (np.ones((2, 2)), [1.0, np.inf], "`y` holds NaN.*Received: y"),
        (np.ones((2, 2)), ["a", "b"], "`y` must hold numbers.*Received: y"),
        (np.ones((2, 3)), [1.0, 2.0], "`gates` must have the columns of `x`.*3 columns"),
        (-np.ones((2, 2)), [1.0, 2.0], "No gate opens on a row.*shape \\(2, 2\\)"),
    ],
)
def test_bad_rows_are_named(x, y, says):
    with pytest.raises(ValueError, match=says):
        kk.mkl.GatedReLU(np.ones((1, 2))).fit(x, y)


def test_other_uses_are_refused():
    network = kk.mkl.GatedReLU(np.ones((1, 2)), weights="kare")
    with pytest.raises(ValueError, match="not fitted yet"):
        network.predict(np.ones((2, 2)))
    with pytest.raises(ValueError, match="not fitted yet"):
        network.to_keras()
    with pytest.raises(ValueError, match="at least two rows"):
        network.fit(np.ones((1, 2)), [1.0])
    fitted = kk.mkl.GatedReLU(np.ones((1, 2))).fit(np.ones((2, 2)), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"`x` must have 2 columns.*shape \(2, 3\)"):
        fitted.predict(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`dtype` must be one of.*dtype='float16'"):
        fitted.to_keras("float16")


@pytest.mark.parametrize("weights", ["optimal", "ntk", "kare"])
def test_sizes_that_float64_does_not_hold_are_refused_by_name(weights, rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    machine = kk.mkl.GatedReLU(gates=10, weights=weights, random_state=0)
    for scale in (1e150, 1e155, 1e200):
        with pytest.raises(ValueError, match="`y` must be of numbers below 1e\\+30"):
            machine.fit(x, y * scale)
        with pytest.raises(ValueError, match="`x` must be of numbers below 1e\\+30"):
            machine.fit(x * scale, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("weights", ["optimal", "ntk", "kare"])
def test_what_is_found_are_numbers_or_refused(weights, rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    refused = []
    for of_x, of_y in itertools.product((1e-29, 1e-9, 1.0, 1e9, 1e29), repeat=2):
        for beta in (1e-29, 1e-2, 1e29):
            machine = kk.mkl.GatedReLU(10, beta, weights, random_state=0)
            try:
                machine.fit(of_x * x, of_y * y)
            except ValueError as error:
                refused.append(str(error))
                continue
            found = machine.report
            assert np.all(np.isfinite([found["objective"], found["gap"]]))
            if weights == "optimal":
                assert found["converged"] == (found["relative_gap"] <= 1e-8)
            assert np.all(np.isfinite(machine.predict(of_x * x)))
    assert len(refused) < 30
    assert all("`regularization` is too small, or too large" in said for said in refused)
