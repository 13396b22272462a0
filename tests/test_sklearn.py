"""The scikit-learn estimators: scikit-learn's own checks, tables, scores, uncertainty."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import subprocess
import sys
import time
import weakref

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_friedman1
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import keras_kare as kk
from keras_kare.sklearn import calibration, training

SMALL = {"hidden_sizes": (8,), "epochs": 2, "random_state": 0}


def classifier(**parameters):
    return kk.sklearn.KAREClassifier(**{**SMALL, **parameters})


def regressor(**parameters):
    return kk.sklearn.KARERegressor(**{**SMALL, **parameters})


def wave(rng, n=60, noise=0.1):
    X = rng.normal(size=(n, 2))
    return X, np.sin(2.0 * X[:, 0]) + X[:, 1] + noise * rng.normal(size=n)


@pytest.mark.slow  # about ninety fits
@parametrize_with_checks([classifier(), regressor()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_scikit_learn_is_an_extra():
    code = """
import sys
sys.modules["sklearn"] = None  # as if it was not installed
import keras_kare
assert "keras_kare.sklearn" not in sys.modules
try:
    keras_kare.sklearn
except ImportError as error:
    assert "pip install keras_kare[sklearn]" in str(error), error
else:
    raise AssertionError("no error")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class TestScores:
    """Against the usual linear baseline on real data."""

    def test_breast_cancer(self):
        X, y = load_breast_cancer(return_X_y=True, as_frame=True)
        parts = train_test_split(X, y, random_state=0)
        fitted = classifier(hidden_sizes=(32,), epochs=20).fit(parts[0], parts[2])
        linear = make_pipeline(StandardScaler(), LogisticRegression())
        linear.fit(parts[0], parts[2])
        assert fitted.score(parts[1], parts[3]) >= linear.score(parts[1], parts[3]) - 0.02
        worse = log_loss(parts[3], linear.predict_proba(parts[1])) + 0.05
        assert log_loss(parts[3], fitted.predict_proba(parts[1])) <= worse
        assert list(fitted.feature_names_in_) == list(X.columns)

    def test_diabetes(self):
        X, y = load_diabetes(return_X_y=True)
        parts = train_test_split(X, y, random_state=0)
        fitted = regressor(hidden_sizes=(32,), epochs=20).fit(parts[0], parts[2])
        linear = RidgeCV(np.logspace(-3, 3, 13)).fit(parts[0], parts[2])
        assert fitted.score(parts[1], parts[3]) >= linear.score(parts[1], parts[3]) - 0.05

    def test_training_helps_where_few_columns_matter(self):
        X, y = make_friedman1(500, noise=1.0, random_state=0)  # 5 of 10 columns
        scores = [
            regressor(hidden_sizes=(32,), epochs=epochs, learning_rate=0.01)
            .fit(X[:250], y[:250])
            .score(X[250:], y[250:])
            for epochs in (0, 30)
        ]
        assert scores[1] > scores[0] + 0.02, scores


class TestTools:
    """Inside scikit-learn's machinery, on real data."""

    def test_grid_search_in_two_processes(self):
        X, y = load_breast_cancer(return_X_y=True)
        search = GridSearchCV(classifier(), {"epochs": [0, 2]}, cv=2, n_jobs=2)
        search.fit(X[:200], y[:200])
        assert search.best_score_ > 0.85
        assert np.all(np.isfinite(search.cv_results_["mean_test_score"]))
        assert search.score(X[200:], y[200:]) > 0.85

    def test_adult_as_columns(self, data_folder):
        frame, y = adult(data_folder, 400)
        plain = cross_val_score(classifier(), frame, y, cv=2, error_score="raise")
        nominal = frame.select_dtypes(exclude="number").columns
        pipeline = make_pipeline(
            ColumnTransformer(
                [("nominal", OneHotEncoder(handle_unknown="ignore"), nominal)],
                remainder=StandardScaler(),
                sparse_threshold=0.0,
            ),
            classifier(),
        )
        piped = cross_val_score(pipeline, frame, y, cv=2, error_score="raise")
        most_frequent = np.bincount(y).max() / len(y)
        assert plain.mean() > most_frequent + 0.01
        assert piped.mean() > most_frequent + 0.01

    def test_pickle_and_copies(self, rng):
        X, y = wave(rng)
        fitted = regressor().fit(X, y)
        expected = fitted.predict(X, return_std=True)
        for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
            for a, b in zip(other.predict(X, return_std=True), expected, strict=True):
                np.testing.assert_array_equal(a, b)
            assert other.history_ == fitted.history_
        with pytest.raises(NotFittedError):
            clone(fitted).predict(X)
        assert not hasattr(pickle.loads(pickle.dumps(regressor())), "model_")

    def test_old_models_are_freed(self, rng):
        X, y = wave(rng, n=24)
        fitted = regressor().fit(X, y)
        fitted.predict(X)
        old = weakref.ref(fitted.model_)
        fitted.fit(X, y)
        gc.collect()
        assert old() is None


class TestRandomness:
    def test_a_seed_repeats_and_no_global_generator_moves(self, rng):
        X, y = wave(rng)

        def draws():
            return (
                random.random(),
                np.random.rand(),
                float(tf.random.normal(())),
                float(keras.random.normal(())),
            )

        keras.utils.set_random_seed(1)
        expected = draws()
        predictions = []
        for _ in range(2):
            keras.utils.set_random_seed(1)
            predictions.append(regressor(batch_size=16).fit(X, y).predict(X))
            assert draws() == expected
        np.testing.assert_array_equal(*predictions)
        other = regressor(batch_size=16, random_state=1).fit(X, y)
        assert np.max(np.abs(other.predict(X) - predictions[0])) > 1e-6


class TestColumns:
    def frame(self, rng, n=40):
        frame = pd.DataFrame(
            {
                "size": rng.normal(size=n),
                "colour": rng.choice(["red", "green", "blue"], n),
                "grade": pd.Categorical(rng.choice([1, 2, 3], n)),
                "new": rng.choice([True, False], n),
                "count": pd.array(rng.integers(0, 5, n), dtype="Int64"),
                "empty": np.nan,
            }
        )
        y = frame["size"] + 3.0 * (frame["colour"] == "red") - 2.0 * frame["new"]
        frame.loc[[1, 5], "size"] = np.nan
        frame.loc[[2, 6], "colour"] = None
        frame.loc[[3, 7], "count"] = pd.NA
        return frame, y

    def test_mixed_frame_with_holes(self, rng):
        frame, y = self.frame(rng)
        fitted = regressor().fit(frame, y)
        # size, count and empty, each with an indicator; 3 colours and a hole; 3 grades; 2
        assert fitted.model_.head.anchors.shape == (40, 6 + 4 + 3 + 2)
        assert fitted.score(frame, y) > 0.9
        new = frame.iloc[:3].copy()
        new["colour"] = ["violet", None, "red"]
        new["count"] = [pd.NA, 1, 2]
        assert np.all(np.isfinite(fitted.predict(new)))
        with pytest.raises(ValueError, match="feature names"):
            fitted.predict(frame.rename(columns={"size": "length"}))

    @pytest.mark.parametrize("given", [[-1], [False, True]])
    def test_numbered_columns_of_arrays(self, rng, given):
        codes = rng.integers(0, 4, 30)
        X = np.column_stack([rng.normal(size=30), codes])
        y = np.array([3.0, -1.0, 2.0, -2.0])[codes]
        fitted = regressor(categorical_features=given).fit(X, y)
        assert fitted.model_.head.anchors.shape == (30, 5)
        np.testing.assert_allclose(fitted.predict(X.tolist()), fitted.predict(X))

    def test_text_in_lists(self):
        X = [[0.1, "a"], [0.2, "b"], [0.3, "a"], [0.4, "b"]]
        fitted = classifier(categorical_features=[1]).fit(X, ["no", "yes", "no", "yes"])
        assert list(fitted.predict(X)) == ["no", "yes", "no", "yes"]

    def test_named_columns(self, rng):
        frame, y = self.frame(rng)
        fitted = regressor(categorical_features=["colour", "grade", "new", "count"])
        assert fitted.fit(frame, y).model_.head.anchors.shape[1] == 4 + 4 + 3 + 2 + 6

    def test_many_categories_are_capped(self, rng):
        frame = pd.DataFrame({"id": [f"row {i}" for i in range(80)]})
        fitted = regressor().fit(frame, rng.normal(size=80))
        assert fitted.model_.head.anchors.shape == (80, 50)

    def test_without_standardisation(self, rng):
        X, y = wave(rng)
        fitted = regressor(standardize=False).fit(X, y)
        np.testing.assert_allclose(fitted.model_.head.anchors, X, rtol=1e-6)


class TestTargets:
    def test_units_do_not_matter(self, rng):
        X, y = wave(rng)
        mean, std = regressor().fit(X, y).predict(X, return_std=True)
        far, wide = regressor().fit(X, 1e9 + 1e3 * y).predict(X, return_std=True)
        np.testing.assert_allclose((far - 1e9) / 1e3, mean, atol=1e-4)
        np.testing.assert_allclose(wide / 1e3, std, rtol=1e-4)

    def test_several_targets(self, rng):
        X, y = wave(rng)
        both = np.column_stack([y, 100.0 - 10.0 * y])
        mean, std = regressor().fit(X, both).predict(X, return_std=True)
        assert mean.shape == std.shape == (60, 2)
        np.testing.assert_allclose(mean[:, 1], 100.0 - 10.0 * mean[:, 0], rtol=1e-4)
        np.testing.assert_allclose(std[:, 1], 10.0 * std[:, 0], rtol=1e-4)

    def test_constant_target(self, rng):
        X = rng.normal(size=(30, 2))
        mean, std = regressor().fit(X, np.full(30, 0.1)).predict(X, return_std=True)
        np.testing.assert_allclose(mean, 0.1)
        np.testing.assert_allclose(std, 0.0, atol=1e-12)

    def test_several_classes_with_names(self):
        X, y = load_iris(return_X_y=True)
        names = np.array(["setosa", "versicolor", "virginica"])[y]
        fitted = classifier().fit(X, names)
        assert fitted.score(X, names) > 0.9
        p = fitted.predict_proba(X)
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
        np.testing.assert_array_equal(fitted.classes_[p.argmax(axis=1)], fitted.predict(X))
        assert fitted.decision_function(X).shape == (150, 3)

    def test_a_class_of_one_row(self, rng):
        X = rng.normal(size=(30, 2))
        y = np.array(["a"] * 20 + ["b"] * 9 + ["c"])
        assert classifier().fit(X, y).predict_proba(X).shape == (30, 3)

    @pytest.mark.parametrize("n", [2, 3, 10])
    def test_few_rows(self, rng, n):
        X, y = wave(rng, n=n)
        fitted = regressor().fit(X, y)
        assert fitted.history_ == {}
        assert fitted.ridge_chosen_by_ == "leave-one-out"
        mean, std = fitted.predict(X, return_std=True)
        assert np.all(np.isfinite(mean))
        assert np.all(std >= 0.0)
        p = classifier().fit(X, y > np.median(y)).predict_proba(X)
        assert np.all((p >= 0.0) & (p <= 1.0))

    def test_types_of_inputs(self, rng):
        X = rng.integers(-3, 4, size=(40, 1))
        y = X[:, 0] ** 2
        expected = regressor().fit(X, y).predict(X)
        for dtype in ("float32", "int32"):
            other = regressor().fit(X.astype(dtype), y.astype(dtype)).predict(X)
            np.testing.assert_allclose(other, expected, rtol=1e-5, atol=1e-5)
        single = regressor(dtype="float32").fit(X, y).predict(X)
        np.testing.assert_allclose(single, expected, atol=1e-2)


class TestTraining:
    def test_rows_that_choose_do_not_train(self, rng, monkeypatch):
        X, y = wave(rng, n=50)
        trained = []
        fit = kk.KAREModel.fit

        def spy(self, x, y, **kwargs):
            trained.append((x, kwargs["validation_data"][0]))
            return fit(self, x, y, **kwargs)

        monkeypatch.setattr(kk.KAREModel, "fit", spy)
        fitted = regressor().fit(X, y)
        ((x, held),) = trained
        assert x.shape == (40, 2)
        assert held.shape == (10, 2)
        assert not set(map(tuple, x)) & set(map(tuple, held))
        assert fitted.model_.head.report["rows"] == 50
        assert fitted.ridge_chosen_by_ == "rows held out from training"
        assert fitted.model_.head.report["relative_ridge"] == pytest.approx(fitted.ridge_)

    def test_rows_held_out_are_balanced(self, rng):
        codes = np.repeat([0, 1, 2], [60, 30, 10])
        held = training.held_out_rows(codes, 0.2, np.random.RandomState(0))
        assert list(np.bincount(codes[held])) == [12, 6, 2]
        assert len(training.held_out_rows(codes[:19], 0.2, np.random.RandomState(0))) == 0
        assert len(training.held_out_rows(codes, 0.999, np.random.RandomState(0))) == 98

    def test_a_given_ridge(self, rng):
        X, y = wave(rng)
        for epochs in (0, 2):
            fitted = regressor(ridge=0.5, epochs=epochs).fit(X, y)
            assert fitted.model_.head.report["relative_ridge"] == pytest.approx(0.5)
            assert fitted.ridge_chosen_by_ == "the user"

    def test_batches(self, rng):
        x = np.arange(50.0)[:, None]
        batches = training.Batches(x, x, 3, np.random.RandomState(0))
        sizes = [len(batches[i][0]) for i in range(len(batches))]
        assert sizes == [17, 17, 16]
        first = np.concatenate([batches[i][0] for i in range(3)])
        batches.on_epoch_end()
        second = np.concatenate([batches[i][0] for i in range(3)])
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(np.sort(second, axis=0), x)

    def test_time_budget(self, rng):
        X, y = wave(rng)
        begun = time.perf_counter()
        fitted = regressor(epochs=10**6, patience=10**6, time_budget=0.5).fit(X, y)
        assert len(fitted.history_["loss"]) < 10**6
        assert fitted.score(X, y) > 0.5
        assert time.perf_counter() - begun < 300.0, "it did not stop"

    def test_divergence_falls_back_to_good_weights(self, rng):
        X, y = wave(rng)
        with pytest.warns(RuntimeWarning, match="Training failed"):
            fitted = regressor(learning_rate=1e200, epochs=5).fit(X, y)
        assert fitted.score(X, y) > 0.5


class TestUncertainty:
    def test_is_that_of_a_gaussian_process(self, rng):
        X, y = wave(rng, n=40)
        fitted = regressor().fit(X, y)
        head, kernel = fitted.model_.head, fitted.model_.kernel
        new = rng.normal(size=(7, 2))
        x, x_new = (fitted.preprocessor_.transform(part) for part in (X, new))
        process = GaussianProcessRegressor(
            Fixed(kernel), alpha=len(X) * head.ridge_value, optimizer=None
        )
        process.fit(x, (y - fitted.target_mean_) / fitted.target_scale_)
        mean, std = process.predict(x_new, return_std=True)
        got, got_std = fitted.predict(new, return_std=True)
        scale = fitted.target_scale_[0]
        np.testing.assert_allclose(got, fitted.target_mean_ + scale * mean, rtol=1e-5)
        expected = np.sqrt(fitted.noise_scale_[0] * (std**2 + process.alpha))
        np.testing.assert_allclose(got_std, scale * expected, rtol=1e-6)

    def test_scale_makes_errors_of_new_rows_standard(self, rng):
        X, y = wave(rng, n=500, noise=0.5)
        fitted = regressor(hidden_sizes=(32,), epochs=10).fit(X[:250], y[:250])
        mean, std = fitted.predict(X[250:], return_std=True)
        within = np.abs(y[250:] - mean) <= 1.96 * std
        assert 0.9 <= within.mean() <= 0.99
        np.testing.assert_allclose(std.mean(), 0.5, atol=0.15)

    def test_leave_one_out_where_nothing_trained(self, rng):
        gram = rng.normal(size=(12, 20))
        gram = gram @ gram.T
        y = rng.normal(size=(12, 1))
        evidence = training.judge(gram, y, np.arange(0), 0.3)
        noise = 0.3 * np.trace(gram) / 12
        for i in range(12):
            rest = np.delete(np.arange(12), i)
            cross, within = gram[[i]][:, rest], gram[np.ix_(rest, rest)]
            mean = cross @ np.linalg.solve(within + noise * np.eye(11), y[rest])
            np.testing.assert_allclose(evidence.predictions[i], mean[0])
            seen = np.linalg.solve(within + noise * np.eye(11), cross[0])
            alone = gram[i, i] - cross[0] @ seen + noise
            np.testing.assert_allclose(evidence.variances[i], alone)


class TestProbabilities:
    def test_are_calibrated_on_new_rows(self, rng):
        X = rng.normal(size=(1500, 2))
        p = 1.0 / (1.0 + np.exp(-2.0 * X[:, 0]))
        y = (rng.uniform(size=1500) < p).astype(int)
        fitted = classifier().fit(X[:600], y[:600])
        loss = log_loss(y[600:], fitted.predict_proba(X[600:]))
        assert loss < log_loss(y[600:], p[600:]) + 0.04
        raw = calibration.probabilities(fitted.decision_function(X[600:])[:, None])
        assert loss < log_loss(y[600:], raw) - 0.02

    @pytest.mark.parametrize("columns", [1, 3])
    def test_temperature_has_the_least_cross_entropy(self, rng, columns):
        scores = rng.normal(size=(200, columns))
        codes = calibration.probabilities(4.0 * scores).argmax(axis=1)
        codes[:40] = 0
        best = calibration.inverse_temperature(scores, codes)
        targets = calibration.smoothed(codes, max(2, columns))
        np.testing.assert_allclose(targets.sum(axis=1), 1.0)

        def loss(factor):
            return -np.sum(targets * np.log(calibration.probabilities(factor * scores)))

        assert loss(best) <= min(loss(0.95 * best), loss(1.05 * best))

    def test_separated_scores_keep_a_finite_temperature(self):
        best = calibration.inverse_temperature(
            np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])
        )
        assert calibration.probabilities(np.array([[best]]))[0, 1] == pytest.approx(
            0.75, 1e-3
        )


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("hidden_sizes", 64),
            ("hidden_sizes", (8, 0)),
            ("activation", "gleu"),
            ("activation", np.tanh),
            ("epochs", -1),
            ("epochs", 1.5),
            ("patience", 0),
            ("batch_size", 1),
            ("learning_rate", 0.0),
            ("learning_rate", "fast"),
            ("kare_ridge", -1.0),
            ("kare_ridge", "auto"),
            ("ridge", 0.0),
            ("ridge", "best"),
            ("validation_fraction", 0.0),
            ("validation_fraction", 1),
            ("time_budget", 0.0),
            ("dtype", "float16"),
            ("categorical_features", "all"),
            ("categorical_features", ["colour"]),
            ("categorical_features", [2]),
            ("categorical_features", [True]),
        ],
    )
    def test_parameters(self, rng, name, value):
        X, y = wave(rng, n=24)
        with pytest.raises(ValueError, match=rf"(?s)`{name}`.*Received: "):
            regressor(**{name: value}).fit(X, y)

    def test_targets(self, rng):
        X, y = wave(rng, n=24)
        for bad, message in (
            (np.where(y > y.max() - 1e-9, np.nan, y), "NaN"),
            (np.where(y > y.max() - 1e-9, np.inf, y), "infinity"),
            (np.ones((24, 2, 2)), "dim 3"),
            (1e200 * y, "too large"),
            (y[:-1], "inconsistent"),
            (None, "requires y"),
        ):
            with pytest.raises(ValueError, match=message):
                regressor().fit(X, bad)
        with pytest.raises(ValueError, match="one class"):
            classifier().fit(X, np.zeros(24, int))

    def test_inputs(self, rng):
        X, y = wave(rng, n=24)
        with pytest.raises(TypeError, match="Sparse data"):
            regressor().fit(scipy.sparse.csr_matrix(X), y)
        with pytest.raises(ValueError, match="infinity"):
            regressor().fit(np.where(X > 1.0, np.inf, X), y)
        with pytest.raises(ValueError, match="could not convert"):
            regressor().fit(X.astype(str).astype(object) + "?", y)
        dates = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 24)})
        with pytest.raises(ValueError, match="day"):
            regressor().fit(dates, y)
        with pytest.raises(ValueError, match="n_samples=1"):
            regressor().fit(X[:1], y[:1])


class Fixed(Kernel):
    """A kernel of keras_kare as `GaussianProcessRegressor` calls one."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, a, b=None, eval_gradient=False):
        return self.kernel.cross(a, a if b is None else b, dtype="float64").numpy()

    def diag(self, a):
        return self.kernel.diag(a, dtype="float64").numpy()

    def is_stationary(self):
        return False

    def __sklearn_clone__(self):
        return self


def adult(folder, rows):
    """Rows of adult; its nominal columns, coded by numbers in the files, as text."""
    path = folder / "uci" / "adult" / "adult_train_R.dat"
    table = pd.read_csv(path, sep="\t", index_col=0, nrows=rows)
    y = table.pop("clase").to_numpy()
    for name in ("f2", "f4", "f6", "f7", "f8", "f9", "f10", "f14"):
        table[name] = table[name].map("code {:.3f}".format).astype(object)
    return table, y
