"""The step that every kernel trains by, against its parts one after the other."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare._step import differentiated


@pytest.fixture
def problem(rng, float64):
    kernel = kk.kernels.NTK(networks.mlp(depth=1))
    return kernel, rng.normal(size=(12, networks.D)), rng.normal(size=12)


def test_it_is_the_gradient_of_the_loss_of_the_gram_matrix(problem):
    kernel, x, y = problem
    loss, variables = kk.losses.KARE(0.1), kernel.trainable_variables
    value, predictions, gradients = differentiated(loss, kernel, variables, x, y)
    with tf.GradientTape() as tape:
        expected, left_out = loss.evaluate(y[:, None], kernel.gram(x))
    assert float(value) == float(expected)
    np.testing.assert_array_equal(predictions, left_out)
    wanted = tape.gradient(expected, [v.value for v in variables])
    assert wanted[-1] is None  # the last bias
    wanted[-1] = np.zeros(variables[-1].shape)
    for found, each in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-12)


def test_regularisers_are_added_and_gradients_scaled(problem):
    kernel, x, y = problem
    bias = kernel.trainable_variables[-1]
    bias.assign([3.0])
    value, _, gradients = differentiated(
        kk.losses.KARE(0.1),
        kernel,
        [bias],
        x,
        y,
        extras=lambda: [tf.reduce_sum(tf.square(bias.value)), tf.constant(1.0)],
        scale=lambda loss: 8.0 * loss,
    )
    alone, _, _ = differentiated(kk.losses.KARE(0.1), kernel, [bias], x, y)
    np.testing.assert_allclose(value, alone + 9.0 + 1.0)
    np.testing.assert_allclose(gradients, [[8.0 * 6.0]])


def test_supplied_gradients_serve_alike(problem):
    kernel, x, y = problem
    x, y = (np.concatenate([rows + shift for shift in range(5)]) for rows in (x, y))
    variables = kernel.trainable_variables
    options = {"intercept": True, "scale": lambda loss: 2.0 * loss}
    full = kk.losses.FullKARE(0.1, method="primal")
    found = differentiated(full, kernel, variables, x, y, **options)
    expected = differentiated(kk.losses.KARE(0.1), kernel, variables, x, y, **options)
    np.testing.assert_allclose(found[0], expected[0])
    assert found[1].shape == expected[1].shape
    for one, other in zip(found[2], expected[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
