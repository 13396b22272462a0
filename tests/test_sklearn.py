"""The scikit-learn estimators: scikit-learn's own checks, tables, scores, uncertainty."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle
import random
import time
from decimal import Decimal

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf
from scipy.special import expit
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
from keras_kare.machine import calibration
from keras_kare.recipes import cross_fitting, ensemble, many_rows, perceptrons
from keras_kare.recipes.descent import Descent
from keras_kare.recipes.few_values import FewValues
from keras_kare.recipes.recipe import checkpoints_to
from keras_kare.sklearn import base

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
            regressor(hidden_sizes=(32,), epochs=epochs, learning_rate=0.01, laplace=False)
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
        plain = cross_val_score(classifier(epochs=0), frame, y, cv=2, error_score="raise")
        nominal = frame.select_dtypes(exclude="number").columns
        pipeline = make_pipeline(
            ColumnTransformer(
                [("nominal", OneHotEncoder(handle_unknown="ignore"), nominal)],
                remainder=StandardScaler(),
                sparse_threshold=0.0,
            ),
            classifier(epochs=0),
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
        assert not hasattr(pickle.loads(pickle.dumps(regressor())), "machines_")

    @pytest.mark.parametrize(
        "new", [{"activation": "relu"}, {"hidden_sizes": (4, 4)}, {"dtype": "float64"}]
    )
    def test_new_parameters_wait_for_the_next_fit(self, rng, new):
        X, y = wave(rng)
        fitted = regressor(epochs=0, laplace=False).fit(X, y)
        before = fitted.predict(X)
        np.testing.assert_array_equal(fitted.set_params(**new).predict(X), before)
        assert np.any(fitted.fit(X, y).predict(X) != before)

    def test_networks_of_one_shape_are_traced_once(self, rng):
        X, y = wave(rng, n=24)
        traced = perceptrons.workbench
        traced.cache_clear()
        fitted = [regressor(random_state=seed).fit(X, y) for seed in range(2)]
        predictions = [each.predict(X) for each in fitted]
        regressor(hidden_sizes=(9,)).fit(X, y)
        classifier().fit(X[:20], y[:20] > 0.0)
        assert traced.cache_info().currsize == 2
        np.testing.assert_array_equal(fitted[0].predict(X), predictions[0])
        assert np.max(np.abs(predictions[0] - predictions[1])) > 1e-6
        wider = regressor().fit(np.hstack([X, X]), y)  # up to eight columns
        assert traced.cache_info().currsize == 2
        assert np.all(np.isfinite(wider.predict(np.hstack([X, X]))))
        shared = traced(perceptrons.wider(2), (8,), "gelu", "float32", 1.0)
        assert shared.descent._run.experimental_get_tracing_count() == 1

    def test_threads_do_not_mix_weights(self, rng):
        X, y = wave(rng, n=40)
        alone = [regressor(random_state=s).fit(X, y).predict(X) for s in range(4)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(
                pool.map(lambda s: regressor(random_state=s).fit(X, y).predict(X), range(4))
            )
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


class TestRandomness:
    def test_a_seed_repeats_and_no_global_generator_moves(self, rng):
        X, y = wave(rng)

        def draws():
            found = [random.random(), np.random.rand(), float(tf.random.normal(()))]
            return found + [float(keras.random.normal(()))] * resets

        def after_seed():
            keras.utils.set_random_seed(1)
            return float(keras.random.normal(()))

        resets = after_seed() == after_seed()  # Keras 3.8 does not reset its own
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
    """Without training: columns of each number would be traced anew."""

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
        fitted = regressor(epochs=0).fit(frame, y)
        # size, count and empty, each with an indicator; 3 colours and a hole; 3 grades; 2
        # and the five values of count, a column each
        assert inputs_of(fitted, frame).shape == (40, 6 + 5 + 4 + 3 + 2)
        assert fitted.score(frame, y) > 0.9
        new = frame.iloc[:3].copy()
        new["colour"] = ["violet", None, "red"]
        new["count"] = [pd.NA, 1, 2]
        assert np.all(np.isfinite(fitted.predict(new)))
        with pytest.raises(ValueError, match="feature names"):
            fitted.predict(frame.rename(columns={"size": "length"}))

    @pytest.mark.parametrize("hole", [None, pd.NA, Decimal("nan")])
    def test_objects_that_are_numbers_are_numeric(self, rng, hole):
        X, y = wave(rng)
        frame = pd.DataFrame(X, columns=["a", "b"])
        frame["a"] = [hole, *(Decimal(str(value)) for value in X[1:, 0])]
        frame["b"] = frame["b"].astype(object)
        fitted = regressor(epochs=0).fit(frame, y)
        assert inputs_of(fitted, frame).shape == (60, 3)
        frame["b"] = frame["b"].astype("category")  # says that numbers are codes
        assert inputs_of(regressor(epochs=0).fit(frame, y), frame).shape == (60, 52)

    @pytest.mark.parametrize("given", [[-1], [False, True]])
    def test_numbered_columns_of_arrays(self, rng, given):
        codes = rng.integers(0, 4, 30)
        X = np.column_stack([rng.normal(size=30), codes])
        y = np.array([3.0, -1.0, 2.0, -2.0])[codes]
        fitted = regressor(epochs=0, categorical_features=given).fit(X, y)
        assert inputs_of(fitted, X).shape == (30, 5)
        np.testing.assert_allclose(fitted.predict(X.tolist()), fitted.predict(X))

    def test_text_in_lists(self):
        X = [[0.1, "a"], [0.2, "b"], [0.3, "a"], [0.4, "b"]]
        fitted = classifier(epochs=0, categorical_features=[1]).fit(
            X, ["no", "yes", "no", "yes"]
        )
        assert list(fitted.predict(X)) == ["no", "yes", "no", "yes"]

    def test_named_columns(self, rng):
        frame, y = self.frame(rng)
        fitted = regressor(
            epochs=0, categorical_features=["colour", "grade", "new", "count"]
        )
        fitted.fit(frame, y)
        assert inputs_of(fitted, frame).shape[1] == 4 + 4 + 3 + 2 + 6

    def test_many_categories_are_capped(self, rng):
        frame = pd.DataFrame({"id": [f"row {i}" for i in range(80)]})
        fitted = regressor(epochs=0).fit(frame, rng.normal(size=80))
        assert inputs_of(fitted, frame).shape == (80, 50)

    def test_columns_of_few_values(self, rng):
        X = np.column_stack(
            [rng.normal(size=30), np.arange(30) % 2, np.arange(30) % 4, np.arange(30) % 9]
        ).astype(float)
        X[5, 2] = np.nan
        few = FewValues(8).fit(X)
        assert [list(values) for values in few.values_] == [[], [], [0, 1, 2, 3], []]
        np.testing.assert_allclose(few.transform(X).max(axis=0), np.sqrt(2.0))
        assert np.all(few.transform(X)[5] == 0.0)
        assert np.all(few.transform([[0.0, 0.0, 7.0, 0.0]]) == 0.0)  # a value unseen
        assert list(few.get_feature_names_out(["a", "b", "c", "d"])) == [
            "c_0",
            "c_1",
            "c_2",
            "c_3",
        ]
        y = np.array([3.0, -1.0, 2.0, -2.0])[np.arange(30) % 4]
        with_few, without = (
            regressor(epochs=0, few_values=most).fit(X, y).score(X, y) for most in (8, 0)
        )
        assert with_few > without

    def test_without_standardisation(self, rng):
        X, y = wave(rng)
        fitted = regressor(epochs=0, standardize=False).fit(X, y)
        np.testing.assert_allclose(inputs_of(fitted, X), X, rtol=1e-6)


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
        assert fitted.history_["steps"] == [0.0]
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
        double = regressor(dtype="float64").fit(X, y).predict(X)
        np.testing.assert_allclose(double, expected, atol=1e-2)


class TestTraining:
    def test_rows_that_choose_do_not_train(self, rng, monkeypatch):
        """Each fold's network sees the other folds; in the end, all rows are seen."""
        X, y = wave(rng, n=50)
        seen = []
        checkpoints = cross_fitting.checkpoints

        def spy(bench, recipe, x, *rest, **named):
            seen.append(set(map(tuple, np.asarray(x).tolist())))
            return checkpoints(bench, recipe, x, *rest, **named)

        for module in (cross_fitting, ensemble):
            monkeypatch.setattr(module, "checkpoints", spy)
        fitted = regressor(networks=2).fit(X, y)
        every = set().union(*seen)
        assert len(every) == 50
        folds, refits = seen[:4], seen[4:]
        assert sorted(len(rows) for rows in folds) == [37, 37, 38, 38]
        left_out = [every - rows for rows in folds]
        assert set().union(*left_out) == every  # each row once
        assert sum(map(len, left_out)) == 50
        trained = any(key.share < 1.0 for key in fitted.machines_)
        assert refits == [every] * (2 if trained else 0)

    def test_many_rows_leave_choosing_to_some(self, rng, monkeypatch):
        monkeypatch.setattr(base, "MOST_CHOOSING", 40)
        X, y = wave(rng, n=100)
        found = []
        choose = cross_fitting.cross_fit
        monkeypatch.setattr(
            base, "cross_fit", lambda *args: found.append(choose(*args)) or found[-1]
        )
        fitted = regressor(epochs=10).fit(X, y)
        ((_, evidence),) = found
        assert 30 <= len(evidence.rows) <= 40
        assert len(set(evidence.rows)) == len(evidence.rows)
        np.testing.assert_allclose(np.median(y[evidence.rows]), np.median(y), atol=0.3)
        assert len(fitted._ensemble.anchors) == 100
        assert fitted.score(X, y) > 0.8

    def test_errors_are_of_rows_not_seen(self, rng):
        """Targets that are noise cannot be predicted, however well they are fitted."""
        X, y = rng.normal(size=(60, 2)), rng.normal(size=60)
        fitted = regressor(epochs=30, hidden_sizes=(32,)).fit(X, y)
        assert min(fitted.history_["error"]) > 0.8
        assert np.abs(fitted.predict(X) - y.mean()).std() < 0.8 * y.std()

    @pytest.mark.parametrize(
        ("most", "expected"),
        [
            (0, (0,)),
            (5, (0, 5)),
            (10, (0, 10)),
            (100, (0, 10, 30, 100)),
            (45, (0, 10, 30, 45)),
        ],
    )
    def test_numbers_of_steps(self, most, expected):
        assert checkpoints_to(most) == expected

    def test_a_given_ridge(self, rng):
        X, y = wave(rng)
        for epochs in (0, 2):
            fitted = regressor(ridge=0.5, epochs=epochs).fit(X, y)
            assert {key.ridge for key in fitted.machines_} == {0.5}

    def test_machines_and_kernels_to_choose_from(self, rng):
        X, y = wave(rng)
        fitted = regressor(machines=2, epochs=10).fit(X, y)
        assert len(fitted.machines_) == len({key.kernel for key in fitted.machines_})
        assert 1 <= len(fitted.machines_) <= 2
        smooth = regressor(laplace=False, epochs=10).fit(X, y)
        assert {key.share for key in smooth.machines_} == {0.0}

    def test_a_kernel_without_hidden_layers_is_linear(self, rng):
        X = rng.normal(size=(40, 2))
        y = X @ [1.0, -2.0] + 3.0
        fitted = regressor(hidden_sizes=(), laplace=False).fit(X, y)
        np.testing.assert_allclose(fitted.predict(X), y, atol=0.01)
        assert {key.steps for key in fitted.machines_} == {0}

    def test_time_budget(self, rng):
        X, y = wave(rng)
        begun = time.perf_counter()
        fitted = regressor(epochs=10**6, time_budget=0.5).fit(X, y)
        assert max(fitted.history_["steps"]) < 10**6
        assert fitted.score(X, y) > 0.5
        assert time.perf_counter() - begun < 300.0, "it did not stop"

    def test_divergence_falls_back_to_good_weights(self, rng):
        X, y = wave(rng)
        with pytest.warns(RuntimeWarning, match="Training failed.*now 1e.200"):
            fitted = regressor(learning_rate=1e200, epochs=5).fit(X, y)
        assert fitted.score(X, y) > 0.5
        for centres in (None, 30):
            with pytest.warns(RuntimeWarning, match="no time to train.*now 1e-06 s"):
                regressor(time_budget=1e-6, centres=centres).fit(X, y)


class TestImportances:
    def test_are_mean_squared_derivatives(self, rng):
        """Of central differences of predictions, in float64, also at kinks of Laplace's."""
        X, y = wave(rng, n=40)
        X = np.round(64 * X) / 64  # so that steps are exact in float32, too
        fitted = regressor(dtype="float64", standardize=False)
        fitted.fit(X, np.column_stack([y, X[:, 0] ** 2]))
        assert {key.share for key in fitted.machines_} != {0.0}
        x, bench, step = fitted._ensemble.anchors, fitted._bench(2), 2.0**-10
        slopes = [
            fitted._ensemble.predict(bench, x + move)
            - fitted._ensemble.predict(bench, x - move)
            for move in step * np.eye(2, dtype="float32")
        ]
        slopes = np.stack(slopes, axis=1) / (2.0 * step)
        np.testing.assert_allclose(fitted._ensemble.slopes(bench, x), slopes, atol=1e-5)
        expected = np.mean(slopes**2, axis=(0, 2)) * np.var(X, axis=0)
        np.testing.assert_allclose(
            fitted.feature_importances_, expected / np.sum(expected), rtol=1e-5
        )

    def test_belong_to_columns_of_the_table(self, rng):
        n = 200
        numbers, noise = rng.normal(size=(2, n))
        colours = rng.choice(["red", "green", "blue"], size=n)
        numbers[rng.random(n) < 0.1] = np.nan
        X = np.column_stack([noise, colours, numbers, rng.integers(5, size=n)]).astype(
            object
        )
        y = np.nan_to_num(numbers) + 2.0 * (colours == "red")
        fitted = regressor(epochs=10, categorical_features=[1]).fit(X, y)
        assert fitted.feature_importances_.shape == (4,)
        assert np.isclose(fitted.feature_importances_.sum(), 1.0)
        assert set(np.argsort(fitted.feature_importances_)[-2:]) == {1, 2}

    def test_of_classes_and_of_centres(self, rng):
        X = rng.normal(size=(300, 3))
        y = np.digitize(X[:, 1], [-0.5, 0.5])
        for centres in (None, 50):
            fitted = classifier(epochs=10, centres=centres).fit(X, y)
            assert np.argmax(fitted.feature_importances_) == 1
            assert fitted.feature_importances_[1] > 0.6

    def test_of_a_constant_are_zero(self, rng):
        fitted = regressor().fit(rng.normal(size=(30, 2)), np.ones(30))
        np.testing.assert_array_equal(fitted.feature_importances_, 0.0)
        assert not hasattr(regressor(), "feature_importances_")


class TestUncertainty:
    def test_is_that_of_a_gaussian_process(self, rng):
        """Of one network and machine: scikit-learn's process of the same kernel."""
        X, y = wave(rng, n=40)
        fitted = regressor(machines=1, networks=1, laplace=False, ridge=0.1).fit(X, y)
        new = rng.normal(size=(7, 2))
        x, x_new = inputs_of(fitted, X), inputs_of(fitted, new)
        noise = len(X) * 0.1 * np.trace(Fixed(fitted)(x)) / len(X) ** 2
        process = GaussianProcessRegressor(Fixed(fitted), alpha=noise, optimizer=None)
        process.fit(x, (y - fitted.target_mean_) / fitted.target_scale_)
        mean, std = process.predict(x_new, return_std=True)
        got, got_std = fitted.predict(new, return_std=True)
        scale = fitted.target_scale_[0]
        np.testing.assert_allclose(got, fitted.target_mean_ + scale * mean, rtol=1e-5)
        expected = np.sqrt(fitted.noise_scale_[0] * (std**2 + process.alpha))
        np.testing.assert_allclose(got_std, scale * expected, rtol=1e-5)

    def test_scale_makes_errors_of_new_rows_standard(self, rng):
        X, y = wave(rng, n=500, noise=0.5)
        fitted = regressor(hidden_sizes=(32,), epochs=10).fit(X[:250], y[:250])
        mean, std = fitted.predict(X[250:], return_std=True)
        within = np.abs(y[250:] - mean) <= 1.96 * std
        assert 0.9 <= within.mean() <= 0.99
        np.testing.assert_allclose(std.mean(), 0.5, atol=0.15)


class TestProbabilities:
    def test_are_calibrated_on_new_rows(self, rng):
        X = rng.normal(size=(1500, 2))
        p = 1.0 / (1.0 + np.exp(-2.0 * X[:, 0]))
        y = (rng.uniform(size=1500) < p).astype(int)
        fitted = classifier().fit(X[:600], y[:600])
        loss = log_loss(y[600:], fitted.predict_proba(X[600:]))
        assert loss < log_loss(y[600:], p[600:]) + 0.04
        raw = expit(fitted.decision_function(X[600:]))
        assert loss < log_loss(y[600:], raw) - 0.02

    def test_separated_scores_keep_a_finite_temperature(self):
        signs = np.array([[-1.0], [-1.0], [1.0], [1.0]])
        best = calibration.inverse_temperature(signs, signs, np.ones(4))
        assert expit(float(best)) == pytest.approx(0.75, 1e-3)


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
            ("batch_size", 1),
            ("batch_size", None),
            ("folds", 1),
            ("networks", 0),
            ("machines", 0),
            ("few_values", -1),
            ("laplace", 1),
            ("laplace", "no"),
            ("standardize", "yes"),
            ("verbose", "x"),
            ("random_state", "a"),
            ("random_state", -1),
            ("centres", 1),
            ("centres", "few"),
            ("learning_rate", 0.0),
            ("learning_rate", "fast"),
            ("kare_ridge", -1.0),
            ("kare_ridge", "auto"),
            ("ridge", 0.0),
            ("ridge", "best"),
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
        for hole in (None, np.nan):
            words = np.where(y > 0.0, "up", "down").astype(object)
            words[3] = hole
            with pytest.raises(ValueError, match=r"`y` must hold.*without holes.*Received"):
                classifier().fit(X, words)

    def test_inputs(self, rng):
        X, y = wave(rng, n=24)
        with pytest.raises(ValueError, match="infinity"):
            regressor().fit(np.where(X > 1.0, np.inf, X), y)
        text = np.column_stack([X, np.full(24, "red")]).astype(object)
        with pytest.raises(
            ValueError, match=r"Column 2 of `X`.*categorical_features.*'red'"
        ):
            regressor().fit(text, y)
        frame = pd.DataFrame({"size": X[:, 0], "colour": "red"})
        with pytest.raises(ValueError, match="Column 'colour' of `X`"):
            regressor(categorical_features=None).fit(frame, y)
        for mixed in ([1, "red"], [["red"], ["blue"]]):
            with pytest.raises(ValueError, match=r"Column 'colour'.*one type.*Received"):
                regressor().fit(frame.assign(colour=mixed * 12), y)
        days = pd.Series(pd.date_range("2020-01-01", periods=24))
        kinds = days, days.dt.date, days.dt.to_period("D"), (days - days[0]).astype(object)
        for dates in kinds:
            with pytest.raises(ValueError, match=r"turn dates into numbers.*'day'"):
                regressor().fit(pd.DataFrame({"day": dates}), y)
        table = pd.DataFrame({"size": X[:, 0], "day": days})
        for X_dates in (table, table[["day"]], table[["day"]].to_numpy()):
            with pytest.raises(ValueError, match="turn dates into numbers"):
                regressor(categorical_features=None).fit(X_dates, y)
        with pytest.raises(ValueError, match="n_samples=1"):
            regressor().fit(X[:1], y[:1])


class TestWeights:
    """Weights are counts, and equal rows are one row that counts more."""

    def counted(self, rng, n):
        X, y = wave(rng, n=n)
        counts = rng.integers(0, 4, n)
        counts[:3] = 2
        order = rng.permutation(np.repeat(np.arange(n), counts))
        return X, y, counts, X[order], y[order]

    @pytest.mark.parametrize("n", [12, 40])  # without training, and with
    def test_are_repeated_rows(self, rng, n):
        X, y, counts, X_repeated, y_repeated = self.counted(rng, n)
        weighted = regressor().fit(X, y, sample_weight=counts)
        repeated = regressor().fit(X_repeated, y_repeated)
        for a, b in zip(
            weighted.predict(X, return_std=True),
            repeated.predict(X, return_std=True),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        plain = regressor().fit(X, y)
        assert np.max(np.abs(plain.predict(X) - weighted.predict(X))) > 1e-3
        weighted = classifier().fit(X, y > 0.0, sample_weight=counts)
        repeated = classifier().fit(X_repeated, y_repeated > 0.0)
        p, expected = weighted.predict_proba(X), repeated.predict_proba(X)
        np.testing.assert_array_equal(p, expected)

    def test_machines_are_those_of_repeated_rows(self, rng):
        """Of one kernel, against plain algebra on the rows written out."""
        X, y, counts, X_repeated, y_repeated = self.counted(rng, 40)
        settings = {"machines": 1, "networks": 1, "laplace": False, "ridge": 0.1}
        fitted = regressor(**settings).fit(X, y, sample_weight=counts)
        np.testing.assert_allclose(fitted.target_mean_, np.mean(y_repeated))
        np.testing.assert_allclose(fitted.target_scale_, np.std(y_repeated))
        x, kernel = inputs_of(fitted, X_repeated), Fixed(fitted)
        gram, n = kernel(x), len(x)
        scaled = (y_repeated - fitted.target_mean_) / fitted.target_scale_
        noise = n * 0.1 * np.trace(gram) / n**2
        dual = np.linalg.solve(gram + noise * np.eye(n), scaled)
        new = rng.normal(size=(7, 2))
        cross = kernel(inputs_of(fitted, new), x)
        expected = fitted.target_mean_ + fitted.target_scale_ * (cross @ dual)
        mean, std = fitted.predict(new, return_std=True)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
        known = np.sum(cross * np.linalg.solve(gram + noise * np.eye(n), cross.T).T, axis=1)
        variance = kernel.diag(inputs_of(fitted, new)) - known + noise
        expected = fitted.target_scale_ * np.sqrt(fitted.noise_scale_ * variance)
        np.testing.assert_allclose(std, expected, rtol=1e-5)

    def test_of_one_change_nothing(self, rng):
        X, y = wave(rng, n=30)
        expected = regressor().fit(X, y).predict(X)
        for ones in (np.ones(30), 1, [1] * 30):
            found = regressor().fit(X, y, sample_weight=ones).predict(X)
            np.testing.assert_array_equal(found, expected)

    def test_of_classes_multiply_those_of_rows(self, rng):
        X, y = wave(rng, n=40)
        labels = np.where(y > 1.0, "rare", "common")
        by_class = classifier(class_weight={"rare": 3.0}).fit(X, labels)
        by_row = classifier().fit(X, labels, sample_weight=np.where(y > 1.0, 3.0, 1.0))
        np.testing.assert_allclose(by_class.target_mean_, by_row.target_mean_)
        # all classes count alike, whatever rows do
        weights = rng.integers(1, 4, 40)
        balanced = classifier(class_weight="balanced").fit(X, labels, sample_weight=weights)
        np.testing.assert_allclose(balanced.target_mean_, 0.0, atol=1e-12)
        recall = [
            np.mean(fitted.predict(X)[labels == "rare"] == "rare")
            for fitted in (classifier(epochs=0).fit(X, labels), balanced)
        ]
        assert recall[1] >= recall[0]

    def test_refusals(self, rng):
        X, y = wave(rng, n=24)
        for bad, message in (
            (np.ones(23), "for 24 rows"),
            (np.ones((24, 2)), "for 24 rows"),
            (-np.ones(24), "not negative"),
            (np.full(24, np.nan), "finite"),
            (np.eye(24)[0], "at least two rows"),
        ):
            with pytest.raises(ValueError, match=rf"`sample_weight` must.*{message}"):
                regressor().fit(X, y, sample_weight=bad)
        for bad in ("even", {0: -1.0}, [1.0, 2.0], {0: "a"}, {"unknown": 2.0}):
            with pytest.raises(ValueError, match=r"`class_weight` must.*Received"):
                classifier(class_weight=bad).fit(X, y > 0.0)
        with pytest.raises(ValueError, match="one class"):
            classifier().fit(X, y > 0.0, sample_weight=(y > 0.0))
        with pytest.raises(ValueError, match="one class"):
            classifier(class_weight={False: 0.0}).fit(X, y > 0.0)
        with pytest.raises(ValueError, match=r"`class_weight`.*more than one row.*0\.24"):
            classifier(class_weight={False: 0.01, True: 0.01}).fit(X, y > 0.0)


class TestLabels:
    def test_several_a_row(self, rng):
        X, y = wave(rng, n=60)
        labels = np.column_stack([y > 0.0, X[:, 0] > 0.0, y > 1.0]).astype(int)
        fitted = classifier().fit(X, labels)
        found, p = fitted.predict(X), fitted.predict_proba(X)
        assert found.shape == p.shape == fitted.decision_function(X).shape == (60, 3)
        np.testing.assert_array_equal(found, p > 0.5)
        assert np.all((found == labels).mean(axis=0) > 0.8)
        other = classifier().fit(X, scipy.sparse.csr_matrix(labels)).predict(X)
        np.testing.assert_array_equal(other, found)

    def test_refusals(self, rng):
        X, y = wave(rng, n=24)
        with pytest.raises(ValueError, match="MultiOutputClassifier"):
            classifier().fit(X, np.column_stack([np.arange(24) % 3, y > 0.0]))
        with pytest.raises(ValueError, match="`class_weight` must be None"):
            classifier(class_weight="balanced").fit(X, np.column_stack([y > 0.0, y > 1.0]))


class TestSparse:
    @pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.coo_array])
    def test_is_the_same_written_out(self, rng, kind):
        X, y = wave(rng, n=30)
        X[X < 0.0] = 0.0
        expected = regressor().fit(X, y).predict(X)
        fitted = regressor().fit(kind(X), y)
        np.testing.assert_array_equal(fitted.predict(kind(X)), expected)

    def test_too_large_is_refused(self):
        X = scipy.sparse.csr_matrix((10**6, 10**7))
        with pytest.raises(ValueError, match=r"`X` must fit.*TruncatedSVD.*1000000"):
            regressor().fit(X, np.zeros(10**6))


class TestManyRows:
    """Machines on centres, and predictions in primal form."""

    def test_all_rows_as_centres_are_exact(self, rng):
        """Of one kernel, against plain algebra on the rows that were not held out."""
        X, y = wave(rng, n=200)
        settings = {"machines": 1, "networks": 1, "laplace": False, "ridge": 0.1}
        fitted = regressor(centres=199, epochs=1, **settings).fit(X, y)
        done = fitted.approximation_
        assert done["rows"] + done["held_out"] == 200
        assert done["centres"] == done["rows"] == 180
        assert done["kernel_error"][0] < 1e-6
        x, kernel = fitted._ensemble.anchors, Fixed(fitted)
        inputs = inputs_of(fitted, X).astype("float32")
        gram, n = kernel(x), len(x)
        noise = 0.1 * np.trace(gram) / n
        scaled = ((y - fitted.target_mean_) / fitted.target_scale_)[
            [np.flatnonzero((inputs == row).all(axis=1))[0] for row in x]
        ]
        new = rng.normal(size=(7, 2))
        cross = kernel(inputs_of(fitted, new), x)
        known = np.linalg.solve(gram + noise * np.eye(n), cross.T)
        mean, std = fitted.predict(new, return_std=True)
        expected = fitted.target_mean_ + fitted.target_scale_ * (known.T @ scaled)
        np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-3)
        variance = kernel.diag(inputs_of(fitted, new)) - np.sum(cross * known.T, axis=1)
        scale = fitted.target_scale_ * np.sqrt(fitted.noise_scale_)
        np.testing.assert_allclose(std, scale * np.sqrt(variance + noise), rtol=1e-3)

    def test_centres_predict_and_say_so(self, rng, capsys):
        X, y = wave(rng, n=600)
        fitted = regressor(centres=60, epochs=10, verbose=1).fit(X[:500], y[:500])
        assert fitted.score(X[500:], y[500:]) > 0.9
        assert len(fitted._ensemble.anchors) == fitted.approximation_["centres"] <= 60
        assert all(0.0 <= e < 0.5 for e in fitted.approximation_["kernel_error"])
        assert "centres" in capsys.readouterr().out
        _, std = fitted.predict(X[500:], return_std=True)
        assert np.all(std > 0.0)
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
        exact = regressor(epochs=0).fit(X[:100], y[:100])
        assert exact.approximation_ is None

    def test_rows_held_out_do_not_train(self, rng, monkeypatch):
        X, y = wave(rng, n=300)
        found = []
        monkeypatch.setattr(
            base, "fit_many", lambda *args: found.append(args[2]) or fit_many(*args)
        )
        fit_many = many_rows.fit_many
        classifier(centres=50, epochs=2).fit(
            X, y > 0.0, sample_weight=rng.integers(1, 3, 300)
        )
        (table,) = found
        assert not set(table.held) & set(table.rest)
        assert set(table.centres) <= set(table.rest)
        assert len(table.held) + len(table.rest) == 300
        seen = []
        run = Descent.run
        monkeypatch.setattr(
            Descent,
            "run",
            lambda self, x, *a: seen.append(np.asarray(x)) or run(self, x, *a),
        )
        regressor(centres=50, epochs=2).fit(X, y)
        (_, table) = found
        trained = set(map(tuple, np.concatenate(seen).tolist()))
        assert not trained & set(map(tuple, table.x[table.held].tolist()))

    def test_weights_count_with_centres(self, rng):
        X, y = wave(rng, n=200)
        counts = rng.integers(0, 3, 200)
        order = np.repeat(np.arange(200), counts)
        weighted = regressor(centres=50).fit(X, y, sample_weight=counts)
        repeated = regressor(centres=50).fit(X[order], y[order])
        np.testing.assert_array_equal(weighted.predict(X), repeated.predict(X))
        assert np.max(
            np.abs(weighted.predict(X) - regressor(centres=50).fit(X, y).predict(X))
        )

    def test_primal_and_dual_forms_agree(self, rng, monkeypatch):
        X, y = wave(rng, n=80)
        fitted = regressor(networks=2, epochs=10)
        monkeypatch.setattr(cross_fitting, "DOUBT", 1e9)  # five of whatever kernel
        fitted.fit(X, np.column_stack([y, X[:, 0]]))
        assert len({key.share for key in fitted.machines_}) > 1
        expected = fitted.predict(X)
        monkeypatch.setattr(ensemble, "DUAL_ROWS", 10)
        np.testing.assert_allclose(fitted.predict(X), expected, rtol=1e-5, atol=1e-6)

    def test_exact_machines_that_do_not_fit_are_refused(self, rng, monkeypatch):
        monkeypatch.setattr(base, "EXACT_ROWS", 20)
        monkeypatch.setattr(base.memory, "available", lambda: 1000)
        X, y = wave(rng, n=24)
        with pytest.raises(ValueError, match="`centres` must say how many of the 24 rows"):
            regressor(centres=None).fit(X, y)


class Fixed(Kernel):
    """The kernel of a fitted estimator as `GaussianProcessRegressor` calls one."""

    def __init__(self, fitted):
        self.fitted = fitted

    def __call__(self, a, b=None, eval_gradient=False):
        ((weights, unit),) = next(iter(self.fitted._ensemble.states.values()))
        (key,) = self.fitted.machines_
        bench = self.fitted._bench(a.shape[1])
        bench.network.set_weights(weights)
        b = a if b is None else b
        assert key.share == 0.0
        return bench.cross(a, b) / unit

    def diag(self, a):
        return np.diag(self(a))

    def is_stationary(self):
        return False

    def __sklearn_clone__(self):
        return self


def inputs_of(fitted, X):
    """What the networks take."""
    return fitted.preprocessor_.transform(fitted._table(X, "no_validation", reset=False))


def adult(folder, rows):
    """Rows of adult; its nominal columns, coded by numbers in the files, as text."""
    path = folder / "uci" / "adult" / "adult_train_R.dat"
    table = pd.read_csv(path, sep="\t", index_col=0, nrows=rows)
    y = table.pop("clase").to_numpy()
    for name in ("f2", "f4", "f6", "f7", "f8", "f9", "f10", "f14"):
        table[name] = table[name].map("code {:.3f}".format).astype(object)
    return table, y
