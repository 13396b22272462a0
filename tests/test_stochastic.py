"""KARE of any number of rows: estimates, their gradients, and training with them."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from gaussian import Gaussian

import keras_kare as kk
from keras_kare.kernels import DenseOperator
from keras_kare.machine import Machine

Z = 0.3


class Direct(kk.solvers.Solver):
    """`np.linalg.solve`: fast where there are a few rows and many seeds."""

    name = "direct"
    tolerance = 1e-9

    def memory(self, operator, columns):
        return 0.0

    def prepare(self, system):
        return DirectPrepared(system, self)


class DirectPrepared(kk.solvers.Prepared):
    def solve(self, ridge, start=None):
        n, y = self.system.rows, self.system.y
        dual = np.linalg.solve(self.system.gram / n + ridge * np.eye(n), y)
        return kk.solvers.Solution(ridge, "direct", n, y.shape[1], dual=dual)


def network(width=4, c=1, features=3, **kwargs):
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(width, "gelu", **kwargs),
            keras.layers.Dense(c),
        ]
    )


def rows(rng, n=60, c=1, features=3, dtype="float64"):
    x = rng.normal(size=(n, features)).astype(dtype)
    y = np.sin(3.0 * x[:, :1] + np.arange(c)) + 0.3 * rng.normal(size=(n, c))
    return x, y.astype(dtype)


def plain(kernel, x, y, ridge, relative=False, fixed_trace=False):
    """KARE and its gradient by the definition, from the whole matrix."""
    with tf.GradientTape() as tape:
        gram = kernel.gram(x)
        n = len(x)
        z = ridge * (tf.linalg.trace(gram) / n**2 if relative else 1.0)
        inverse = tf.linalg.inv(gram / n + z * tf.eye(n, dtype=gram.dtype))
        t = tf.linalg.trace(inverse) / n
        t = tf.stop_gradient(t) if fixed_trace else t
        value = tf.reduce_mean((inverse @ y) ** 2) / t**2
    gradients = tape.gradient(
        value,
        [v.value for v in kernel.trainable_variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return float(value), flat(gradients)


def flat(gradients):
    return np.concatenate([np.ravel(g) for g in gradients])


def spread(values):
    """Mean over the first axis and the standard error of that mean, as lengths."""
    values = np.asarray(values)
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    return np.mean(values, axis=0), np.linalg.norm(error)


@pytest.mark.parametrize(("outputs", "c"), [("sum", 1), ("trace", 2)])
def test_primal_is_the_definition(rng, float64, outputs, c):
    kernel = kk.kernels.NTK(network(c=c), outputs=outputs)
    x, y = rows(rng, c=2)
    for relative in (False, True):
        value, gradient = plain(kernel, x, y, Z, relative)
        found, gradients = kk.stochastic.kare_and_gradient(
            kernel, x, y, Z, relative=relative
        )
        assert (found.method, found.probes, found.standard_error) == ("primal", 0, 0.0)
        assert found.converged
        np.testing.assert_allclose(found.value, value, rtol=1e-9)
        np.testing.assert_allclose(
            flat(gradients), gradient, rtol=0, atol=1e-8 * np.max(np.abs(gradient))
        )
    shapes = [v.shape for v in kernel.trainable_variables]
    assert [g.shape for g in gradients] == shapes
    again = kk.stochastic.kare(kernel.operator(x), y, found.ridge)
    np.testing.assert_allclose(again.value, value, rtol=1e-9)


def test_primal_with_many_columns_and_a_small_ridge(rng, float64):
    kernel = kk.kernels.NTK(network())
    x, y = rows(rng, c=5)
    value, gradient = plain(kernel, x, y, 1e-5)
    found, gradients = kk.stochastic.kare_and_gradient(kernel, x, y, 1e-5)
    np.testing.assert_allclose(found.value, value, rtol=1e-7)
    np.testing.assert_allclose(
        flat(gradients), gradient, rtol=0, atol=1e-6 * np.max(np.abs(gradient))
    )


def test_gradient_is_that_of_the_estimate(rng, float64):
    """Finite differences of the estimate with the same probes, few as they are."""
    kernel = kk.kernels.NTK(network(c=2), outputs="trace")
    x, y = rows(rng, n=40, c=2)
    start = kernel.network.get_weights()
    steps = [rng.normal(size=w.shape) for w in start]
    for solver, relative in ((Direct(), False), (kk.solvers.CG(1e-12), True)):
        _, gradients = kk.stochastic.kare_and_gradient(
            kernel, x, y, Z, 3, 7, "stochastic", solver, relative
        )
        values = []
        for size in (1e-4, -1e-4):
            moved = [w + size * d for w, d in zip(start, steps, strict=True)]
            kernel.network.set_weights(moved)
            system = kk.solvers.System(kernel.operator(x), y)
            z = Z * (system.unit if relative else 1.0)
            found = kk.stochastic.kare(system, None, z, 3, 7, "stochastic", solver)
            values.append(found.value)
        kernel.network.set_weights(start)
        slope = (values[0] - values[1]) / 2e-4
        np.testing.assert_allclose(flat(gradients) @ flat(steps), slope, rtol=1e-5)


def test_value_is_unbiased_to_first_order(rng):
    """Few probes, so that the bias that is taken away can be seen."""
    b = rng.normal(size=(16, 8))
    gram, y = b @ b.T, rng.normal(size=(16, 1))
    exact = float(kk.risk.kare(y, gram, Z))
    operator, corrected, plugged = DenseOperator(gram), [], []
    for seed in range(3000):
        found = kk.stochastic.kare(operator, y, Z, 6, seed, solver=Direct())
        corrected.append(found.value)
        # s/t̂², with r = v̂½/t̂ from what is known: error/value = 2 r (1 + 3 r²)
        ratio = r = found.standard_error / found.value / 2.0
        for _ in range(50):
            r = ratio / (1.0 + 3.0 * r**2)
        plugged.append(found.value * (1.0 + 3.0 * r**2))
    mean, error = spread(corrected)
    assert abs(mean - exact) < 3.5 * error < 0.02 * exact
    mean, error = spread(plugged)
    assert mean - exact > 5.0 * error


def test_value_and_gradient_are_unbiased(rng, float64):
    kernel = kk.kernels.NTK(network(width=30))
    x, y = rows(rng, n=100)
    value, gradient = plain(kernel, x, y, Z)
    _, without = plain(kernel, x, y, Z, fixed_trace=True)
    values, gradients, errors = [], [], []
    for seed in range(50):
        found, parts = kk.stochastic.kare_and_gradient(
            kernel, x, y, Z, 32, seed, "stochastic", Direct()
        )
        values.append(found.value)
        errors.append(found.standard_error)
        gradients.append(flat(parts))
    mean, error = spread(values)
    assert abs(mean - value) < 3.5 * error < 0.01 * value
    # what an estimate says of its own error
    np.testing.assert_allclose(np.mean(errors), np.std(values), rtol=0.3)
    mean, error = spread(gradients)
    size = np.linalg.norm(gradient)
    assert np.linalg.norm(mean - gradient) < 2.0 * error < 0.1 * size
    # the probes' part of the gradient, were it missing or of the other sign
    assert np.linalg.norm(without - gradient) > 10.0 * error
    # each direction for itself
    for direction in rng.normal(size=(10, len(gradient))):
        mean, error = spread(np.asarray(gradients) @ direction)
        assert abs(mean - gradient @ direction) < 4.0 * error


def test_a_thousand_rows_by_conjugate_gradients(rng):
    kernel = kk.kernels.NTK(network(width=150, features=5))
    x, y = rows(rng, n=1000, features=5, dtype="float32")
    exact, gradient = plain(kernel, x, y, 1e-2)
    solver = kk.solvers.CG(rank=64)
    gradients = []
    for seed in range(4):
        found, parts = kk.stochastic.kare_and_gradient(
            kernel, x, y, 1e-2, probes=64, seed=seed, solver=solver
        )
        assert found.method == "stochastic"
        assert found.converged
        assert 0 < found.iterations < 100
        assert abs(found.value - exact) < 4.5 * found.standard_error < 0.01 * exact
        gradients.append(flat(parts))
    mean, error = spread(gradients)
    assert np.linalg.norm(mean - gradient) < 2.5 * error < 0.25 * np.linalg.norm(gradient)


def test_dual_is_that_of_the_machine(rng, float64):
    kernel = kk.kernels.NTK(network())
    x, y = rows(rng, c=2)
    gram = kernel.gram(x).numpy()
    dual = np.linalg.solve(gram / 60 + Z * np.eye(60), y)
    for method in ("primal", "stochastic"):
        found = kk.stochastic.kare(
            kernel.operator(x), y, Z, method=method, solver=kk.solvers.CG(1e-10)
        )
        np.testing.assert_allclose(found.dual, dual, rtol=1e-6, atol=1e-8)


def test_weights_of_rows_in_values(rng, float64):
    kernel = kk.kernels.NTK(network())
    x, y = rows(rng)
    weights = rng.integers(0, 4, 60).astype("float64")
    exact = float(kk.risk.kare(y, kernel.gram(x), Z, weights))
    system = kk.solvers.System(kernel.operator(x), y, weights)
    found = kk.stochastic.kare(system, None, Z)
    assert found.method == "primal"
    np.testing.assert_allclose(found.value, exact, rtol=1e-8)
    found = kk.stochastic.kare(system, None, Z, probes=200, method="stochastic")
    assert abs(found.value - exact) < 4.0 * found.standard_error < 0.1 * exact


def test_one_preconditioner_serves_both_solutions(rng, monkeypatch):
    prepared = []
    original = kk.solvers.CG.prepare

    def prepare(self, system):
        prepared.append(system.y.shape[1])
        return original(self, system)

    monkeypatch.setattr(kk.solvers.CG, "prepare", prepare)
    kernel = kk.kernels.NTK(network(width=40))
    kk.stochastic.kare_and_gradient(kernel, *rows(rng), Z, probes=4, method="stochastic")
    assert prepared == [5]


def test_rough_solutions_are_told(rng):
    kernel = kk.kernels.NTK(network(width=40))
    x, y = rows(rng)
    solver = kk.solvers.CG(tolerance=1e-7, max_iterations=1, rank=0)
    with pytest.warns(RuntimeWarning, match="residual of .* after 1 iterations"):
        found = kk.stochastic.kare(kernel.operator(x), y, Z, solver=solver)
    assert not found.converged
    assert found.residual > found.tolerance == 1e-7
    with pytest.warns(RuntimeWarning, match="after 2 iterations"):
        kk.stochastic.kare_and_gradient(kernel, x, y, Z, solver=solver)


def test_frozen_layers_have_no_gradient(rng, float64):
    net = network(width=8)
    kernel = kk.kernels.NTK(net)
    x, y = rows(rng)
    net.layers[0].trainable = False
    value, gradient = plain(kernel, x, y, Z)
    found, gradients = kk.stochastic.kare_and_gradient(kernel, x, y, Z)
    assert len(gradients) == 2
    np.testing.assert_allclose(found.value, value, rtol=1e-9)
    np.testing.assert_allclose(flat(gradients), gradient, atol=1e-9)


def test_kernels_without_features(rng):
    kernel = Gaussian()
    x, y = rows(rng)
    exact = float(kk.risk.kare(y, kernel.gram(x, "float64"), Z))
    found = kk.stochastic.kare(kernel.operator(x), y, Z, probes=200)
    assert abs(found.value - exact) < 4.0 * found.standard_error < 0.1 * exact
    with pytest.raises(ValueError, match=r"finite feature map.*Received: .*Gaussian"):
        kk.stochastic.kare_and_gradient(kernel, x, y, Z)
    with pytest.raises(ValueError, match="needs a kernel whose feature map"):
        kk.stochastic.kare(kernel.operator(x), y, Z, method="primal")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ridge": 0.0}, "`ridge` must be a positive finite number"),
        ({"ridge": np.nan}, "`ridge` must be"),
        ({"probes": 1}, "`probes` must be a whole number of at least 2"),
        ({"probes": 2.5}, "`probes` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"method": "exact"}, "`method` must be one of 'auto', 'primal'"),
        ({"solver": "cg"}, "`solver` must be a solver"),
        ({"y": np.ones((3, 1))}, "`y` must have one row"),
        ({"y": np.full((60, 1), np.nan)}, "`y`"),
        ({"y": None}, "`y` is missing"),
        ({"operator": np.eye(60)}, "`operator` must be"),
    ],
)
def test_bad_input_is_named(rng, changed, message):
    x, y = rows(rng)
    given = {"operator": kk.kernels.NTK(network()).operator(x), "y": y, "ridge": Z}
    with pytest.raises(ValueError, match=message) as raised:
        kk.stochastic.kare(**{**given, **changed})
    assert "Received: " in str(raised.value)


def test_bad_kernels_and_systems(rng):
    x, y = rows(rng)
    net = network(width=40)
    kernel = kk.kernels.NTK(net)
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        kk.stochastic.kare_and_gradient(net, x, y, Z)
    full = kk.kernels.NTK(network(c=2), outputs="full")
    with pytest.raises(ValueError, match="finite feature map"):
        kk.stochastic.kare_and_gradient(full, x, y, Z)
    with pytest.raises(ValueError, match=r"201 features, 60 rows"):
        kk.stochastic.kare(kernel.operator(x), y, Z, method="primal")
    with pytest.raises(ValueError, match="at least two rows"):
        kk.stochastic.kare(kernel.operator(x[:1]), y[:1], Z)
    with pytest.raises(ValueError, match="`y` must be None with a `System`"):
        kk.stochastic.kare(kk.solvers.System(kernel.operator(x), y), y, Z)
    net.set_weights([0.0 * w for w in net.get_weights()[:3]] + [np.zeros(1)])
    found = kk.stochastic.kare(kernel.operator(x), y, Z)  # the last bias alone
    assert found.converged
    with pytest.raises(ValueError, match="KARE overflows"):
        kk.stochastic.kare(DenseOperator(np.eye(60)), 1e153 * y, 0.01, solver=Direct())
    solver = kk.solvers.CG(max_iterations=1, rank=0)
    with pytest.raises(ValueError, match=r"nothing better than zero\. .*Received: "):
        kk.stochastic.kare(kernel.operator(x), y, 1e-12, solver=solver)


# Training


def model_of(net, loss, optimizer="sgd", **kwargs):
    model = kk.KAREModel(net, head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(optimizer, loss, **kwargs)
    return model


@pytest.mark.parametrize(("method", "width"), [("stochastic", 40), ("primal", 12)])
def test_training_lowers_kare_and_forms_no_matrix(rng, monkeypatch, method, width):
    x, y = rows(rng, n=150, dtype="float32")
    kernel = kk.kernels.NTK(network(width=width))
    ridge = 1.0 / 150.0  # of the order of tr(K)/n²
    before = float(kk.risk.kare(y, kernel.gram(x), ridge))
    loss = kk.losses.FullKARE(ridge=ridge, method=method)
    model = model_of(kernel, loss, keras.optimizers.Adam(0.3), metrics=["mse"])
    steps, evaluate = [], loss.value_and_gradients

    def noted(kernel, x, y, step):
        steps.append((step, len(y), tf.executing_eagerly()))
        return evaluate(kernel, x, y, step)

    def refuse(*args, **kwargs):
        raise AssertionError("a Gram matrix was formed")

    with monkeypatch.context() as patch:
        patch.setattr(loss, "value_and_gradients", noted)
        patch.setattr(kk.kernels.NTK, "gram", refuse)
        patch.setattr(Machine, "solve", lambda *args: None)
        history = model.fit(x, y, epochs=7, verbose=0).history
    assert steps == [(step, 150, True) for step in range(7)]
    after = float(kk.risk.kare(y, kernel.gram(x), ridge))
    assert after < 0.6 * before
    assert np.isclose(history["loss"][0], before, rtol=0.1)
    np.testing.assert_allclose(history["mse"], history["loss"], rtol=1e-4)


def test_all_rows_are_one_batch(rng, monkeypatch):
    x, y = rows(rng, n=4200, dtype="float32")
    model = model_of(network(width=2), kk.losses.FullKARE(ridge=0.1))
    monkeypatch.setattr(Machine, "solve", lambda *args: None)
    model.fit(x, y, epochs=1, verbose=0)
    assert int(model.optimizer.iterations) == 1


def test_probes_are_new_at_each_step_and_repeatable(rng):
    x, y = rows(rng, dtype="float32")
    kernel = kk.kernels.NTK(network(width=40))

    def value(step, seed=0):
        loss = kk.losses.FullKARE(ridge=0.01, probes=2, seed=seed)
        return loss.value_and_gradients(kernel, x, y, step)[0]

    values = [value(0), value(1), value(2), value(0, seed=1)]
    assert len(set(values)) == 4
    assert value(1) == values[1]


def test_regularisers_are_added(rng):
    x, y = rows(rng, dtype="float32")
    moved = []
    for penalty in (None, keras.regularizers.L2(0.5)):
        keras.utils.set_random_seed(0)
        net = network(kernel_regularizer=penalty)
        before = net.get_weights()[0]
        model = model_of(net, kk.losses.FullKARE(ridge=0.01), keras.optimizers.SGD(0.1))
        loss = model.train_on_batch(x, y)
        moved.append((net.get_weights()[0], float(np.ravel(loss)[0])))
    np.testing.assert_allclose(moved[1][0] - moved[0][0], -0.1 * before, atol=1e-5)
    added = 0.5 * np.sum(before**2)
    np.testing.assert_allclose(moved[1][1] - moved[0][1], added, rtol=1e-4)


def test_activity_regularisers_are_added(rng):
    x, y = rows(rng, dtype="float32")
    net = network(activity_regularizer=keras.regularizers.L2(3.0))
    plain = network()
    plain.set_weights(net.get_weights())
    net(x)
    added = float(sum(net.losses))
    losses = [
        model_of(n, kk.losses.FullKARE(ridge=0.01), keras.optimizers.SGD(1e-9))
        .fit(x, y, epochs=2, verbose=0)
        .history["loss"]
        for n in (plain, net)
    ]
    np.testing.assert_allclose(np.subtract(*losses[::-1]), [added] * 2, rtol=1e-3)


def test_rough_training_solutions_are_told_once(rng, monkeypatch):
    x, y = rows(rng, dtype="float32")
    loss = kk.losses.FullKARE(ridge=0.01, tolerance=1e-4, method="stochastic")
    rough = kk.solvers.CG(tolerance=1e-9, max_iterations=1, rank=30)
    monkeypatch.setattr("keras_kare.losses.full_kare.CG", lambda **kwargs: rough)
    kernel = kk.kernels.NTK(network(width=40))
    with pytest.warns(RuntimeWarning, match="residual"):
        loss.value_and_gradients(kernel, x, y, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.value_and_gradients(kernel, x, y, 1)


def test_saved_and_loaded(rng, tmp_path):
    x, y = rows(rng, dtype="float32")
    given = {
        "ridge": 0.2,
        "relative": True,
        "probes": 3,
        "tolerance": 1e-3,
        "method": "stochastic",
        "seed": 5,
    }
    model = model_of(network(width=40), kk.losses.FullKARE(**given))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, kk.losses.FullKARE)
    assert loaded.loss.get_config() == {"name": "full_kare", **given}
    np.testing.assert_allclose(loaded.predict(x), model.predict(x), rtol=1e-5)
    first, second = (
        m.fit(x, y, epochs=1, shuffle=False, verbose=0).history["loss"]
        for m in (model, loaded)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_names_and_arguments_of_the_loss(rng):
    assert isinstance(kk.losses.get("full_kare"), kk.losses.FullKARE)
    config = keras.saving.serialize_keras_object(kk.losses.FullKARE(probes=5))
    assert kk.losses.get(config).probes == 5
    x, y = rows(rng)
    gram = kk.kernels.NTK(network()).gram(x)
    np.testing.assert_allclose(kk.losses.FullKARE()(y, gram), kk.losses.KARE()(y, gram))
    for name, value in (("probes", 1), ("tolerance", 0), ("method", "x"), ("seed", None)):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            kk.losses.FullKARE(**{name: value})
    with pytest.raises(NotImplementedError, match="needs a Gram matrix"):
        kk.losses.KARE().value_and_gradients(None, x, y, 0)


def test_another_loss_trains_in_graphs_again(rng, monkeypatch):
    x, y = rows(rng, dtype="float32")
    model = model_of(network(), "full_kare")
    monkeypatch.setattr(Machine, "solve", lambda *args: None)
    eager, step = [], model.train_step

    def noted(data):
        eager.append(tf.executing_eagerly())
        return step(data)

    monkeypatch.setattr(model, "train_step", noted)
    model.fit(x, y, epochs=1, verbose=0)
    assert not model.run_eagerly
    model.compile("sgd", "kare")
    model.fit(x, y, epochs=1, verbose=0)
    assert eager == [True, False]
