"""Forms in which users have their rows: taken as what they are, or one sentence."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

import keras_kare as kk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, networks.D)).astype("float32")
Y = np.sin(X[:, :1])
FRAME = pandas.DataFrame(X)


def solved(network=None):
    model = kk.KAREModel(network or networks.mlp(), head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(1e-3), "kare")
    return model.fit_head(X, Y)


class OfTorch:
    """What a tensor of PyTorch is asked for."""

    shape = X.shape

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return X


def one_input():
    x = keras.Input((networks.D,), name="rows")
    return keras.Model(x, layers.Dense(1)(layers.Dense(3, "tanh")(x)))


INPUTS = {
    "a list of lists": X.tolist(),
    "a tuple of tuples": tuple(map(tuple, X.tolist())),
    "a list of rows": list(X),
    "a list of tensors": [tf.constant(row) for row in X],
    "the input in a list": [X],
    "the input in a tuple": (X,),
    "the input by its name": {"rows": X},
    "a frame in a list": [FRAME],
    "a frame of objects": FRAME.astype(object),
    "a frame that knows missing values": FRAME.astype("Float32"),
    "objects": X.astype(object),
    "a variable": tf.Variable(X),
    "a variable of Keras": keras.Variable(X),
    "no mask": np.ma.masked_array(X),
    "of PyTorch": OfTorch(),
}


@pytest.fixture(scope="module")
def model():
    return solved(one_input())


@pytest.mark.filterwarnings("error:The structure of `inputs`")
@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_one_array(model, case):
    x, predicted = INPUTS[case], model.predict(X, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), predicted)
    np.testing.assert_array_equal(model.predict_on_batch(x), predicted)
    assert model.evaluate(x, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    assert model.test_on_batch(x, Y) == pytest.approx(model.test_on_batch(X, Y))
    for verb in (model.variance, model.kernel.gram, model.kernel.diag):
        np.testing.assert_array_equal(verb(x), verb(X))
    np.testing.assert_array_equal(model.kernel.cross(X, x), model.kernel.cross(X, X))


@pytest.mark.parametrize("case", ["a list of lists", "a frame of objects", "a variable"])
def test_they_train_as_that_array(case):
    x, losses = INPUTS[case], []
    for given in (x, X):
        keras.utils.set_random_seed(0)
        model = solved(one_input()).fit_head(given, Y, validation_data=(given, Y))
        history = model.fit(given, Y, validation_data=(given, Y), verbose=0).history
        last = model.train_on_batch(given, Y)
        losses.append(np.ravel([*history["loss"], *history["val_loss"], last]))
    np.testing.assert_array_equal(*losses)


REFUSED = {
    "ragged": (tf.RaggedTensor.from_tensor(X), r"must be dense: pass `x.to_tensor\(\)`"),
    "sparse": (tf.sparse.from_dense(X), "must be dense: pass `tf.sparse.to_dense"),
    "of SciPy": (scipy.sparse.csr_array(X), r"must be dense: pass `x.toarray\(\)`"),
    "masked": (np.ma.masked_array(X, X > 0), "holds masked entries"),
    "missing": (FRAME.astype("Float32").replace(X[0, 0], pandas.NA), "holds NaN"),
    "uneven": ([[1.0, 2.0], [3.0]], "must have rows of one shape"),
    "text among numbers": (FRAME.assign(text="a"), "must hold numbers"),
    "a dictionary of columns": (dict(FRAME.T.T.items()), "names of the network's inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_are_not(model, case):
    x, says = REFUSED[case]
    for verb in (
        lambda: model.fit(x, Y, verbose=0),
        lambda: model.fit_head(x, Y),
        lambda: model.predict(x, verbose=0),
        lambda: model.predict_on_batch(x),
        lambda: model.evaluate(x, Y, verbose=0),
        lambda: model.test_on_batch(x, Y),
        lambda: model.train_on_batch(x, Y),
        lambda: model.variance(x),
        lambda: model.kernel.gram(x),
        lambda: model.kernel.diag(x),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            verb()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=says.replace("`x", "`x2")):
        model.kernel.cross(X, x)


def test_lists_of_several_inputs():
    network = networks.two_inputs()
    x = [RNG.normal(size=(12, *t.shape[1:])).astype("float32") for t in network.inputs]
    kernel = kk.kernels.NTK(network)
    lists = [part.tolist() for part in x]
    np.testing.assert_array_equal(kernel.gram(lists), kernel.gram(x))


TARGETS = {
    "in a list": [Y],
    "by name": {"dense": Y},
    "a list of rows": list(Y),
    "a list of lists": Y.tolist(),
    "a frame": pandas.DataFrame(Y),
    "a frame that knows missing values": pandas.DataFrame(Y).astype("Float32"),
    "a series": pandas.Series(Y[:, 0]),
    "a variable": tf.Variable(Y),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_are_one_array(model, case):
    expected = model.evaluate(X, Y, verbose=0)
    assert model.evaluate(X, TARGETS[case], verbose=0) == expected
    model.fit_head(X, TARGETS[case])
    np.testing.assert_array_equal(model.head.targets, Y)


@pytest.mark.parametrize(
    "y", [[Y, Y], (Y, Y), {"a": Y, "b": Y}], ids=["list", "tuple", "dict"]
)
def test_targets_of_several_outputs(model, y):
    batches = tf.data.Dataset.from_tensor_slices((X, tuple(y) if type(y) is list else y))
    for verb in (
        lambda: model.fit(X, y, verbose=0),
        lambda: model.fit_head(X, y),
        lambda: model.evaluate(X, y, verbose=0),
        lambda: model.fit_head(X, Y, validation_data=(X, y)),
        lambda: model.fit_head(batches.batch(4)),
    ):
        with pytest.raises(ValueError, match="side by side as columns"):
            verb()


class TestGenerators:
    def test_predictions(self, model):
        expected = model.predict(X, verbose=0)
        for batches in (
            ((X[i : i + 5],) for i in (0, 5, 10)),
            (X[i : i + 5] for i in (0, 5, 10)),
            ((X[i : i + 5], Y[i : i + 5]) for i in (0, 5, 10)),
        ):
            found = model.predict(batches, steps=3, verbose=0)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        endless = (X[:4] for _ in iter(int, 1))
        assert model.predict(endless, steps=2, verbose=0).shape == (8, 1)

    def test_evaluation(self, model):
        weights = np.arange(12.0, dtype="float32")
        for parts in ((X, Y), (X, Y, weights)):
            batches = (tuple(p[i : i + 6] for p in parts) for i in (0, 6))
            kept = {"sample_weight": parts[2]} if len(parts) > 2 else {}
            expected = model.evaluate(X, Y, verbose=0, **kept)
            found = model.evaluate(batches, steps=2, verbose=0)
            assert found == pytest.approx(expected, rel=1e-4)

    def test_what_is_refused(self, model):
        with pytest.raises(ValueError, match=r"must yield \(x, y\) batches"):
            model.evaluate(iter([X]), verbose=0)
        with pytest.raises(ValueError, match="`y` must not be given"):
            model.evaluate(iter([X]), Y, verbose=0)
        with pytest.raises(ValueError, match="does not fit the network"):
            model.predict(iter(X), verbose=0)
        for bad in (1, 3):  # Keras looks at the first two batches itself
            batches = [X, X, X, X]
            batches[bad] = X * np.nan
            with pytest.raises(
                (ValueError, tf.errors.InvalidArgumentError), match="holds NaN"
            ) as caught:
                model.predict(iter(batches), verbose=0)
            assert "\n" not in str(caught.value)
        for verb in (model.predict_on_batch, model.variance, model.kernel.gram):
            with pytest.raises(ValueError, match="must be arrays here"):
                verb(iter([X]))


IMAGES = RNG.normal(size=(20, 6, 5)).astype("float32")


def of_images():
    return keras.Sequential(
        [keras.Input(IMAGES.shape[1:]), layers.Flatten(), layers.Dense(1)]
    )


class SingleRows(keras.utils.PyDataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index], IMAGES[index, 0, :1]


class TestDatasetsOfSingleRows:
    def test_of_images(self):
        model, y = solved_on_images(), IMAGES[:, 0, :1]
        rows = tf.data.Dataset.from_tensor_slices((IMAGES, y))
        for verb in (
            lambda: model.fit(rows, verbose=0),
            lambda: model.fit_head(rows),
            lambda: model.fit_head(SingleRows()),
            lambda: model.evaluate(rows, verbose=0),
            lambda: model.predict(rows, verbose=0),
            lambda: model.predict(rows.map(lambda x, y: x), verbose=0),
            lambda: model.fit(IMAGES, y, validation_data=rows, verbose=0),
        ):
            with pytest.raises(ValueError, match=r"yields single rows.*batch\("):
                verb()
        model.fit_head(rows.batch(5))

    def test_batches_without_targets_or_of_another_shape(self):
        model = solved_on_images()
        batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(5)
        with pytest.raises(ValueError, match=r"must yield \(x, y\) batches"):
            model.evaluate(batches, verbose=0)
        with pytest.raises(ValueError, match="`x` does not fit the network"):
            model.predict(batches.map(lambda x: x[:, :3]), verbose=0)


def solved_on_images():
    model = kk.KAREModel(of_images(), head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(1e-3), "kare")
    return model.fit_head(IMAGES, IMAGES[:, 0, :1])


def test_weights_that_count_for_no_more_than_a_row(model):
    for weights in (np.full(12, 1 / 12), np.full(12, 0.01)):
        for verb in (model.fit, model.train_on_batch):
            with pytest.raises(ValueError, match="must sum to more than one row"):
                verb(X, Y, sample_weight=weights)
        model.evaluate(X, Y, sample_weight=weights, verbose=0)  # a mean of any scale
