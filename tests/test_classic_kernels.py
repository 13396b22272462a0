"""Kernels that are a formula, and kernels of kernels: right values, gradients, and use."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from kernel_cases import CASES, COMBINATIONS, FORMULAS
from scipy.integrate import quad
from sklearn.gaussian_process import kernels as of_processes
from sklearn.metrics import pairwise

import keras_kare as kk

k = kk.kernels
D = 5


@pytest.fixture
def rows(rng):
    """Rows, among which some are equal, and others nearly so."""
    x = rng.normal(size=(12, D))
    x[5], x[6] = x[2], x[3] + 1e-7
    return x


def same(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("float64")
class TestValues:
    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda: k.Gaussian(0.7), of_processes.RBF(0.7)),
            (lambda: k.Laplace(1.3), of_processes.Matern(1.3, nu=0.5)),
            (
                lambda: k.Laplace(2.0, distance="l1"),
                lambda *x: pairwise.laplacian_kernel(*x, gamma=0.5),
            ),
            (lambda: k.Matern(0.5, 0.7), of_processes.Matern(0.7, nu=0.5)),
            (lambda: k.Matern(1.5, 0.7), of_processes.Matern(0.7, nu=1.5)),
            (lambda: k.Matern(2.5, 0.7), of_processes.Matern(0.7, nu=2.5)),
            (lambda: k.Polynomial(), pairwise.polynomial_kernel),
            (
                lambda: k.Polynomial(2, 0.5, 0.0),
                lambda *x: pairwise.polynomial_kernel(*x, degree=2, gamma=0.5, coef0=0.0),
            ),
        ],
    )
    def test_are_those_of_scikit_learn(self, make, expected, rows):
        kernel = make()
        same(kernel.gram(rows), expected(rows))
        same(kernel.cross(rows[:4], rows), expected(rows[:4], rows))
        same(kernel.diag(rows), np.diag(expected(rows)))

    def test_scales_of_columns_are_those_of_scikit_learn(self, rows):
        lengths = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
        kernel = k.Gaussian(1.0, metric="diagonal")
        kernel.build(rows.shape)
        kernel.log_scale.assign(np.log(lengths))
        same(kernel.gram(rows), of_processes.RBF(lengths)(rows))

    def test_a_full_metric_is_mahalanobis(self, rows, rng):
        kernel = k.Laplace(2.0, metric="full")
        kernel.build(rows.shape)
        factor = rng.normal(size=(D, D))
        kernel.factor.assign(factor)
        same(kernel.gram(rows), k.Laplace(2.0).gram(rows @ factor))
        apart = rows[:, None] - rows
        squares = np.einsum("ijk,kl,ijl->ij", apart, factor @ factor.T, apart)
        same(kernel.gram(rows), np.exp(-np.sqrt(squares) / 2.0), 1e-8)

    @pytest.mark.parametrize("order", [0, 1, 2])
    def test_arc_cosine_is_the_mean_over_random_units(self, order):
        """`2 E[Θ(w·x) Θ(w·x') (w·x)^p (w·x')^p]` in a plane, by an integral over angles."""
        x = np.array([[1.0, 0.0], [0.6, 1.9]])
        angle = np.arctan2(x[1, 1], x[1, 0])
        radial = {0: 1.0, 1: 2.0, 2: 8.0}[order]  # ∫ r^(2p+1) exp(-r²/2) dr

        def both(phi, theta):
            return (np.cos(phi) * np.cos(phi - theta)) ** order

        for i, j, theta in ((0, 0, 0.0), (0, 1, angle)):
            around = quad(both, theta - np.pi / 2, np.pi / 2, (theta,))[0]
            size = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
            expected = 2.0 * radial * around / (2.0 * np.pi) * size**order
            same(k.ArcCosine(order).gram(x)[i, j], expected, 1e-9)

    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("scale", [1e-22, 1e-3, 1e19])
    def test_arc_cosine_of_steps_does_not_depend_on_scale(self, scale, depth, rng):
        x = rng.normal(size=(6, 3))
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        expected = u @ u.T
        for _ in range(depth):
            expected = 1.0 - np.arccos(np.clip(expected, -1.0, 1.0)) / np.pi
        given = tf.constant((scale * x).astype("float32"))
        weights = rng.normal(size=(6, 6))
        slopes = []
        for rows, dtype in ((given, "float32"), (tf.constant(x), "float64")):
            with tf.GradientTape() as tape:
                tape.watch(rows)
                found = k.ArcCosine(0, depth, dtype=dtype).gram(rows)
                total = tf.reduce_sum(found * weights)
            same(found, expected, 1e-3 if depth > 1 else 1e-5)
            slopes.append(np.array(tape.gradient(total, rows)))
        same(scale * slopes[0].astype("float64"), slopes[1], 1e-3)

    @pytest.mark.parametrize("bias", [0.0, 0.7])
    @pytest.mark.parametrize(("order", "depth"), [(0, 1), (0, 3), (1, 1), (2, 1)])
    def test_arc_cosine_is_right_to_the_last_digits_of_near_rows(self, order, depth, bias):
        """Against its formula in wider numbers, of angles from 0 and 1e-12 to 3."""
        small = [1e-12, 1e-9, 1e-7] if depth == 1 else []  # whose roots lose digits
        angles = [0.0, *small, 1e-2, 0.1, 1.0, 3.0, 0.0]
        x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x[-6:-3] *= 3.0
        wide = np.column_stack([x, np.full(len(x), bias)]).astype("longdouble")
        sizes = np.sqrt(np.sum(wide**2, axis=1))
        u = wide / sizes[:, None]
        apart, along = u[:, None] - u, u[:, None] + u
        t = 2 * np.arctan2(*(np.sqrt(np.sum(part**2, axis=2)) for part in (apart, along)))
        pi = 4 * np.arctan(np.longdouble(1))
        for _ in range(depth - 1):  # of order 0, whose cosine is `1 − θ/π`
            t = 2 * np.arctan2(np.sqrt(t / pi), np.sqrt(2 - t / pi))
        s, c, power = np.sin(t), np.cos(t), (sizes[:, None] * sizes) ** order
        j = [pi - t, s + (pi - t) * c, 3 * s * c + (pi - t) * (1 + 2 * c**2)][order]
        expected = (power * j / pi).astype("float64")
        kernel = k.ArcCosine(order, depth, bias)
        for found in (kernel.gram(x), kernel.cross(x, x)):
            same(found, expected, 1e-14 * np.max(expected))
        same(np.diag(kernel.cross(x, x)), kernel.diag(x), 1e-14 * np.max(expected))

    def test_rows_of_zeros_are_at_right_angles_to_others(self):
        x = np.array([[0.0, 0.0], [1.0, 2.0], [-3.0, 1.0], [0.0, 0.0]])
        for found in (k.ArcCosine(0).gram(x), k.ArcCosine(0).cross(x, x)):
            same(found[0], [1.0, 0.5, 0.5, 1.0])
        same(k.ArcCosine(1).gram(x)[0], np.zeros(4))

    def test_layers_of_arc_cosine_are_kernels_of_kernels(self, rows):
        deep, flat = k.ArcCosine(1, depth=2).gram(rows), k.ArcCosine(1).gram(rows).numpy()
        root = np.linalg.cholesky(flat + 1e-12 * np.eye(12))  # rows with these products
        same(deep, k.ArcCosine(1).gram(root), 1e-5)

    def test_categories_count_differences(self, rng):
        codes = rng.integers(3, size=(9, 4)).astype(float)
        lengths = np.array([0.5, 1.0, 2.0, 1e9])
        kernel = k.Categorical(metric="diagonal")
        kernel.build(codes.shape)
        kernel.log_scale.assign(np.log(lengths))
        unlike = codes[:, None] != codes
        same(kernel.gram(codes), np.exp(-np.sum(unlike / lengths, axis=2)))

    @pytest.mark.parametrize("dtype", [None, "float32"])
    @pytest.mark.parametrize("first", [0, 10**8, 2**60])
    def test_large_codes_are_compared_as_integers(self, first, dtype):
        codes = (first + np.arange(60))[:, None]
        expected = np.where(np.eye(60) > 0.0, 1.0, np.exp(-1.0))
        kernel = k.Categorical()
        for verb in (kernel.gram, tf.function(kernel.gram)):
            same(verb(tf.constant(codes), dtype), expected, 1e-7)
        same(kernel.cross(codes[:7], codes.astype("uint64")), expected[:7], 1e-7)
        same(kernel.diag(codes), np.ones(60))

    def test_integers_of_every_type_are_codes(self):
        codes = np.array([[0], [1], [1]])
        expected = k.Categorical().gram(codes)
        for dtype in ("int8", "uint8", "int32", "uint32", "bool", "float16", "float64"):
            other = codes.astype(dtype)
            same(k.Categorical().gram(other), expected)
            same(k.Categorical().cross(codes, other), expected)

    def test_combinations(self, rows):
        one, other = k.Gaussian(1.0), k.Polynomial(2)
        gram, more = one.gram(rows).numpy(), other.gram(rows).numpy()
        same((one + other).gram(rows), gram + more)
        same((one * other).gram(rows), gram * more)
        same(sum([one, other]).gram(rows), gram + more)
        same((3.0 * one).gram(rows), 3.0 * gram)
        same((one * 3).diag(rows), 3.0 * np.diag(gram))
        size = np.sqrt(np.diag(more))
        same(k.Normalized(other).gram(rows), more / size / size[:, None])
        few = k.Gaussian(1.0).gram(rows[:, [3, 0]])
        same(k.On(k.Gaussian(1.0), [3, -5]).gram(rows), few)
        both = {"a": rows[:, :2], "b": rows[:, 2:]}
        apart = k.On(k.Gaussian(1.0), "a") * k.On(k.Gaussian(1.0), "b")
        same(apart.gram(both), gram)

    def test_features_of_networks(self, rng):
        hidden, last = keras.layers.Dense(7, "tanh"), keras.layers.Dense(2)
        network = keras.Sequential([keras.Input((D,)), hidden, last])
        x = rng.normal(size=(6, D))
        phi, out = np.asarray(hidden(x)), np.asarray(network(x))
        same(k.Conjugate(network).gram(x), phi @ phi.T / 7)
        same(k.Deep(network, k.Laplace(0.5)).gram(x), k.Laplace(0.5).gram(out))

    def test_the_median_is_that_of_the_rows(self, rows):
        different = np.delete(rows, 5, axis=0)  # as the third
        apart = np.linalg.norm(different[:, None] - different, axis=2)
        median = np.median(apart[np.triu_indices(11, 1)])
        kernel = k.Gaussian()
        kernel.gram(rows)
        same(np.exp(kernel.log_scale.numpy()), median)
        kernel.gram(2.0 * rows)
        same(np.exp(kernel.log_scale.numpy()), median)
        kernel.adapt(2.0 * rows)
        same(np.exp(kernel.log_scale.numpy()), 2.0 * median)

    def test_tiles_change_nothing(self, rng):
        x = rng.normal(size=(70, D))
        for make in (k.Gaussian, k.Polynomial):
            whole, few = make(), make(memory_limit=16 * 8 * 8 * 70)
            same(few.gram(x), whole.gram(x))
            same(few.cross(x, x[:9]), whole.cross(x, x[:9]))


OF_NETWORKS = ("deep", "deep, of features", "conjugate")
CHECKED = {name: CASES[name] for name in (*FORMULAS, *COMBINATIONS, *OF_NETWORKS)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CHECKED.values(), ids=CHECKED)
class TestGradients:
    def test_of_kare_are_finite_differences(self, case, rng):
        keras.utils.set_random_seed(0)
        kernel = case.make()
        x, y = case.rows(kernel, 14, rng), rng.normal(size=(14, 2))
        x = np.round(x) if isinstance(kernel, k.Categorical) else x

        def kare():
            return kk.risk.kare(y, kernel.gram(x), 0.1)

        with tf.GradientTape() as tape:
            value = kare()
        variables = kernel.trainable_variables
        gradients = tape.gradient(value, [v.value for v in variables])
        for variable, gradient in zip(variables, gradients, strict=True):
            start, moved = variable.numpy().copy(), rng.normal(size=variable.shape)
            values = []
            for step in (1e-5, -1e-5):
                variable.assign(start + step * moved)
                values.append(float(kare()))
            variable.assign(start)
            slope = 0.0 if gradient is None else float(np.sum(gradient * moved))
            assert slope == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)

    def test_are_finite_for_equal_rows(self, case, rng):
        keras.utils.set_random_seed(0)
        kernel = case.make()
        x = np.repeat(case.rows(kernel, 4, rng), 3, axis=0)
        y = rng.normal(size=(12, 12))
        for scale in (1.0, 1e-8, 0.0, 1e4):
            with tf.GradientTape() as tape:
                gram = kernel.gram(scale * x)
                value = tf.reduce_sum(gram * y)
            gradients = tape.gradient(value, [v.value for v in kernel.trainable_variables])
            assert np.all(np.isfinite(gram))
            for gradient in filter(lambda g: g is not None, gradients):
                assert np.all(np.isfinite(gradient))


FUZZED = {
    "gaussian": k.Gaussian,
    "gaussian, diagonal": lambda **given: k.Gaussian(metric="diagonal", **given),
    "laplace, full": lambda **given: k.Laplace(metric="full", **given),
    "laplace of l1": lambda **given: k.Laplace(distance="l1", **given),
    "matern 1.5": k.Matern,
    "matern 2.5": lambda **given: k.Matern(2.5, **given),
    "gaussian of features": lambda **given: k.Gaussian(features=8, **given),
    "laplace of features": lambda **given: k.Laplace(features=8, **given),
    "polynomial": lambda **given: k.Polynomial(2, **given),
    "arc-cosine 0": lambda **given: k.ArcCosine(0, **given),
    "arc-cosine 1, deep": lambda **given: k.ArcCosine(1, depth=3, bias=0.1, **given),
    "arc-cosine 2": lambda **given: k.ArcCosine(2, **given),
    "categorical": lambda **given: k.Categorical(metric="diagonal", **given),
    "infinite relu": lambda **given: k.InfiniteWidth(3, bias_std=0.1, **given),
    "infinite erf": lambda **given: k.InfiniteWidth(2, "erf", **given),
    "infinite gelu": lambda **given: k.InfiniteWidth(1, "gelu", kind="nngp", **given),
    "normalized": lambda **given: k.Normalized(k.Polynomial(2, **given)),
    "sum": lambda **given: k.Laplace(**given) + 0.5 * k.Polynomial(1, **given),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", FUZZED.values(), ids=FUZZED)
def test_any_shape_and_scale_is_finite(make, dtype):
    """One row to nine, one column to six, some equal or zero, of sizes 1e-7 to 1e7."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        n, d = rng.integers(1, 10), rng.integers(1, 7)
        x = 10.0 ** rng.uniform(-7, 7) * rng.normal(size=(n, d))
        x[rng.random(n) < 0.2] = x[0]
        x[rng.random(n) < 0.1] = 0.0
        kernel = make(dtype=dtype)
        x = tf.constant(x, dtype)
        with tf.GradientTape() as tape:
            gram = kernel.gram(x)
            total = tf.reduce_sum(gram)
        gradients = tape.gradient(total, [v.value for v in kernel.trainable_variables])
        for values in (gram, kernel.cross(x[:1], x), kernel.diag(x), *gradients):
            assert values is None or np.all(np.isfinite(values))
        size = np.max(np.abs(gram), initial=np.finfo(dtype).tiny)
        tolerance = 1e-4 if dtype == "float32" else 1e-9
        assert np.max(np.abs(gram - tf.transpose(gram))) <= tolerance * size
        lowest = np.linalg.eigvalsh(gram.numpy().astype("float64") / size)[0]
        assert lowest >= -10.0 * tolerance


class TestUse:
    def test_float64_distances_of_near_rows(self, rng):
        x = 100.0 + rng.normal(size=(30, 3))
        x[1], x[2] = x[0], x[0] + 1e-7
        apart = np.linalg.norm(x[:, None] - x, axis=2)
        for gram in (lambda kernel: kernel.gram(x), lambda kernel: kernel.cross(x, x)):
            found = gram(k.Laplace(1e-3, dtype="float64"))
            expected = np.exp(-apart / 1e-3)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-300)
            assert np.all(np.diag(found) == 1.0)

    @pytest.mark.parametrize("metric", ["isotropic", "diagonal", "full"])
    @pytest.mark.parametrize(
        "make",
        [k.Gaussian, k.Laplace, functools.partial(k.Matern, 1.5)],
    )
    def test_float32_distances_of_shifted_rows(self, make, metric, rng):
        x = (1e4 + rng.normal(size=(50, 3))).astype("float32")
        found = make(0.7, metric=metric, dtype="float32").gram(x)
        expected = make(0.7, dtype="float64").gram(x.astype("float64") - 1e4)
        same(found, expected, 3e-6)

    def test_float32_distances_of_near_rows(self, rng):
        x = (100.0 + rng.normal(size=(30, D))).astype("float32")
        x[1] = x[0] + np.float32(1e-3)
        expected = k.Laplace(1.0).gram(x, dtype="float64")
        same(k.Laplace(1.0).gram(x), expected, 1e-4)

    def test_kare_finds_the_columns_that_matter(self, rng):
        """Two of twenty: `n = 500`, noise 0.1."""
        x = rng.normal(size=(1500, 20)).astype("float32")
        f = np.sin(2.0 * x[:, :1]) + 0.5 * x[:, 1:2] ** 2
        y = f + 0.1 * rng.normal(size=f.shape)
        errors = {}
        for metric in ("isotropic", "diagonal"):
            model = kk.KAREModel(k.Gaussian(metric=metric))
            model.compile(keras.optimizers.Adam(0.1), kk.losses.KARE(ridge=1e-3))
            chosen_on = x[500:700], y[500:700]
            model.fit(x[:500], y[:500], epochs=60, verbose=0, validation_data=chosen_on)
            errors[metric] = np.mean((model.predict(x[700:]) - y[700:]) ** 2)
        assert 3.0 * errors["diagonal"] < errors["isotropic"]
        lengths = np.exp(model.kernel.log_scale.numpy())
        assert set(np.argsort(lengths)[:2]) == {0, 1}

    def test_monks_2_is_solved(self, data_folder):
        """Exactly two of six codes have their first value: NTK-KARE has 69 %."""
        data = kk.datasets.load_uci("monks-2", data_folder / "uci")
        codes = [np.unique(c, return_inverse=True)[1] for c in data.x.T]
        x = np.hstack([np.eye(np.max(c) + 1)[c] for c in codes]).astype("float32")
        right = []
        for train, test in data.folds:
            model = kk.KAREModel(k.Laplace(metric="full"))
            loss = kk.losses.KARE(ridge=0.1, relative=True)
            model.compile(keras.optimizers.Adam(0.02), loss)
            model.fit(x[train], data.labels[train], epochs=150, verbose=0)
            right.append(np.mean(model.predict_classes(x[test]) == data.labels[test]))
        assert np.mean(right) >= 0.95

    @pytest.mark.parametrize(
        "name",
        [
            "gaussian, full",
            "gaussian of features",
            "infinite width, relu",
            "columns",
            "deep",
            "deep, of features",
            "conjugate",
        ],
    )
    def test_exports_predict_the_same(self, name, rng, tmp_path):
        kernel = CASES[name].make()
        x = CASES[name].rows(kernel, 20, rng).astype("float32")
        model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1))
        model.fit_head(x, x[:, :1])
        expected = model.predict(x)
        for form in ("primal", "dual") if kernel.has_features else ("dual",):
            model.export(tmp_path / form, form=form, verbose=False)
            served = tf.saved_model.load(str(tmp_path / form))
            np.testing.assert_allclose(served.serve(tf.constant(x)), expected, atol=1e-4)

    @pytest.mark.parametrize("name", ["gaussian, full", "product", "deep", "ntk"])
    def test_exports_take_the_form_that_there_is(self, name, rng, tmp_path):
        kernel = CASES[name].make()
        x = CASES[name].rows(kernel, 20, rng).astype("float32")
        model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1))
        model.fit_head(x, x[:, :1])
        model.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(
            served.serve(tf.constant(x)), model.predict(x), atol=1e-4
        )
        if not kernel.has_features:
            with pytest.raises(ValueError, match='`form` must be "dual" for'):
                model.export(tmp_path / "other", form="primal")

    def test_a_model_of_a_network_and_a_formula_trains_and_is_saved(self, rng, tmp_path):
        dense = keras.layers.Dense
        network = keras.Sequential([keras.Input((D,)), dense(8, "gelu"), dense(1)])
        x = rng.normal(size=(60, D)).astype("float32")
        model = kk.KAREModel(k.NTK(network) + 0.5 * k.Laplace())
        model.compile(keras.optimizers.Adam(0.01), kk.losses.KARE(ridge=0.1))
        rows = {"validation_data": (x[40:], x[40:, :1]), "verbose": 0}
        losses = model.fit(x[:40], x[:40, :1], epochs=5, **rows).history["loss"]
        assert losses[-1] < losses[0]
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        np.testing.assert_allclose(loaded.predict(x), model.predict(x), atol=1e-6)


@pytest.mark.usefixtures("float64")
class TestRandomFeatures:
    @pytest.mark.parametrize(
        "make",
        [
            k.Gaussian,
            k.Laplace,
            lambda *given, **more: k.Laplace(*given, distance="l1", **more),
            lambda *given, **more: k.Matern(0.5, *given, **more),
            lambda *given, **more: k.Matern(1.5, *given, **more),
            lambda *given, **more: k.Matern(2.5, *given, **more),
        ],
    )
    def test_errors_fall_like_the_root_of_their_number(self, make, rng):
        """A value's variance is `(1 + K(2(x − x')) − 2 K(x − x')²)/p`: at most `1/p`."""
        x, counts = rng.normal(size=(60, 3)), (16, 256, 4096)
        exact, errors = make(1.5).gram(x).numpy(), []
        for count in counts:
            draws = []
            for seed in range(8):
                kernel = make(1.5, "isotropic", features=count, seed=seed)
                apart = np.abs(kernel.gram(x) - exact)
                told = kernel.features_error(x)
                same(told["root_mean_square"], np.sqrt(np.mean(apart**2)))
                same(told["largest"], np.max(apart))
                draws.append(np.mean(apart**2))
            errors.append(np.sqrt(np.mean(draws)))
            assert errors[-1] <= 1.2 * count**-0.5
        slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert slope == pytest.approx(-0.5, abs=0.07)

    def test_are_the_map_of_rows_in_the_metric(self, rows, rng):
        kernel = k.Gaussian(2.0, metric="full", features=6)
        kernel.build(rows.shape)
        kernel.factor.assign(rng.normal(size=(D, D)))
        w = kernel.factor.numpy() @ kernel.frequencies.numpy() / 2.0
        phi = np.hstack([np.cos(rows @ w), np.sin(rows @ w)]) / np.sqrt(3.0)
        same(kernel.gram(rows), phi @ phi.T)
        same(kernel.feature_rows(rows), phi)

    @pytest.mark.parametrize(
        ("make", "near"), [(k.Gaussian, True), (k.Matern, True), (k.Laplace, False)]
    )
    def test_derivatives_come_near_where_frequencies_have_a_variance(self, make, near, rng):
        x, upstream = rng.normal(size=(40, 3)), rng.normal(size=(40, 40))

        def slope(**features):
            kernel = make(1.5, **features)
            kernel.build((None, 3))
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(kernel.gram(x) * upstream)
            return float(tape.gradient(value, kernel.log_scale.value))

        exact = slope()
        apart = [slope(features=4096, seed=seed) / exact - 1.0 for seed in range(8)]
        error = np.sqrt(np.mean(np.square(apart)))
        assert error < 0.15 if near else error > 1.0

    def test_tiles_change_nothing(self, rng):
        x = rng.normal(size=(70, D))
        whole, few = (
            k.Laplace(2.0, features=10, memory_limit=limit) for limit in (None, 71680)
        )
        assert few.features_error(x) == pytest.approx(whole.features_error(x))
        same(few.gram(x), whole.gram(x))

    def test_what_they_are_is_part_of_the_architecture(self, rows):
        kernels = [
            k.Gaussian(2.0, features=count, seed=seed)
            for count, seed in ((None, 0), (None, 1), (8, 0), (8, 1), (16, 0))
        ]
        for kernel in kernels:
            kernel.build(rows.shape)
        found = [kernel.architecture() for kernel in kernels]
        assert len({*found[2:]} | {found[0]}) == 4
        copy = k.Gaussian.from_config(kernels[3].get_config())
        same(copy.gram(rows), kernels[3].gram(rows), 0.0)
        assert copy.fingerprint() == kernels[3].fingerprint()

    def test_heads_predict_by_them(self, rng, tmp_path):
        """In the primal form unless another is asked for; through parts, too."""
        x = rng.normal(size=(60, 3))
        y = np.sin(x[:, :1])
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        for kernel in (
            k.Gaussian(features=64),
            2.0 * k.Matern(features=32) + k.Gaussian(features=32),
            k.Deep(network, k.Laplace(features=64)),
        ):
            model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=1e-3))
            model.fit_head(x[:40], y[:40])
            assert model.head.report["form"] == "primal"
            model.save(tmp_path / "model.keras")
            loaded = keras.saving.load_model(tmp_path / "model.keras")
            assert loaded.kernel.fingerprint() == kernel.fingerprint()
            same(loaded.predict(x), model.predict(x), 0.0)
            dual = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=1e-3, form="dual"))
            same(dual.fit_head(x[:40], y[:40]).predict(x), model.predict(x), 1e-8)


class TestFeatureMachines:
    @pytest.mark.usefixtures("float64")
    def test_outer_products_are_those_of_central_differences(self, rng):
        x = rng.normal(size=(30, D))
        y = np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1)
        dense = keras.layers.Dense
        network = keras.Sequential([keras.Input((D,)), dense(6, "tanh"), dense(1)])
        for kernel in (k.Gaussian(), k.Laplace(metric="full"), k.NTK(network)):
            model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1)).fit_head(x, y)
            new = rng.normal(size=(7, D))
            slopes = np.stack(
                [
                    (model.predict(new + step) - model.predict(new - step)) / 2e-5
                    for step in 1e-5 * np.eye(D)
                ],
                axis=1,
            )
            expected = np.einsum("ndc,nec->de", slopes, slopes) / 7
            np.testing.assert_allclose(model.agop(new), expected, atol=1e-6)

    def test_a_metric_is_mahalanobis(self, rows, rng):
        root = rng.normal(size=(D, D))
        m = root @ root.T
        full = k.Laplace(1.0, metric="full", dtype="float64")
        full.gram(rows)
        full.set_metric(m)
        mapped = rows @ np.linalg.cholesky(m / np.mean(np.diag(m)))
        same(full.gram(rows), k.Laplace(1.0, dtype="float64").gram(mapped), 1e-9)
        diagonal = k.Laplace(1.0, metric="diagonal", dtype="float64")
        diagonal.gram(rows)
        for _ in range(2):  # nothing piles up
            diagonal.set_metric(m)
            lengths = np.sqrt(np.mean(np.diag(m)) / np.diag(m))
            same(np.exp(diagonal.log_scale.numpy()), lengths)

    @pytest.mark.parametrize("metric", ["full", "diagonal"])
    def test_medians_are_in_the_metric(self, rows, rng, metric):
        kernel = k.Gaussian(metric=metric, dtype="float64")
        kernel.gram(rows)
        kernel.set_metric(np.diag([1.0, 4.0, 0.0, 1.0, 9.0]))
        kernel.adapt(rows)
        different = np.delete(rows, 5, axis=0)  # as the third
        near = -2.0 * np.log(kernel.gram(different).numpy())[np.triu_indices(11, 1)]
        same(np.median(near[near > 0.0]), 1.0, 1e-9)

    @pytest.mark.parametrize("metric", ["full", "diagonal"])
    def test_rounds_find_the_columns_that_matter(self, rng, metric):
        x = rng.normal(size=(700, 10)).astype("float32")
        y = np.sign(x[:, :1] * x[:, 1:2])
        model = kk.KAREModel(k.Laplace(metric=metric), kk.NTKRidgeHead(ridge=1e-2))
        right = []
        for _ in range(4):
            model.fit_head(x[:400], y[:400])
            right.append(np.mean(np.sign(model.predict(x[400:])) == y[400:]))
            model.kernel.set_metric(model.agop(x[:400]))
            model.kernel.adapt(x[:400])
        assert right[-1] > right[0] + 0.1
        assert set(np.argsort(np.diag(model.agop(x[:400])))[-2:]) == {0, 1}

    def test_bad_input(self, rows):
        kernel = k.Laplace(1.0, metric="full")
        with pytest.raises(ValueError, match=r"has seen rows.*Received"):
            kernel.set_metric(np.eye(D))
        kernel.gram(rows)
        for bad in (np.eye(D - 1), np.zeros((D, D)), np.triu(np.ones((D, D)))):
            with pytest.raises(ValueError, match=r"`matrix` must be symmetric.*Received"):
                kernel.set_metric(bad)
        indefinite = np.diag([12.0, -2.0] + [1.0] * (D - 2))
        for other in (kernel, k.Gaussian(1.0, metric="diagonal")):
            other.gram(rows)
            with pytest.raises(ValueError, match="`matrix` must be positive semi-definite"):
                other.set_metric(indefinite)
            other.set_metric(np.diag([12.0, -1e-6] + [1.0] * (D - 2)))  # as float32 rounds
        model = kk.KAREModel(k.Categorical()).fit_head(np.eye(4, dtype=int), np.arange(4.0))
        with pytest.raises(ValueError, match="`x` must be one array of rows of floats"):
            model.agop(np.eye(4, dtype=int))


NO_SCALE = '`scale` must be a positive finite number or "median"'


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: k.Gaussian(scale=0.0), NO_SCALE),
            (lambda: k.Gaussian(scale="mean"), NO_SCALE),
            (lambda: k.Gaussian(metric="euclid"), "`metric`"),
            (lambda: k.Laplace(distance="l3"), "`distance`"),
            (lambda: k.Gaussian(features=3), "`features` must be an even whole number"),
            (lambda: k.Laplace(features=0), "`features` must be an even whole number"),
            (lambda: k.Matern(features=2.0), "`features` must be an even whole number"),
            (lambda: k.Gaussian(features=2, seed=-1), "`seed`"),
            (lambda: k.Gaussian().features_error(np.eye(2)), "one with `features`"),
            (lambda: k.Matern(nu=1.0), "`nu` must be 0.5, 1.5 or 2.5"),
            (lambda: k.Polynomial(degree=0), "`degree`"),
            (lambda: k.Polynomial(gamma=-1.0), "`gamma` must be a positive finite"),
            (lambda: k.Polynomial(offset=-1.0), "`offset`"),
            (lambda: k.ArcCosine(order=3), "`order`"),
            (lambda: k.ArcCosine(depth=0), "`depth`"),
            (lambda: k.Categorical(scale="median"), "`scale`"),
            (lambda: -1.0 * k.Gaussian(), "`weight` must be a positive finite number"),
            (lambda: k.On(k.Gaussian(), []), "`columns` must be"),
            (lambda: k.On(k.Gaussian(), [0.5]), "`columns` must be"),
            (lambda: k.Gaussian(memory_limit=-1), "`memory_limit`"),
        ],
    )
    def test_arguments(self, make, message):
        with pytest.raises(ValueError, match=f"{message}.*Received"):
            make()

    def test_no_kernels(self):
        for make in (
            lambda: k.Gaussian() + 1.0,
            lambda: k.Gaussian() * "a",
            lambda: k.Normalized(keras.layers.Dense(1)),
            lambda: k.Sum([]),
            lambda: k.Deep(keras.layers.Dense(1), k.Gaussian()),
        ):
            with pytest.raises(TypeError, match="Received"):
                make()
        network = keras.Sequential([keras.Input((D,)), keras.layers.Dense(2)])
        with pytest.raises(ValueError, match="full"):
            k.NTK(network, outputs="full") + k.Gaussian()

    def test_rows_without_columns(self):
        for kernel in (k.Gaussian(), k.Polynomial(), k.Categorical(), k.ArcCosine()):
            with pytest.raises(ValueError, match="`x` must have at least one column"):
                kernel.gram(np.zeros((4, 0)))
            with pytest.raises(ValueError, match="`x` must have at least one column"):
                kk.KAREModel(kernel).fit_head(np.zeros((4, 0)), np.zeros(4))

    def test_values_that_overflow_are_refused_by_name(self, rng):
        x = (1e13 * rng.normal(size=(8, 3))).astype("float32")
        for kernel in (k.Polynomial(3), k.InfiniteWidth(1), k.ArcCosine(2)):
            rows = 1e10 * x
            message = "overflow float32, since the numbers of `x1?`"
            with pytest.raises(ValueError, match=message):
                kernel.gram(rows)
            with pytest.raises(ValueError, match=message):
                kernel.cross(rows, rows)
            model = kk.KAREModel(kernel)
            model.compile(loss=kk.losses.KARE(ridge=0.1, relative=True))
            with pytest.raises(ValueError, match=message):
                model.fit(rows, rng.normal(size=8), verbose=0)

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8, 1e19])
    @pytest.mark.parametrize("offset", [0.0, 2.0])
    def test_cosines_of_large_values_are_in_range(self, scale, offset, rng):
        x = (scale * rng.normal(size=(8, 3))).astype("float32")
        x[2] = 0.0
        wide = x.astype("longdouble")
        values = (0.5 * wide @ wide.T + offset) ** 3
        sizes = np.sqrt(np.where(np.diag(values) > 0.0, np.diag(values), 1.0))
        expected = (values / sizes / sizes[:, None]).astype("float64")
        for wrapped in (lambda inner: inner, lambda inner: k.On(inner, [0, 1, 2])):
            inner = k.Polynomial(3, 0.5, offset, dtype="float32")
            kernel = k.Normalized(wrapped(inner))
            same(kernel.gram(x), expected, 3e-6)
            same(tf.function(kernel.cross)(tf.constant(x[:4]), x), expected[:4], 3e-6)
            same(kernel.diag(x), np.diag(expected), 3e-6)
            model = kk.KAREModel(kernel)
            model.compile(loss=kk.losses.KARE(ridge=0.1, relative=True))
            history = model.fit(x, rng.normal(size=8), batch_size=8, verbose=0).history
            assert np.all(np.isfinite(history["loss"]))

    def test_variables_that_are_no_numbers_are_named(self, rows):
        kernel = k.Polynomial()
        kernel.build(rows.shape)
        kernel.log_gamma.assign(np.nan)
        with pytest.raises(ValueError, match=r"variable `.*log_gamma` holds NaN"):
            kernel.gram(rows)

    def test_codes_that_a_float_type_merges(self, rng):
        codes, y = 1e8 + np.arange(60.0), rng.normal(size=60)
        table = np.column_stack([rng.normal(size=60), codes])
        message = "`x` has codes that float32.*recode each column of codes from 0"
        kernel = k.On(k.Laplace(1.0), [0]) * k.On(k.Categorical(), [1])
        with pytest.raises(ValueError, match=message):
            kernel.gram(table)
        with pytest.raises(ValueError, match=message):
            k.Categorical().gram(codes[1:2, None])
        for use in (lambda m: m.fit(table, y, verbose=0), lambda m: m.fit_head(table, y)):
            model = kk.KAREModel(kernel)
            model.compile(loss=kk.losses.KARE())
            with pytest.raises(ValueError, match=message):
                use(model)
        table[:, 1] -= 1e8
        model.fit_head(table, y)
        with pytest.raises(ValueError, match=message):
            model.predict(table + np.array([0.0, 1e8 + 1]), verbose=0)
        k.Categorical().gram(np.array([[0.1], [0.2]]))  # both move, and stay apart

    def test_kare_of_large_codes(self, rng):
        codes, y = (10**8 + np.arange(60))[:, None], rng.normal(size=(60, 1))
        model = kk.KAREModel(k.Categorical())
        model.compile(loss=kk.losses.KARE(ridge=0.1))
        found = model.fit(codes, y, batch_size=60, verbose=0).history["loss"][0]
        gram = np.where(np.eye(60) > 0.0, 1.0, np.exp(-1.0)) / 60 + 0.1 * np.eye(60)
        inverse = np.linalg.inv(gram)
        y = y - y.mean()
        expected = np.mean(np.square(inverse @ y)) / (np.trace(inverse) / 60) ** 2
        assert found == pytest.approx(expected, rel=1e-2)

    @pytest.mark.parametrize(
        "make",
        [lambda: k.InfiniteWidth(2), k.Categorical, lambda: k.ArcCosine(0), k.Polynomial],
    )
    def test_rows_of_nan_have_no_values_in_graphs(self, make, rng):
        x = rng.normal(size=(4, 3)).astype("float32")
        kernel = make()
        expected = np.array(kernel.gram(x))
        x[1, 2] = np.nan
        expected[1] = expected[:, 1] = np.nan
        other = tf.constant(np.delete(x, 1, axis=0))
        same(tf.function(kernel.gram)(tf.constant(x)), expected, 1e-5)
        same(
            tf.function(kernel.cross)(tf.constant(x), other),
            np.delete(expected, 1, axis=1),
            1e-5,
        )
        same(tf.function(kernel.diag)(tf.constant(x)), np.diag(expected), 1e-5)

    def test_rows(self, rows):
        kernel = k.Laplace(1.0)
        for bad, message in (
            (rows[:, :, None], "must be one array of rows of numbers"),
            (rows[:, 0], "must be one array of rows of numbers"),
            (np.where(rows > 1.0, np.nan, rows), "NaN or Inf"),
            (rows.astype(str), "numbers"),
        ):
            with pytest.raises(ValueError, match=message):
                kernel.gram(bad)
        kernel.gram(rows)
        with pytest.raises(ValueError, match="must have 5 columns"):
            kernel.cross(rows, rows[:, :4])
        with pytest.raises(ValueError, match="that have the columns"):
            k.On(k.Laplace(1.0), [7]).gram(rows)
        with pytest.raises(ValueError, match="dictionary with the inputs"):
            k.On(k.Laplace(1.0), "a").gram(rows)
        with pytest.raises(ValueError, match=r"`kernel.adapt\(x\)` before"):
            tf.function(k.Laplace().gram)(tf.constant(rows))


TEXT_CASES = {
    "formula": k.Gaussian,
    "categories": k.Categorical,
    "several": lambda: k.Gaussian() + k.Polynomial(1),
    "columns": lambda: k.On(k.Gaussian(), [0, 1]),
    "network": lambda: k.NTK(small_network()) + 0.5 * k.Gaussian(),
    "deep": lambda: k.Deep(small_network(), k.Gaussian()),
}


def small_network():
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((D,)), dense(4, "gelu"), dense(2)])


@pytest.mark.parametrize("name", TEXT_CASES)
def test_text_is_refused_in_a_sentence_by_every_method(name, rng):
    x = rng.normal(size=(12, D)).astype("float32")
    model = kk.KAREModel(TEXT_CASES[name](), kk.NTKRidgeHead(ridge=0.1))
    model.fit_head(x, x[:, :1])
    text = x.astype(str)
    of_text = tf.data.Dataset.from_tensor_slices((text, x[:, :1])).batch(4)
    for call in (
        lambda: model.fit_head(text, x[:, :1]),
        lambda: model.predict(text),
        lambda: model.predict(of_text),
        lambda: model.predict_on_batch(text),
        lambda: model.evaluate(text, x[:, :1]),
        lambda: model.variance(text),
    ):
        with pytest.raises(ValueError, match=r"^`x1?` must hold numbers"):
            call()


def test_columns_of_lists_of_arrays_are_refused(rng):
    x = rng.normal(size=(12, D))
    with pytest.raises(ValueError, match=r"^`x` must be one array of rows.*2 arrays$"):
        k.On(k.Gaussian(), [0, 1]).gram([x, x])


THREADS = {
    "median": k.Gaussian,
    "metric": lambda: k.Laplace(metric="full"),
    "offset": k.Polynomial,
    "sum": lambda: k.On(k.Gaussian(), [0, 1]) + k.Categorical(),
    "deep": lambda: k.Deep(small_network(), k.Gaussian()),
    "unbuilt": lambda: k.NTK(keras.Sequential([keras.layers.Dense(4, "gelu")])),
}


@pytest.mark.parametrize("name", THREADS)
def test_threads_share_a_fresh_kernel(name, rng):
    x = rng.normal(size=(60, D)).astype("float32")
    kernel, together = THREADS[name](), threading.Barrier(4)

    def gram(_):
        together.wait()
        return kernel.gram(x).numpy()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(gram, range(4)))
    finally:
        sys.setswitchinterval(interval)
    for values in found:
        np.testing.assert_allclose(values, kernel.gram(x), rtol=1e-5, atol=1e-6)
    names = [variable.path for variable in kernel.weights]
    assert len(set(names)) == len(names)
