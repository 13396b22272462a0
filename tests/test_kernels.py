"""What every kernel answers; the kernels are listed in `kernel_cases.py`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from gaussian import Gaussian
from kernel_cases import over_kernels

import keras_kare as kk
from keras_kare import _rows


@pytest.fixture
def kernel(case):
    keras.utils.set_random_seed(0)
    return case.make()


@pytest.fixture
def x(case, kernel, rng):
    """Nine rows, nested as the kernel takes them."""
    return case.rows(kernel, 9, rng)


def close(a, b, tolerance=1e-9):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


def targets(n=9):
    return np.stack([np.sin(np.arange(n)), np.cos(np.arange(n))], axis=1)


def damaged(x, value):
    """The same rows, with one entry of the last part changed."""
    parts = [np.array(part, "float64") for part in keras.tree.flatten(x)]
    parts[-1].flat[3] = value
    return keras.tree.pack_sequence_as(x, parts)


def solved(kernel, x, y, **head):
    model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1, intercept=False, **head))
    model.fit_head(x, y)
    return model


@over_kernels
@pytest.mark.usefixtures("float64")
class TestValues:
    def test_gram_is_symmetric_and_positive_semidefinite(self, kernel, x):
        gram = kernel.gram(x).numpy()
        assert gram.shape == (9, 9)
        close(gram, gram.T, 1e-14)
        values = np.linalg.eigvalsh(gram)
        assert values[0] >= -1e-12 * values[-1]
        assert values[-1] > 0.0

    def test_cross_and_diag_are_parts_of_gram(self, kernel, x):
        gram = kernel.gram(x).numpy()
        first, last = _rows.take(x, slice(0, 6)), _rows.take(x, slice(4, 9))
        close(kernel.cross(first, last), gram[:6, 4:])
        close(kernel.cross(last, first), gram[4:, :6])
        close(kernel.diag(x), np.diag(gram))
        close(kernel.gram(_rows.take(x, slice(2, 3))), gram[2:3, 2:3])

    def test_rows_do_not_see_each_other(self, kernel, x, rng):
        order = rng.permutation(9)
        gram = kernel.gram(x).numpy()
        close(kernel.gram(_rows.take(x, order)), gram[np.ix_(order, order)])

    def test_it_is_a_layer_to_call(self, kernel, x):
        first = _rows.take(x, slice(0, 4))
        np.testing.assert_allclose(kernel(x), kernel.gram(x))
        np.testing.assert_allclose(kernel(x, first), kernel.cross(x, first))

    def test_fingerprints_tell_values_apart(self, case, kernel, x):
        before, gram = kernel.fingerprint(), kernel.gram(x).numpy()
        assert kernel.fingerprint() == before
        for variable in kernel.trainable_variables[:1]:
            variable.assign(1.5 * variable)
            assert kernel.fingerprint() != before
            assert not np.allclose(kernel.gram(x), gram)


@over_kernels
class TestTypes:
    def test_float64_of_a_float32_kernel(self, kernel, x):
        x = keras.tree.map_structure(lambda part: np.asarray(part, "float32"), x)
        wide = {verb: getattr(kernel, verb) for verb in ("gram", "diag")}
        wide["cross"] = lambda x, **given: kernel.cross(x, x, **given)
        for verb in wide.values():
            found = verb(x, dtype="float64")
            assert found.dtype == "float64"
            close(found, verb(x), 1e-4)


@over_kernels
@pytest.mark.usefixtures("float64")
class TestOperator:
    def test_products_are_those_of_the_matrix(self, kernel, x, rng):
        operator, gram = kernel.operator(x), kernel.gram(x).numpy()
        v = rng.normal(size=(9, 2))
        assert operator.shape == (9, 9)
        close(operator @ v, gram @ v)
        close(operator @ v[:, 0], gram @ v[:, 0])
        close(operator.columns(np.array([3, 0])), gram[:, [3, 0]])
        close(operator.block(slice(1, 4), np.array([6, 2])), gram[1:4][:, [6, 2]])
        close(operator.diagonal, np.diag(gram))
        close(operator.dense(), gram)
        scale = rng.uniform(0.5, 2.0, size=9)
        close(operator.scaled(scale) @ v, scale[:, None] * (gram @ (scale[:, None] * v)))

    def test_features_are_those_of_the_matrix(self, kernel, x, rng):
        operator, gram = kernel.operator(x), kernel.gram(x).numpy()
        v = rng.normal(size=(9, 2))
        assert (operator.features is not None) == kernel.has_features
        if not kernel.has_features:
            for verb in (lambda: kernel.vjp(x, v), lambda: kernel.jvp(x, [])):
                with pytest.raises(NotImplementedError, match="no finite feature map"):
                    verb()
            return
        j = operator.feature_rows(slice(None))
        assert j.shape == (9, operator.features)
        close(j @ j.T, gram)
        close(operator.jvp(operator.vjp(v)), gram @ v)
        close(kernel.jvp(x, kernel.vjp(x, v)), gram @ v)
        w = rng.normal(size=(operator.features, 2))
        close(operator.jvp(kernel.weights_from(w, x)), j @ w)


@over_kernels
@pytest.mark.usefixtures("float64")
class TestMachine:
    def test_solved_predicted_saved_and_loaded(self, case, kernel, x, rng, tmp_path):
        y, new = targets(), case.rows(kernel, 4, rng)
        gram = kernel.gram(x).numpy()
        for form in ("dual", "primal" if kernel.has_features else "auto"):
            model = solved(kernel, x, y, form=form)
            ridge = model.head.ridge_value
            dual = np.linalg.solve(gram + 9 * ridge * np.eye(9), y)
            close(model.predict(x), gram @ dual, 1e-7)
            expected = kernel.cross(new, x).numpy() @ dual
            close(model.predict(new), expected, 1e-7)
            assert kernel.has_features or model.head.report["form"] == "dual"
            assert model.network is getattr(kernel, "network", None)
            model.save(tmp_path / "model.keras")
            loaded = keras.saving.load_model(tmp_path / "model.keras")
            assert type(loaded.kernel) is type(kernel)
            close(loaded.predict(new), expected, 1e-7)
            close(loaded.kernel.gram(x), gram)

    def test_training_lowers_kare_or_is_refused(self, kernel, x):
        model, y = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=1.0)), targets()
        model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(0.1, relative=True))
        if not kernel.trainable_variables:
            with pytest.raises(ValueError, match="`fit_head`"):
                model.fit(x, y, verbose=0)
            return
        values = model.fit(x, y, epochs=4, verbose=0).history["loss"]
        assert np.all(np.diff(values) < 0.0)


@over_kernels
@pytest.mark.usefixtures("float64")
class TestBadInput:
    def test_rows(self, kernel, x):
        none = _rows.take(x, slice(0))
        for bad, message in (
            (damaged(x, np.nan), "`x` holds NaN or Inf"),
            (damaged(x, np.inf), "`x` holds NaN or Inf"),
            (none, "`x` has no rows"),
            (None, "`x` is missing"),
        ):
            with pytest.raises(ValueError, match=message):
                solved(kernel, bad, targets())
        parts = keras.tree.flatten(x)
        if len(parts) > 1:
            uneven = keras.tree.pack_sequence_as(x, [parts[0][:-1], *parts[1:]])
            with pytest.raises(ValueError, match=r"`x` must have the same number of rows"):
                solved(kernel, uneven, targets())

    def test_targets(self, kernel, x):
        y = targets()
        for bad, message in (
            (y[:-1], "`y` must have one row for each row"),
            (damaged(y, np.nan), "`y` holds NaN or Inf"),
            (y[:, :0], "`y` has no columns"),
            (None, "`y` is missing"),
        ):
            with pytest.raises(ValueError, match=message):
                solved(kernel, x, bad)

    def test_vectors(self, kernel, x):
        operator = kernel.operator(x)
        for bad in (np.ones(4), np.ones((9, 1, 1)), np.full(9, np.nan)):
            with pytest.raises(ValueError, match="`v`"):
                operator @ bad

    def test_rows_at_prediction(self, kernel, x):
        model = solved(kernel, x, targets())
        with pytest.raises(ValueError, match="`x` holds NaN"):
            model.predict(damaged(x, np.nan))


@keras.saving.register_keras_serializable(package="tests")
class Scaled(Gaussian):
    """A kernel that makes its variable in `build`, as layers of Keras do."""

    def build(self, input_shape):
        self.log_scale = self.add_weight(shape=input_shape[1:], name="log_scale")
        self.built = True

    def cross(self, x1, x2, dtype=None):
        scale = tf.exp(tf.cast(self.log_scale, dtype or self.variable_dtype))
        x1, x2 = (tf.cast(x, scale.dtype) / scale for x in (x1, x2))
        return super().cross(x1, x2, dtype)


@pytest.mark.usefixtures("float64")
def test_kernels_are_built_for_the_rows(rng, tmp_path):
    x = rng.normal(size=(9, 3))
    model = kk.KAREModel(Scaled(), head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.Adam(0.1), kk.losses.KARE(0.1))
    model.fit(x, targets(), epochs=2, verbose=0)
    assert np.all(model.kernel.log_scale.numpy() != 0.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    close(loaded.predict(x), model.predict(x))
