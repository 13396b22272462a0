"""KARE and leave-one-out: values, gradients, numerics."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare._linalg import inverse_cholesky


def system(rng, n=12, c=2, rank=5, dtype="float64"):
    b = rng.normal(size=(n, rank))
    return (rng.normal(size=(n, c))).astype(dtype), (b @ b.T + 0.1 * np.eye(n)).astype(
        dtype
    )


def plain_kare(y, gram, z):
    n = tf.shape(gram)[0]
    scale = tf.cast(n, gram.dtype)
    inverse = tf.linalg.inv(gram / scale + z * tf.eye(n, dtype=gram.dtype))
    return tf.reduce_mean((inverse @ y) ** 2) / (tf.linalg.trace(inverse) / scale) ** 2


def plain_leave_one_out(y, gram, z):
    """By really leaving each row out, with the ridge n z of the system held fixed."""
    n = len(gram)
    rows = []
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        matrix = gram[np.ix_(rest, rest)] + n * z * np.eye(n - 1)
        rows.append(gram[i, rest] @ np.linalg.solve(matrix, y[rest]))
    return np.array(rows)


def test_leave_one_out_leaves_one_out(rng):
    y, gram = system(rng)
    for z in (1e-3, 0.3, 10.0):
        np.testing.assert_allclose(
            kk.risk.leave_one_out(y, gram, z), plain_leave_one_out(y, gram, z), rtol=1e-9
        )


def test_kare_is_generalised_cross_validation(rng):
    y, gram = system(rng, c=1)
    n, z = len(gram), 0.2
    hat = gram @ np.linalg.inv(gram + n * z * np.eye(n))
    gcv = np.mean((y - hat @ y) ** 2) / (np.trace(np.eye(n) - hat) / n) ** 2
    np.testing.assert_allclose(kk.risk.kare(y, gram, z), gcv, rtol=1e-12)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("n", [2, 3, 12])
def test_gradients_are_those_of_the_definition(rng, graph, n):
    y, gram = system(rng, n=n)
    arguments = [tf.constant(y), tf.constant(gram), tf.constant(0.3, tf.float64)]

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = function(*arguments)
        return [value, *tape.gradient(value, arguments)]

    weights = rng.normal(size=y.shape)

    def our_loo(y, gram, z):
        return tf.reduce_sum(weights * kk.risk.leave_one_out(y, gram, z))

    def plain_loo(y, gram, z):
        scale = tf.cast(tf.shape(gram)[0], gram.dtype)
        inverse = tf.linalg.inv(gram / scale + z * tf.eye(n, dtype=gram.dtype))
        residual = (inverse @ y) / tf.linalg.diag_part(inverse)[:, None]
        return tf.reduce_sum(weights * (y - residual))

    for ours, plain in ((kk.risk.kare, plain_kare), (our_loo, plain_loo)):
        expected = gradients(plain)
        expected[2] = 0.5 * (expected[2] + tf.transpose(expected[2]))
        got = gradients(tf.function(ours) if graph else ours)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", [kk.risk.kare, kk.risk.leave_one_out])
def test_second_derivative_is_refused(rng, function):
    y, gram = system(rng)
    gram = tf.constant(gram)
    with tf.GradientTape() as outer:
        outer.watch(gram)
        with tf.GradientTape() as inner:
            inner.watch(gram)
            value = function(y, gram, 0.1)
        size = tf.reduce_sum(inner.gradient(value, gram) ** 2)
    with pytest.raises(NotImplementedError, match="second derivative"):
        outer.gradient(size, gram)


@pytest.mark.parametrize("fraction", [1e-2, 1e-4, 0.9e-5, 1e-6])
def test_small_ridges_in_float32(rng, fraction):
    """Below 1e-5 of tr(K)/n the factorisation goes to float64."""
    x = np.linspace(-2, 2, 200)[:, None]
    gram = np.exp(-((x - x.T) ** 2)).astype("float32")
    y = np.sin(3 * x) + 0.1 * rng.normal(size=x.shape)
    z = fraction * np.mean(np.diag(gram))
    exact = kk.risk.kare(y, gram.astype("float64"), z)
    np.testing.assert_allclose(kk.risk.kare(y, gram, z), exact, rtol=2e-3)


def test_constant_targets_work(rng):
    _, gram = system(rng)
    value = kk.risk.kare(np.ones((12, 1)), gram, 0.1)
    assert np.isfinite(value)
    assert kk.risk.kare(np.zeros((12, 1)), gram, 0.1) == 0.0


def test_kare_of_a_zero_kernel_is_the_mean_square(rng):
    y = rng.normal(size=(6, 1))
    np.testing.assert_allclose(kk.risk.kare(y, np.zeros((6, 6)), 0.1), np.mean(y**2))


class TestJitter:
    def indefinite(self, eigenvalue):
        q = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
        return (q * np.array([1.0] * 29 + [eigenvalue])) @ q.T

    @pytest.mark.parametrize("graph", [False, True])
    def test_ladder_says_what_it_added(self, graph):
        function = tf.function(inverse_cholesky) if graph else inverse_cholesky
        with pytest.warns(RuntimeWarning, match="jitter"):
            inverse, jitter = function(tf.constant(self.indefinite(-1e-12)))
        assert 0.0 < float(jitter) < 1e-9
        assert np.all(np.isfinite(inverse))

    @pytest.mark.parametrize("graph", [False, True])
    def test_top_of_the_ladder_is_an_error(self, graph):
        function = tf.function(inverse_cholesky) if graph else inverse_cholesky
        error = tf.errors.InvalidArgumentError if graph else ValueError
        with pytest.raises(error, match="not positive definite"):
            function(tf.constant(self.indefinite(-0.1)))

    @pytest.mark.parametrize("n", [1, 2, 3, 5, 30, 101])
    def test_inverse_of_any_size(self, rng, n):
        b = rng.normal(size=(n, n))
        matrix = b @ b.T + np.eye(n)
        inverse, jitter = inverse_cholesky(tf.constant(matrix))
        np.testing.assert_allclose(
            inverse, np.linalg.inv(np.linalg.cholesky(matrix)), atol=1e-9
        )
        assert float(jitter) == 0.0


class TestSolvers:
    @pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
    def test_solvers_agree_with_a_dense_solve(self, rng, ridge):
        y, gram = system(rng, n=20, c=3)
        inverse = np.linalg.inv(gram / 20 + ridge * np.eye(20))
        for solution in (
            kk.solvers.Cholesky().solve(kk.kernels.DenseOperator(gram), y, ridge),
            kk.solvers.Spectral().solve(kk.kernels.DenseOperator(gram), y, ridge),
        ):
            np.testing.assert_allclose(solution.dual, inverse @ y, rtol=1e-7)
            np.testing.assert_allclose(
                solution.inverse_diagonal, np.diag(inverse), rtol=1e-7
            )
            dimension = np.trace(gram @ np.linalg.inv(gram + 20 * ridge * np.eye(20)))
            np.testing.assert_allclose(solution.effective_dimension, dimension, rtol=1e-6)
            loo = y - np.asarray(kk.risk.leave_one_out(y, gram, ridge))
            np.testing.assert_allclose(
                solution.leave_one_out_mse, np.mean(loo**2), rtol=1e-7
            )
            np.testing.assert_allclose(
                solution.kare, kk.risk.kare(y, gram, ridge), rtol=1e-7
            )
