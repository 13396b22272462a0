"""A constant beside the machine, against bordered systems solved in NumPy."""

from __future__ import annotations

import keras
import loss_cases
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_diabetes

import keras_kare as kk
from keras_kare.kernels import DenseOperator
from keras_kare.machine.intercept import decide
from keras_kare.solvers.stream import Stream

ROWS, RIDGE = 24, 0.3
COUNTS = np.arange(ROWS) % 4 + 0.0
SHIFT = np.array([7.0, -1000.0])


@pytest.fixture
def data(rng, float64):
    x = rng.normal(size=(ROWS, 3))
    return x, np.stack([np.sin(x[:, 0]), 3.0 * x[:, 1]], axis=1) + SHIFT


@pytest.fixture
def kernel(float64):
    return kk.kernels.NTK(network())


def network(width=5):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(width, "tanh"), keras.layers.Dense(1)]
    )


class Bordered:
    """`(W½KW½/N + λI) α + ρ b = W½ y`, `ρᵀα = 0`, solved as it stands."""

    def __init__(self, gram, y, ridge, weights=None):
        n = len(gram)
        weights = np.ones(n) if weights is None else weights
        self.root, self.count = np.sqrt(weights)[:, None], np.sum(weights)
        matrix = self.root * gram * self.root.T / self.count + ridge * np.eye(n)
        border = np.block([[matrix, self.root], [self.root.T, np.zeros((1, 1))]])
        inverse = np.linalg.inv(border)
        self.p = inverse[:n, :n]
        solution = inverse @ np.concatenate([self.root * y, np.zeros((1, y.shape[1]))])
        self.a, self.b = solution[:n], solution[n]
        self.freedom = n - ridge * np.trace(self.p)
        t = (np.trace(self.p) + (self.count - n) / ridge) / self.count
        s = np.sum(self.a**2) / (self.count * y.shape[1])
        self.kare = s / t**2
        left_out = self.a / np.diag(self.p)[:, None]
        self.leave_one_out_mse = np.sum(left_out**2) / (self.count * y.shape[1])

    def predict(self, cross):
        return cross @ (self.root * self.a) / self.count + self.b


def close(a, b, tolerance=1e-9):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


def weights_of(weighted):
    return COUNTS if weighted else None


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_risks_are_those_of_the_bordered_system(data, kernel, ridge):
    x, y = data
    gram = kernel.gram(x).numpy()
    expected = Bordered(gram, y, ridge)
    close(kk.risk.kare(y, gram, ridge, intercept=True), expected.kare)
    close(kk.risk.kare(y + 5.0, gram, ridge, intercept=True), expected.kare)
    found = kk.risk.leave_one_out(y, gram, ridge, intercept=True).numpy()
    for row in range(0, ROWS, 5):
        rest = np.arange(ROWS) != row
        # the ridge n z of the system is held fixed
        z = ridge * ROWS / (ROWS - 1)
        others = Bordered(gram[np.ix_(rest, rest)], y[rest], z)
        close(found[row], others.predict(gram[row : row + 1, rest])[0], 1e-8)


def test_weights_are_repeated_rows(data, kernel):
    x, y = data
    gram, repeated = kernel.gram(x).numpy(), np.repeat(np.arange(ROWS), COUNTS.astype(int))
    expected = Bordered(gram[np.ix_(repeated, repeated)], y[repeated], 0.1).kare
    close(kk.risk.kare(y, gram, 0.1, COUNTS, intercept=True), expected)
    found = kk.risk.leave_one_out(y, gram, 0.1, COUNTS, intercept=True)
    others = repeated[repeated != 3]
    without = Bordered(
        gram[np.ix_(others, others)], y[others], 0.1 * np.sum(COUNTS) / len(others)
    )
    close(found[3], without.predict(gram[3:4, others])[0], 1e-7)


@pytest.mark.parametrize("loss", [kk.losses.KARE(0.2, relative=True), "leave_one_out"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(data, kernel, rng, loss, weighted):
    x, y = data
    arrays = [y, kernel.gram(x).numpy()]
    upstream = rng.normal(size=y.shape)

    def value(y, gram):
        y, gram, weights = tf.constant(y), tf.constant(gram), weights_of(weighted)
        if loss == "leave_one_out":
            found = kk.risk.leave_one_out(y, gram, 0.2, weights, intercept=True)
            return tf.reduce_sum(upstream * found)
        return loss.evaluate(y, gram, weights, intercept=True)[0]

    check_gradients(value, arrays, rng)


def test_gradients_of_the_other_half(data, kernel, rng):
    x, y = data
    gram, loss = kernel.gram(x).numpy(), kk.losses.HoldoutKARE(0.2)

    def value(y, gram):
        return loss.evaluate(tf.constant(y), tf.constant(gram), intercept=True)[0]

    half = ROWS // 2
    a, b = slice(None, half), slice(half, None)
    predictions = [
        Bordered(gram[b, b], y[b], 0.2).predict(gram[a, b]),
        Bordered(gram[a, a], y[a], 0.2).predict(gram[b, a]),
    ]
    close(value(y, gram), np.mean((y - np.concatenate(predictions)) ** 2))
    check_gradients(value, [y, gram], rng)


def check_gradients(value, arrays, rng):
    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = value(*tensors)
    for which, gradient in enumerate(tape.gradient(found, tensors)):
        direction = rng.normal(size=gradient.shape)
        if which == 1:
            direction = direction + direction.T
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(arrays)
            moved[which] = moved[which] + step * direction
            ends.append(value(*moved))
        close(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, 1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_kare_of_features_and_its_gradient(data, relative):
    (x, y), kernel = data, kk.kernels.NTK(network(4))  # fewer features than rows
    loss = kk.losses.KARE(0.1, relative=relative)
    variables = [v.value for v in kernel.trainable_variables]
    with tf.GradientTape() as tape:
        expected, _ = loss.evaluate(tf.constant(y), kernel.gram(x), intercept=True)
    gradients = tape.gradient(expected, variables, unconnected_gradients="zero")
    estimate, found = kk.stochastic.kare_and_gradient(
        kernel, x, y, 0.1, method="primal", relative=relative, intercept=True
    )
    close(estimate.value, expected)
    for a, b in zip(found, gradients, strict=True):
        close(a, b, 1e-8)


@pytest.mark.parametrize("relative", [False, True])
def test_probes_have_no_mean(data, kernel, rng, relative):
    """The estimate, from the definition with the same probes; and its gradient."""
    (x, y), probes = data, 5

    def estimate():
        return kk.stochastic.kare_and_gradient(
            kernel,
            x,
            y,
            0.1,
            probes=probes,
            method="stochastic",
            solver=kk.solvers.CG(tolerance=1e-12),
            relative=relative,
            intercept=True,
        )

    found, gradients = estimate()
    machine = Bordered(kernel.gram(x).numpy(), y, found.ridge)
    z = 2.0 * np.random.default_rng(0).integers(0, 2, (ROWS, probes)) - 1.0
    q = np.sum(z * (machine.p @ z), axis=0) / ROWS
    variance = np.var(q, ddof=1) / probes
    close(found.value, np.mean(machine.a**2) / (np.mean(q) ** 2 + 3.0 * variance), 1e-8)
    variable, gradient = kernel.trainable_variables[0], gradients[0]
    start, direction = variable.numpy(), rng.normal(size=variable.shape)
    ends = []
    for step in (1e-5, -1e-5):
        variable.assign(start + step * direction)
        ends.append(estimate()[0].value)
    close(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, 1e-6)


SOLVERS = {
    "spectral": kk.solvers.Spectral(),
    "cholesky": kk.solvers.Cholesky(),
    "cg": kk.solvers.CG(tolerance=1e-11, rank=3),
    "primal": kk.solvers.Primal(),
    "nystrom": kk.solvers.Nystrom(centres=ROWS),
    "eigenpro": kk.solvers.EigenPro(tolerance=1e-10, max_epochs=2000, subsample=8),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("values", [False, True])
def test_solvers_solve_the_bordered_system(data, kernel, name, weighted, values):
    if values and name == "primal":
        pytest.skip("needs features")
    (x, y), weights = data, weights_of(weighted)
    gram = kernel.gram(x).numpy()
    operator = DenseOperator(gram) if values else kernel.operator(x)
    system = kk.solvers.System(operator, y, weights, intercept=True)
    prepared = SOLVERS[name].prepare(system)
    expected = Bordered(gram, y, RIDGE, weights)
    close(prepared.unit, np.average(np.diag(gram), weights=weights) / expected.count)
    grid = list(prepared.solve_grid([10.0, RIDGE]))[1]
    for solution in (prepared.checked(prepared.solve(RIDGE)), grid):
        for fact in ("leave_one_out_mse", "kare", "effective_dimension"):
            if getattr(solution, fact) is not None:
                known = "freedom" if fact == "effective_dimension" else fact
                close(getattr(solution, fact), getattr(expected, known), 1e-8)
        close(solution.constant, expected.b)
    solution = prepared.checked(prepared.solve(RIDGE))
    assert solution.converged
    rows = slice(None) if solution.centres is None else solution.centres
    dual = prepared.predictor(solution)
    found = gram[:, rows] @ dual / len(dual) + solution.constant
    close(found - SHIFT, expected.predict(gram) - SHIFT, 1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["primal", "nystrom", "eigenpro"])
def test_streams_are_solved_like_arrays(data, kernel, name, weighted):
    (x, y), weights = data, weights_of(weighted)

    def batches():
        for begin in range(0, ROWS, 7):
            rows = slice(begin, begin + 7)
            yield tf.constant(x[rows]), y[rows], weights[rows] if weighted else None

    gram = kernel.gram(x).numpy()
    expected = Bordered(gram, y, RIDGE, weights)
    system = kk.solvers.StreamSystem(kernel, Stream(batches, intercept=True))
    prepared = SOLVERS[name].prepare(system)
    solution = prepared.solve(RIDGE)
    if solution.weights is None:
        dual = prepared.predictor(solution)
        found = kernel.cross(x, prepared.anchors_of(solution)).numpy() @ dual / len(dual)
    else:
        flat = prepared.predictor_weights(solution)
        found = kernel.jvp(x, kernel.weights_from(flat, x)).numpy()
    close(found + solution.constant - SHIFT, expected.predict(gram) - SHIFT, 1e-6)
    close(prepared.scales, np.average((y - mean(y, weights)) ** 2, 0, weights))


def mean(y, weights):
    return np.average(y, axis=0, weights=weights)


def solved(data, **arguments):
    model = kk.KAREModel(network(), kk.NTKRidgeHead(**arguments))
    model.fit_head(*data)
    return model


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_head_predicts_with_its_constant(data, form, tmp_path):
    """Predicted, saved and loaded, solved again, and served."""
    x, y = data
    model = solved(data, form=form, ridge=RIDGE, relative=False)
    expected = Bordered(model.kernel.gram(x).numpy(), y, RIDGE)
    predictions = expected.predict(model.kernel.gram(x).numpy())
    close(model.predict(x), predictions)
    close(model.head.report["intercept"], expected.b)
    close(model.head.constant, expected.b)
    assert "times as large" in model.head.report["intercept_by"]
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    close(loaded.predict(x), predictions)
    for served in ("primal", "dual"):
        model.export(tmp_path / served, form=served, verbose=False)
        archive = tf.saved_model.load(str(tmp_path / served))
        close(archive.serve(tf.constant(x)), predictions)
    loaded.network.layers[0].kernel.assign(2.0 * loaded.network.layers[0].kernel)
    gram = loaded.kernel.gram(x).numpy()
    close(loaded.predict(x), Bordered(gram, y, RIDGE).predict(gram))
    near = y - SHIFT
    loaded.fit_head(x, near)
    assert loaded.head.constant is None
    plain = gram @ np.linalg.solve(gram / ROWS + RIDGE * np.eye(ROWS), near) / ROWS
    close(loaded.predict(x), plain)


def test_residual_machine_has_a_constant_too(data):
    x, y = data[0], data[1][:, :1]
    model = solved((x, y), residual=True, ridge=RIDGE, relative=False)
    f, gram = model.network.predict(x, verbose=0), model.kernel.gram(x).numpy()
    close(model.predict(x), f + Bordered(gram, y - f, RIDGE).predict(gram))


def test_variance_is_that_of_a_constant_of_which_nothing_is_known(data, rng):
    """A Gaussian process whose constant has a prior of enormous variance."""
    x, y = data
    model = solved(data, ridge=RIDGE, relative=False)
    new = rng.normal(size=(5, 3))
    vague = 1e6
    gram, cross = model.kernel.gram(x).numpy(), model.kernel.cross(new, x).numpy()
    prior = np.diag(model.kernel.gram(new).numpy()) + vague
    system = gram + vague + ROWS * RIDGE * np.eye(ROWS)
    seen = cross + vague
    unit = prior - np.sum(seen * np.linalg.solve(system, seen.T).T, axis=1)
    inverse = np.linalg.inv(system)
    errors = inverse @ (y - SHIFT) / np.diag(inverse)[:, None]
    scale = np.mean(errors**2 * np.diag(inverse)[:, None], axis=0)
    close(model.variance(new), unit[:, None] * scale, 1e-4)


@pytest.mark.parametrize("name", loss_cases.CASES)
def test_training_does_not_see_a_shift(data, name):
    """Weights, losses, and machines: those of targets about zero, with a constant."""
    x, y = data
    found = []
    for targets, intercept in ((y, "auto"), (y - SHIFT, True)):
        loss = kk.losses.get(name)
        loss.ridge, loss.relative = 0.3, True
        model = kk.KAREModel(network(), kk.NTKRidgeHead(intercept=intercept))
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["mse"])
        history = model.fit(
            x, targets, epochs=3, validation_split=0.25, shuffle=False, verbose=0
        )
        found.append((history.history, model.get_weights(), model.predict(x) - targets))
    for key in found[0][0]:
        close(found[0][0][key], found[1][0][key], 1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        close(a, b, 1e-6)
    close(found[0][2], found[1][2], 1e-6)


def test_loss_of_fit_is_kare_with_a_constant(data):
    x, y = data
    model = kk.KAREModel(network(), kk.NTKRidgeHead(ridge=1.0))
    gram = model.kernel.gram(x).numpy()
    model.compile(keras.optimizers.SGD(0.0), kk.losses.KARE(RIDGE))
    history = model.fit(x, y, epochs=1, sample_weight=COUNTS, verbose=0)
    close(history.history["loss"][0], Bordered(gram, y, RIDGE, COUNTS).kare, 1e-6)
    # the same step, traced anew for targets without one
    history = model.fit(x, y - SHIFT, epochs=1, verbose=0)
    close(history.history["loss"][0], kk.risk.kare(y - SHIFT, gram, RIDGE), 1e-6)


def test_rehearsal_and_single_batches_have_the_constant(data):
    x, y = data
    model = kk.KAREModel(network())
    model.compile(keras.optimizers.SGD(0.1), kk.losses.KARE(0.3, relative=True))
    model.fit(x, y, epochs=2, verbose=0)
    assert "rehearsal" in model.head.report["chosen_by"]
    assert np.sqrt(np.mean((model.predict(x) - y) ** 2)) < 2.0
    fresh = kk.KAREModel(network())
    fresh.compile(keras.optimizers.SGD(0.0), kk.losses.KARE(RIDGE))
    expected = Bordered(fresh.kernel.gram(x).numpy(), y, RIDGE).kare
    close(fresh.train_on_batch(x, y), expected, 1e-6)


def test_a_dataset_that_is_streamed_decides_too(data):
    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    head = kk.NTKRidgeHead(ridge=RIDGE, relative=False, solver="primal")
    model = kk.KAREModel(network(), head)
    model.compile(keras.optimizers.SGD(0.0), kk.losses.KARE(0.3))
    model.fit(dataset, epochs=1, verbose=0)
    gram = model.kernel.gram(x).numpy()
    close(model.predict(x), Bordered(gram, y, RIDGE).predict(gram), 1e-8)


def test_targets_far_from_zero_cost_nothing_in_float32():
    """Diabetes, as it is and with 1e5 added: without a word of the user."""
    x, y = load_diabetes(return_X_y=True)
    x = (x / np.std(x, axis=0)).astype("float32")
    train, test = slice(0, 200), slice(200, 400)
    found = {}
    for shift, intercept in ((0.0, True), (1e5, "auto"), (1e5, False)):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((10,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
        model = kk.KAREModel(keras.Sequential(layers), kk.NTKRidgeHead(intercept=intercept))
        model.compile(keras.optimizers.SGD(1e-6), kk.losses.KARE(1.0, relative=True))
        targets = (y + shift).astype("float32")
        history = model.fit(x[train], targets[train], epochs=3, verbose=0)
        left = model.predict(x[test], verbose=0)[:, 0].astype("float64") - targets[test]
        found[shift, intercept] = np.sqrt(np.mean(left**2)), history.history["loss"][-1]
    close(found[1e5, "auto"], found[0.0, True], 2e-3)
    assert found[1e5, False][0] > 2.0 * found[1e5, "auto"][0]


NORMAL = np.random.default_rng(0).normal(size=(200, 1))
CASES = {
    "about zero": (NORMAL, None, False),
    "sines": (np.sin(NORMAL), None, False),
    "classes": (np.sign(NORMAL + 3.0), None, False),
    "one class": (np.ones((9, 1)), None, False),
    "zeros": (np.zeros((9, 1)), None, False),
    "shifted": (NORMAL + 4.0, None, True),
    "far below": (1e-3 * NORMAL - 1.0, None, True),
    "one column": (np.concatenate([NORMAL, NORMAL + 9.0], axis=1), None, True),
    "constant": (np.full((9, 1), 0.1), None, True),
    "counted": (np.array([[5.0], [5.1], [-9.0]]), np.array([1.0, 1.0, 0.0]), True),
    "uncounted": (np.array([[5.0], [5.1], [-9.0]]), None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_far_is_far_beside_the_spread(case):
    y, weights, far = CASES[case]
    whole = decide("auto", [(y, weights)])
    assert whole.present is far
    parts = [
        (y[i : i + 2], None if weights is None else weights[i : i + 2])
        for i in range(0, len(y), 2)
    ]
    assert decide("auto", parts).present is far
    for unit in (1e-200, 1e200):
        if case not in ("classes", "one class"):
            assert decide("auto", [(unit * y, weights)]).present is far
    assert decide(False, iter(())).present is False
    assert decide(True, iter(())).by == "the user"


@keras.saving.register_keras_serializable(package="tests")
class Plain(kk.losses.GramLoss):
    """A user's loss that was written before there were intercepts."""

    def evaluate(self, y_true, gram):
        return tf.reduce_mean(gram**2), y_true


def test_a_loss_without_intercepts(data):
    x, y = data
    model = kk.KAREModel(network(), kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(0.0), Plain())
    model.fit(x, y - SHIFT, verbose=0)
    with pytest.raises(ValueError, match=r"`evaluate` an argument `intercept=False`"):
        model.fit(x, y, verbose=0)
    model.head.intercept = True
    with pytest.raises(ValueError, match="Plain"):
        model.fit(x, y - SHIFT, verbose=0)


def test_bad_arguments_are_named(data, kernel):
    x, y = data
    for bad in ("yes", None, 1.0):
        with pytest.raises(ValueError, match="`intercept` must be True, False"):
            kk.NTKRidgeHead(intercept=bad)
    system = kk.solvers.System(kernel.operator(x), y)
    with pytest.raises(ValueError, match="must be said to the `System`"):
        kk.stochastic.kare(system, None, 0.1, intercept=True)
    head = kk.NTKRidgeHead(intercept=False)
    assert kk.NTKRidgeHead.from_config(head.get_config()).intercept is False


def test_diagnostics_are_of_the_machine_with_its_constant(data):
    x, y = data
    model = kk.KAREModel(network(), kk.NTKRidgeHead(ridge=1.0))
    gram = model.kernel.gram(x).numpy()
    model.compile(keras.optimizers.SGD(0.0), kk.losses.KARE(RIDGE))
    callback = kk.callbacks.KernelDiagnostics(eigenvalues=1)
    logs = model.fit(x, y, epochs=1, callbacks=[callback], verbose=0).history
    expected = Bordered(gram, y, RIDGE)
    close(logs["leave_one_out"][0], expected.leave_one_out_mse, 1e-8)
    close(logs["effective_dimension"][0], expected.freedom, 1e-8)
    close(logs["eigenvalue_1"][0], np.linalg.eigvalsh(gram)[-1] / ROWS)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("solver", ["spectral", "primal", "cg"])
def test_the_ridge_does_not_depend_on_units(data, rng, solver, intercept):
    """A target and a large one of noise: as if both had a mean square of one."""
    x, y = data
    y = np.stack([y[:, 1] - SHIFT[1], rng.normal(size=ROWS)], axis=1)
    validation = x[::-1] + 0.1, y[::-1]
    chosen = []
    for scale in (np.array([1.0, 1.0]), np.array([1.0, 1e4]), np.array([1e-5, 1.0])):
        for held in (None, (validation[0], validation[1] * scale)):
            head = kk.NTKRidgeHead(solver=solver, intercept=intercept)
            model = kk.KAREModel(network(4), head)
            model.fit_head(x, y * scale, validation_data=held)
            chosen.append(model.head.report["relative_ridge"])
    assert np.ptp(np.log(chosen[::2])) < 1e-9
    assert np.ptp(np.log(chosen[1::2])) < 1e-9


def test_a_target_of_zeros_has_no_say(data):
    x, y = data
    y = y[:, :1] - SHIFT[0]
    alone, beside = (
        solved((x, targets)) for targets in (y, np.concatenate([y, 0.0 * y], axis=1))
    )
    ridge = alone.head.report["relative_ridge"]
    assert beside.head.report["relative_ridge"] == pytest.approx(ridge)
    mse = alone.head.report["leave_one_out_mse"]
    assert beside.head.report["leave_one_out_mse"] == pytest.approx(0.5 * mse)
    constant = np.concatenate([y, 0.0 * y + 0.1], axis=1)
    with_constant = solved((x, constant), intercept=True).head.report["relative_ridge"]
    expected = solved((x, y), intercept=True).head.report["relative_ridge"]
    assert with_constant == pytest.approx(expected)


def test_classes_choose_by_plain_errors(data):
    """Targets of -1 and 1, one a class: a mean square of one each."""
    x = data[0]
    y = np.where(np.argmax(x, axis=1)[:, None] == np.arange(3), 1.0, -1.0)
    model = solved((x, y))
    system = kk.solvers.System(model.kernel.operator(x), y)
    path = kk.solvers.Spectral().prepare(system)
    ridges = np.logspace(-8, 4, 49)
    errors = [s.leave_one_out_mse for s in path.solve_grid(ridges * path.unit)]
    assert model.head.report["relative_ridge"] == pytest.approx(ridges[np.argmin(errors)])
