"""Rows that count several times: the same as repeating them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk

ROWS, COUNTS = 9, np.array([1, 2, 3, 1, 1, 2, 0, 1, 4])
REPEATED = np.repeat(np.arange(ROWS), COUNTS)


@pytest.fixture
def data(rng, float64):
    x = rng.normal(size=(ROWS, 3))
    return x, np.stack([np.sin(x[:, 0]), x[:, 1] ** 2], axis=1)


@pytest.fixture
def gram(data):
    x, _ = data
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1)) + x @ x.T


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), tolerance, tolerance)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_kare_is_that_of_repeated_rows(data, gram, ridge):
    y = data[1]
    weighted = kk.risk.kare(y, gram, ridge, sample_weight=COUNTS)
    repeated = kk.risk.kare(y[REPEATED], gram[np.ix_(REPEATED, REPEATED)], ridge)
    close(weighted, repeated)


def test_ones_change_nothing(data, gram):
    y = data[1]
    ones = np.ones(ROWS)
    close(kk.risk.kare(y, gram, 0.1, ones), kk.risk.kare(y, gram, 0.1), 1e-13)
    close(kk.risk.leave_one_out(y, gram, 0.1, ones), kk.risk.leave_one_out(y, gram, 0.1))


def test_the_gradient_of_weighted_kare_by_the_ridge(data, gram):
    y = data[1]
    weights = np.array([0.5, 2.0, 1.5, 1.0, 3.0, 0.2, 0.0, 1.0, 4.0])
    with tf.GradientTape() as tape:
        ridge = tf.constant(0.2, tf.float64)
        tape.watch(ridge)
        result = kk.risk.kare(y, gram, ridge, weights)
    difference = kk.risk.kare(y, gram, 0.2 + 1e-5, weights) - kk.risk.kare(
        y, gram, 0.2 - 1e-5, weights
    )
    close(tape.gradient(result, ridge), difference / 2e-5, 1e-6)


@pytest.mark.parametrize("risk", [kk.risk.kare, kk.risk.leave_one_out])
def test_nothing_is_differentiated_by_weights(data, gram, risk):
    """In graphs a part of the gradient came back for all of it."""
    y = data[1]

    @tf.function
    def by_weights(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = tf.reduce_sum(risk(y, gram, 0.1, sample_weight=weights) ** 2)
        return tape.gradient(value, weights, unconnected_gradients="zero")

    weights = tf.linspace(tf.constant(0.5, gram.dtype), 2.0, len(y))
    assert not np.any(by_weights(weights))


def test_leave_one_out_leaves_all_copies_out(data, gram):
    """Against machines solved without each row; the ridge `N z` is held fixed."""
    y, ridge = data[1], 0.1
    predictions = kk.risk.leave_one_out(y, gram, ridge, sample_weight=COUNTS)
    for row in range(ROWS):
        others = REPEATED[row != REPEATED]
        system = gram[np.ix_(others, others)] + COUNTS.sum() * ridge * np.eye(len(others))
        expected = gram[row, others] @ np.linalg.solve(system, y[others])
        close(predictions[row], expected, 1e-6)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_head_is_that_of_repeated_rows(data, form):
    x, y = data
    heads = {}
    for name in ("weighted", "repeated"):
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=0.3, form=form))
        if name == "weighted":
            model.fit_head(x, y, sample_weight=COUNTS)
        else:
            model.fit_head(x[REPEATED], y[REPEATED])
        heads[name] = model.predict(x), model.head.report
    close(heads["weighted"][0], heads["repeated"][0], 1e-8)
    for name in ("ridge_value", "kare", "effective_dimension"):
        close(heads["weighted"][1][name], heads["repeated"][1][name], 1e-8)


def test_fit_is_that_of_repeated_rows(data):
    """Training, validation error and the chosen ridge."""
    x, y = data
    validation = x[::-1] + 0.1, y[::-1]
    results = []
    for weighted in (True, False):
        model = kk.KAREModel(network())
        model.compile(keras.optimizers.SGD(0.1), kk.losses.KARE(0.1, relative=True))
        if weighted:
            arguments = {
                "x": x,
                "y": y,
                "sample_weight": COUNTS.astype(float),
                "validation_data": (*validation, COUNTS.astype(float)),
            }
        else:
            arguments = {
                "x": x[REPEATED],
                "y": y[REPEATED],
                "validation_data": tuple(part[REPEATED] for part in validation),
            }
        history = model.fit(**arguments, epochs=4, verbose=0)
        results.append((history.history, model.get_weights(), model.head.report))
    (losses, weights, report), (losses2, weights2, report2) = results
    for name in ("loss", "val_loss"):
        close(losses[name], losses2[name], 1e-7)
    for a, b in zip(weights, weights2, strict=True):
        close(a, b, 1e-7)
    assert report["relative_ridge"] == pytest.approx(report2["relative_ridge"])


SCALED = {
    "median": kk.kernels.Gaussian,
    "columns": lambda: kk.kernels.On(kk.kernels.Laplace(metric="diagonal"), [0, 2]),
    "several": lambda: kk.kernels.Gaussian() + 0.5 * kk.kernels.Matern(metric="full"),
}


def machine(name):
    model = kk.KAREModel(SCALED[name](), kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(0.1))
    return model


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("method", ["fit_head", "fit"])
def test_scales_are_those_of_repeated_rows(data, name, method):
    x, y = data
    x = x.copy()
    x[6] *= 100.0  # counts for nothing
    options = {} if method == "fit_head" else {"epochs": 2, "verbose": 0}
    weighted, repeated = machine(name), machine(name)
    getattr(weighted, method)(x, y, sample_weight=COUNTS, **options)
    getattr(repeated, method)(x[REPEATED], y[REPEATED], **options)
    for one, other in zip(weighted.kernel.weights, repeated.kernel.weights, strict=True):
        close(one, other, 1e-8)
    new = x[COUNTS > 0] + 0.1
    close(weighted.predict(new, verbose=0), repeated.predict(new, verbose=0), 1e-7)


@pytest.mark.parametrize("solver", ["auto", "nystrom"])
def test_scales_of_datasets_are_those_of_rows_that_count(data, solver):
    x, y = data[0].copy(), data[1]
    x[:3] *= 100.0
    weights = np.array([0.0, 0.0, 0.0, 2.0, 1.0, 1.0, 3.0, 1.0, 1.0])
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(3)
    scales = []
    for rows in (dataset, dataset.skip(1)):
        head = kk.NTKRidgeHead(ridge=0.1, solver=solver)
        model = kk.KAREModel(kk.kernels.Gaussian(), head).fit_head(rows)
        scales.append(model.kernel.log_scale)
    close(*scales)


def test_a_dataset_brings_its_weights(data):
    x, y = data
    weights = COUNTS + 0.5
    losses = []
    for as_dataset in (True, False):
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1.0))
        model.compile(keras.optimizers.SGD(0.1))
        if as_dataset:
            dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(ROWS)
            history = model.fit(dataset, epochs=2, verbose=0)
        else:
            history = model.fit(x, y, sample_weight=weights, epochs=2, verbose=0)
        losses.append((history.history["loss"], model.predict(x)))
    close(losses[0][0], losses[1][0])
    close(losses[0][1], losses[1][1])


def test_class_weight_is_the_weight_of_the_class(data):
    x = data[0]
    y = np.where(x[:, :1] > 0, 1.0, -1.0)
    models = []
    for arguments in (
        {"class_weight": {0: 1.0, 1: 2.5}},
        {"class_weight": {1: 2.5}},
        {"sample_weight": np.where(y[:, 0] > 0, 2.5, 1.0)},
    ):
        model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1.0))
        model.compile(keras.optimizers.SGD(0.1), weighted_metrics=["accuracy"])
        history = model.fit(x, y, epochs=2, verbose=0, **arguments)
        models.append((history.history, model.predict(x)))
    assert "accuracy" in "".join(models[0][0])
    for history, predictions in models[1:]:
        assert models[0][0] == history
        close(models[0][1], predictions)


def test_evaluate_weighs_rows(data):
    x, y = data
    model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1.0))
    model.fit_head(x, y)
    squared = np.mean((model.predict(x) - y) ** 2, axis=1)
    expected = np.average(squared, weights=COUNTS)
    weights = COUNTS.astype(float)
    close(model.evaluate(x, y, sample_weight=weights, verbose=0), expected, 1e-6)
    close(model.test_on_batch(x, y, sample_weight=weights), expected, 1e-6)


def test_a_stale_head_is_solved_again_with_its_weights(data, tmp_path):
    x, y = data
    model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1.0))
    model.fit_head(x, y, sample_weight=COUNTS)
    model.save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    model.network.layers[0].kernel.assign(0.5 * model.network.layers[0].kernel)
    stale = model.predict(x)
    model.fit_head(x, y, sample_weight=COUNTS)
    close(stale, model.predict(x), 1e-7)


BAD = {
    "negative": ({"sample_weight": -np.ones(ROWS)}, "must not be negative"),
    "short": ({"sample_weight": np.ones(3)}, "one number a row"),
    "nan": ({"sample_weight": np.full(ROWS, np.nan)}, "NaN or Inf"),
    "one row": ({"sample_weight": np.eye(ROWS)[0]}, "at least two rows"),
    "text": ({"sample_weight": np.full(ROWS, "a")}, "one number a row"),
    "no class": ({"class_weight": {0: 1.0, 2: 3.0}}, "must name classes.* for 2, and"),
    "no dict": ({"class_weight": [1.0, 2.0]}, "must be a dict"),
    "both": (
        {"class_weight": {0: 1.0, 1: 1.0}, "sample_weight": np.ones(ROWS)},
        "either",
    ),
    "nothing to validate on": (
        {"sample_weight": np.arange(ROWS) < 6, "validation_split": 0.3},
        "`validation sample_weight`",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_named(data, case):
    arguments, message = BAD[case]
    model = kk.KAREModel(network())
    model.compile(keras.optimizers.SGD(0.1))
    y = np.where(data[0][:, :1] > 0, 1.0, -1.0)
    with pytest.raises(ValueError, match=message):
        model.fit(data[0], y, verbose=0, **arguments)


def test_classes_need_targets_of_two_values(data):
    model = kk.KAREModel(network())
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="more than two values"):
        model.fit(data[0], data[1][:, 0], class_weight={0: 1.0, 1: 2.0}, verbose=0)


def test_weights_that_count_too_little(data, gram):
    """There is no KARE where rows count for less than the freedom they take."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="degrees of freedom"):
        kk.risk.kare(data[1], gram, 1e-3, sample_weight=np.full(ROWS, 0.05))
    model = kk.KAREModel(network(), head=kk.NTKRidgeHead(ridge=1e-3))
    model.fit_head(*data, sample_weight=np.full(ROWS, 0.05))
    assert model.head.report["kare"] is None
