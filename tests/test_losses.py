"""What every loss of a Gram matrix has; the losses are listed in `loss_cases.py`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_cases import CASES, over_losses

import keras_kare as kk
from keras_kare import losses

COUNTS = np.array([1.0, 2.0, 3.0, 1.0, 1.0, 2.0, 0.0, 1.0, 4.0])
SHARES = np.array([0.5, 2.0, 1.5, 1.0, 3.0, 0.2, 0.0, 1.0, 4.0])
BOTH = [False, True]


def close(a, b, tolerance=1e-9):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


def system(rng, rows=9, rank=4):
    b = rng.normal(size=(rows, rank))
    return rng.normal(size=(rows, 2)), b @ b.T


def evaluated(loss, y, gram, weights=None, intercept=False):
    """The loss and predictions; what is not there is not passed, as in training."""
    given = {} if weights is None else {"sample_weight": weights}
    given |= {"intercept": True} if intercept else {}
    return loss.evaluate(tf.constant(y), tf.constant(gram), **given)


def slope_of(value, array, direction, step=1e-5):
    return (value(array + step * direction) - value(array - step * direction)) / (2 * step)


def test_every_loss_is_in_the_list():
    assert set(CASES) == set(losses.OWN)
    for name, case in CASES.items():
        assert losses.OWN[name] is case.kind


@over_losses(relative=BOTH, weighted=BOTH, intercept=BOTH, rows=[8, 9])
def test_gradients_are_those_of_differences(rng, case, relative, weighted, intercept, rows):
    """By targets and Gram matrix, in float64, for even and odd numbers of rows."""
    loss, arrays = case.kind(ridge=0.2, relative=relative), system(rng, rows)
    weights = SHARES[:rows] if weighted else None

    def value(y, gram):
        return evaluated(loss, y, gram, weights, intercept)[0]

    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = value(*tensors)
    by_y, by_gram = tape.gradient(found, tensors)
    y, gram = arrays
    way = rng.normal(size=y.shape)
    close(np.sum(by_y * way), slope_of(lambda y: value(y, gram), y, way), 1e-6)
    way = rng.normal(size=gram.shape)
    way = way + way.T
    close(np.sum(by_gram * way), slope_of(lambda gram: value(y, gram), gram, way), 1e-6)


@over_losses(relative=BOTH, intercept=BOTH)
@pytest.mark.usefixtures("float64")
def test_gradients_by_weights_of_the_network(rng, case, relative, intercept):
    """By whatever road training takes them: from the Gram matrix, or from the loss."""
    loss, kernel = case.kind(ridge=0.2, relative=relative), kk.kernels.NTK(network(3))
    x, y = rows(rng)

    def found():
        if loss.supplies_gradients:
            return loss.value_and_gradients(kernel, x, y, 0, intercept=intercept)[:2]
        variables = [v.value for v in kernel.trainable_variables]
        with tf.GradientTape() as tape:
            value, _ = evaluated(loss, y, kernel.gram(x), intercept=intercept)
        return value, tape.gradient(value, variables, unconnected_gradients="zero")

    def value(array):
        variable.assign(array)
        return float(found()[0])

    value_here, gradients = found()
    close(value_here, evaluated(loss, y, kernel.gram(x), intercept=intercept)[0])
    variable = kernel.trainable_variables[0]
    way, start = rng.normal(size=variable.shape), variable.numpy()
    close(np.sum(gradients[0] * way), slope_of(value, start, way), 1e-6)


@over_losses(relative=BOTH, weighted=BOTH, intercept=BOTH)
def test_the_scale_of_targets_goes_through(rng, case, relative, weighted, intercept):
    """The loss is in units of `y²`, predictions are in those of `y`."""
    loss, (y, gram) = case.kind(ridge=0.2, relative=relative), system(rng)
    weights = SHARES if weighted else None
    value, predictions = evaluated(loss, y, gram, weights, intercept)
    scaled, again = evaluated(loss, -7.0 * y, gram, weights, intercept)
    assert value > 0.0
    close(scaled, 49.0 * value)
    close(again, -7.0 * predictions)


@over_losses(weighted=BOTH, intercept=BOTH)
def test_a_relative_ridge_goes_with_the_scale_of_the_kernel(rng, case, weighted, intercept):
    loss, (y, gram) = case.kind(ridge=2.0, relative=True), system(rng)
    weights = SHARES if weighted else None
    value, predictions = evaluated(loss, y, gram, weights, intercept)
    scaled, again = evaluated(loss, y, 7.0 * gram, weights, intercept)
    close(scaled, value)
    close(again, predictions)


@over_losses(relative=BOTH, weighted=[True], intercept=BOTH)
def test_weights_are_repeated_rows(rng, case, relative, weighted, intercept):
    loss, (y, gram) = case.kind(ridge=0.2, relative=relative), system(rng)
    repeated = np.repeat(np.arange(len(y)), COUNTS.astype(int))
    copies = evaluated(loss, y[repeated], gram[np.ix_(repeated, repeated)], None, intercept)
    close(evaluated(loss, y, gram, COUNTS, intercept)[0], copies[0])
    ones = evaluated(loss, y, gram, np.ones(len(y)), intercept)
    for one, other in zip(ones, evaluated(loss, y, gram, None, intercept), strict=True):
        close(one, other)


@over_losses()
@pytest.mark.usefixtures("float64")
def test_weights_are_refused_where_there_are_none(rng, case):
    loss = case.kind()
    if not case.weights:
        with pytest.raises(ValueError, match=r"no weights of rows.*sample_weight"):
            evaluated(loss, *system(rng), COUNTS)
    if not case.trains_weighted:
        (x, y), model = rows(rng), compiled(loss)
        with pytest.raises(ValueError, match=r"no weights of rows.*sample_weight"):
            model.fit(x, y, sample_weight=np.ones(len(y)), verbose=0)


@over_losses(weighted=BOTH)
def test_an_intercept_takes_a_shift(rng, case, weighted):
    loss, (y, gram) = case.kind(ridge=0.2), system(rng)
    loss.check_intercept()
    weights, shift = SHARES if weighted else None, np.array([7.0, -1000.0])
    value, predictions = evaluated(loss, y, gram, weights, intercept=True)
    shifted, again = evaluated(loss, y + shift, gram, weights, intercept=True)
    close(shifted, value)
    close(again[SHARES > 0] - shift, predictions[SHARES > 0], 1e-8)
    assert evaluated(loss, y + shift, gram, weights)[0] > 10.0 * value


@over_losses()
def test_wrong_targets_and_matrices_are_named(rng, case):
    loss, (y, gram) = case.kind(), system(rng)
    for bad, message in (
        (y[:-1], "`y` must have one row for each row of `gram`"),
        (y[:, :0], "`y` has no columns"),
        (np.full_like(y, np.nan), "`y` holds NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluated(loss, bad, gram)
    for bad, message in (
        (gram[:, :-1], "`gram` must be a square matrix"),
        (gram + np.triu(np.ones_like(gram), 1), "`gram` must be symmetric"),
        (np.full_like(gram, np.inf), "`gram` holds NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluated(loss, y, bad)
    few = case.fewest - 1
    with pytest.raises(ValueError, match=r"at least (two|four) rows"):
        evaluated(loss, y[:few], gram[:few, :few])
    assert np.isfinite(evaluated(loss, y[: few + 1], gram[: few + 1, : few + 1])[0])
    for ridge in (0.0, -1.0, np.nan, "auto"):
        with pytest.raises(ValueError, match="`ridge` must be a positive finite number"):
            case.kind(ridge=ridge)


def network(width=8):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(width, "tanh"), keras.layers.Dense(1)]
    )


def rows(rng, n=40):
    x = rng.normal(size=(n, 3))
    return x, np.sin(2.0 * x[:, :1])


def compiled(loss):
    model = kk.KAREModel(network(6), head=kk.NTKRidgeHead(ridge=1.0, relative=True))
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["mse"])
    return model


@over_losses()
def test_training_lowers_it_and_it_is_saved(rng, case, tmp_path):
    """Its first step, too; and a loaded model is compiled with the same loss."""
    x, y = (part.astype("float32") for part in rows(rng))
    loss = case.kind(ridge=0.02, relative=True, name="mine", **dict(case.given))
    model = compiled(loss)
    values = model.fit(x, y, epochs=15, shuffle=False, verbose=0).history["loss"]
    assert values[1] < values[0]
    assert np.mean(values[-3:]) < np.mean(values[:3])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is case.kind
    close(loaded.predict(x), model.predict(x), 1e-5)
    expected = {"name": "mine", "ridge": 0.02, "relative": True, **dict(case.given)}
    assert loaded.loss.get_config() == expected
    first, second = (
        m.fit(x, y, epochs=1, shuffle=False, verbose=0).history["loss"][0]
        for m in (model, loaded)
    )
    close(first, second, 1e-5)


@over_losses()
def test_names_and_configurations_resolve(case):
    loss = case.kind()
    assert type(losses.get(loss.name.upper())) is case.kind
    assert type(losses.get(case.kind)) is case.kind
    assert losses.get(loss) is loss
    given = case.kind(ridge=0.7, relative=True, name="mine", **dict(case.given))
    again = losses.get(keras.saving.serialize_keras_object(given))
    assert type(again) is case.kind
    assert again.get_config() == given.get_config() != loss.get_config()
    name = keras.saving.get_registered_name(case.kind)
    assert name == f"keras_kare>{case.kind.__name__}"
    assert keras.saving.get_registered_object(name) is case.kind


def test_a_relative_ridge_of_no_size_is_not_the_users(rng):
    """A kernel whose values vanish in float32, as these rows' products do."""
    model = kk.KAREModel(kk.kernels.Polynomial(1, 1.0, 0.0))
    model.compile(loss=kk.losses.KARE(ridge=0.1, relative=True))
    message = "Kernel values of rows with themselves must be finite, and not all zero"
    x = (1e-30 * rng.normal(size=(8, 3))).astype("float32")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        model.fit(x, rng.normal(size=8), batch_size=8, verbose=0)
    with pytest.raises(ValueError, match=message):
        kk.losses.KARE(relative=True)(rng.normal(size=(4, 1)), np.zeros((4, 4)))
