"""The variance of the kernel machine, against an exact Gaussian process."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

import keras_kare as kk


@pytest.fixture
def solved(rng, float64):
    x = rng.normal(size=(30, 2))
    y = np.stack([np.sin(x[:, 0]), 3.0 * x[:, 1]], axis=1) + 0.1 * rng.normal(size=(30, 2))
    keras.utils.set_random_seed(2)
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(1)]
    )
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.2))
    model.fit_head(x, y)
    return model, x, y, rng.normal(size=(7, 2))


def features(model, x):
    """`J(x)`, `(n, P)`, of which the kernel is the dot product."""
    identity = np.eye(len(x))
    parts = model.kernel.vjp(x, identity)
    return np.concatenate([np.reshape(p, (len(x), -1)) for p in parts], axis=1)


def test_is_that_of_an_exact_gaussian_process(solved):
    model, x, y, new = solved
    posterior = model.machine.posterior()
    noise = len(x) * model.head.ridge_value
    process = GaussianProcessRegressor(
        DotProduct(sigma_0=1e-9, sigma_0_bounds="fixed"), alpha=noise, optimizer=None
    )
    process.fit(features(model, x), y)
    mean, std = process.predict(features(model, new), return_std=True)
    np.testing.assert_allclose(model.predict(new), mean, 1e-6, 1e-7)
    variance = np.reshape(std, (len(new), -1))[:, :1] ** 2 * posterior.scale
    np.testing.assert_allclose(model.variance(new), variance, 1e-6)
    np.testing.assert_allclose(posterior.noise, posterior.scale * noise)
    with_noise = model.variance(new, noise=True)
    np.testing.assert_allclose(with_noise, model.variance(new) + posterior.noise)


def test_leave_one_out_errors_are_as_large_as_expected(solved):
    """By leaving each row out of a machine of its own."""
    model, x, y, _ = solved
    gram = model.kernel.gram(x).numpy()
    posterior, ridge = model.machine.posterior(), len(x) * model.head.ridge_value
    standardised = []
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        system = gram[np.ix_(others, others)] + ridge * np.eye(len(x) - 1)
        seen = np.linalg.solve(system, gram[others, row])
        error = y[row] - seen @ y[others]
        variance = gram[row, row] - seen @ gram[others, row] + ridge
        standardised.append(error**2 / (posterior.scale * variance))
    np.testing.assert_allclose(np.mean(standardised, axis=0), 1.0, 1e-6)


COUNTS = {
    "repeated": np.arange(30) % 3 + 1,
    "left out": np.arange(30) % 2,
    "both": np.arange(30) % 4,
}


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("case", COUNTS)
def test_weights_are_as_many_rows(solved, case, intercept):
    """The variance, its scale and its noise, of rows that count and of as many rows."""
    model, x, y, new = solved
    counts = COUNTS[case]
    head = kk.NTKRidgeHead(ridge=0.2, intercept=intercept)
    model = kk.KAREModel(model.network, head=head)
    model.fit_head(x, y, sample_weight=counts)
    found = model.variance(new), model.variance(new, noise=True)
    rows = np.repeat(np.arange(len(x)), counts)
    model.fit_head(x[rows], y[rows])
    np.testing.assert_allclose(found[0], model.variance(new), 1e-7)
    np.testing.assert_allclose(found[1], model.variance(new, noise=True), 1e-7)


def test_one_copy_is_left_out_at_a_time(solved):
    """By machines of their own, of all rows but one copy; of rows below 1, all."""
    model, x, y, _ = solved
    weights = np.array([0.3, 1.0, 2.5, 4.0, 0.0, 0.7] * 5)
    model.fit_head(x, y, sample_weight=weights)
    gram = model.kernel.gram(x).numpy()
    noise = np.sum(weights) * model.head.ridge_value
    total = np.zeros(2)
    for row, weight in enumerate(weights):
        if not weight:
            continue
        left = weights.copy()
        left[row] = max(weight - 1.0, 0.0)
        kept = left > 0.0
        system = gram[np.ix_(kept, kept)] + np.diag(noise / left[kept])
        seen = np.linalg.solve(system, gram[kept, row])
        error = y[row] - seen @ y[kept]
        # a row that counts less than once has more noise than one that does
        variance = gram[row, row] - seen @ gram[kept, row] + noise / min(weight, 1.0)
        total += weight * error**2 / variance
    expected = total / np.sum(weights)
    np.testing.assert_allclose(model.machine.posterior().scale, expected, 1e-7)


def test_needs_anchors(solved):
    model, x, y, new = solved
    bare = kk.KAREModel(model.network, head=kk.NTKRidgeHead(1.0, keep_anchors=False))
    bare.fit_head(x, y)
    with pytest.raises(ValueError, match="keep_anchors=True"):
        bare.variance(new)
    with pytest.raises(ValueError, match="NaN"):
        model.variance(np.full((2, 2), np.nan))
