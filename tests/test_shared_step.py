"""Models of one architecture train by one traced step, each as it would alone."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.kernels import work as work_module

layers = keras.layers


class Alone(kk.KAREModel):
    """Trains as Keras does: its steps are traced for it alone."""

    def train_step(self, data):
        return super().train_step(data)


@pytest.fixture(autouse=True)
def _nothing_kept(float64):
    work_module._COMMON.clear()
    yield
    work_module._COMMON.clear()


@pytest.fixture
def steps(monkeypatch):
    """How often a step was traced to be shared."""
    found = []
    traced = work_module.Work._traced

    def counted(self, method, specs):
        if method.__name__ == "_differentiated":
            found.append([tuple(t.shape) for t in keras.tree.flatten(specs)])
        return traced(self, method, specs)

    monkeypatch.setattr(work_module.Work, "_traced", counted)
    return found


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(13, 3))
    return x, np.sin(x[:, :2]) + 0.3 * rng.normal(size=(13, 2))


def mlp(seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(4, "gelu", bias_initializer="normal", **kwargs)
    return keras.Sequential([keras.Input((3,)), hidden, layers.Dense(2)])


def trained(kind, x, y, loss="kare", network=None, outputs="sum", epochs=2, **fit):
    """Weights, losses and metrics after training."""
    network = mlp(**(network or {}))
    kernel = kk.kernels.NTK(network, outputs=outputs)
    model = kind(kernel, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["mae"])
    history = model.fit(x, y, epochs=epochs, verbose=0, shuffle=False, **fit)
    return [*network.get_weights(), history.history]


def assert_same(found, expected):
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        found,
        expected,
    )


LOSSES = [
    kk.losses.KARE(0.1),
    kk.losses.KARE(3.0),
    kk.losses.KARE(3.0, relative=True),
    kk.losses.HoldoutKARE(0.1),
]


def test_losses_do_not_get_in_each_others_way(rows, steps):
    for loss in LOSSES:
        assert_same(trained(kk.KAREModel, *rows, loss), trained(Alone, *rows, loss))
    assert len(steps) == len(LOSSES)


@pytest.mark.parametrize("outputs", ["sum", "trace"])
def test_other_starts_take_the_same_step(outputs, rows, steps):
    for seed in range(2):
        settings = {"network": {"seed": seed}, "outputs": outputs}
        alone = trained(Alone, *rows, **settings)
        assert_same(trained(kk.KAREModel, *rows, **settings), alone)
    assert len(steps) == 1


@pytest.mark.parametrize(
    "fit",
    [
        {"sample_weight": np.arange(13) % 3 + 0.5},
        {"batch_size": 5},
        {"batch_size": 6, "validation_split": 0.2},
    ],
    ids=["weights", "uneven batches", "validation"],
)
def test_rows_and_weights(fit, rows, steps):
    assert_same(trained(kk.KAREModel, *rows, **fit), trained(Alone, *rows, **fit))
    assert 1 <= len(steps) <= 2


def test_a_second_number_of_rows_leaves_all_unknown(rows, steps):
    x, y = rows
    for count in (13, 11, 9):
        part = x[:count], y[:count]
        assert_same(trained(kk.KAREModel, *part), trained(Alone, *part))
    assert [shapes[0][0] for shapes in steps] == [13, None]


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_constant_is_part_of_the_step(shift, rows, steps):
    x, y = rows
    trained(kk.KAREModel, x, y)
    assert_same(trained(kk.KAREModel, x, y + shift), trained(Alone, x, y + shift))
    assert len(steps) == (2 if shift else 1)


def test_frozen_layers_are_another_architecture(rows, steps):
    for trainable in (True, False):
        settings = {"network": {"trainable": trainable}}
        alone = trained(Alone, *rows, **settings)
        assert_same(trained(kk.KAREModel, *rows, **settings), alone)
    assert len(steps) == 2


@pytest.mark.parametrize("part", ["kernel_regularizer", "activity_regularizer"])
def test_regularisers_are_the_models_own(part, rows, steps):
    for strength in (0.1, 1.0):
        settings = {"network": {part: keras.regularizers.L2(strength)}}
        alone = trained(Alone, *rows, **settings)
        assert_same(trained(kk.KAREModel, *rows, **settings), alone)
    assert not steps


class Halved(kk.losses.GramLoss):
    """What we did not write may be another thing tomorrow."""

    def evaluate(self, y_true, gram, sample_weight=None, intercept=False):
        loss, predictions = kk.losses.KARE(0.1).evaluate(y_true, gram)
        return 0.5 * loss, predictions


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": Halved()},
        {"optimizer": keras.optimizers.SGD(0.1, loss_scale_factor=4.0)},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_not_shared(settings, rows, steps):
    model = kk.KAREModel(mlp(), head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": "kare", **settings})
    model.fit(*rows, verbose=0)
    assert not steps


def test_tiles_are_not_shared(rows, steps):
    kernel = kk.kernels.NTK(mlp(), memory_limit=16_000)
    model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile("sgd", "kare")
    model.fit(*rows, verbose=0)
    assert not steps


def test_one_at_a_time(rows, steps):
    x, y = rows
    models = []
    for kind in (kk.KAREModel, Alone):
        model = kind(mlp(), head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.SGD(0.1), "kare")
        losses = [model.train_on_batch(x[:count], y[:count]) for count in (5, 9, 13)]
        models.append([*model.network.get_weights(), losses])
    assert_same(*models)
    assert [shapes[0][0] for shapes in steps] == [None]


def test_a_step_that_is_not_finite_changes_nothing(rows):
    x, y = rows
    trained(kk.KAREModel, x, y)  # the step is there
    network = mlp()
    network.set_weights([1e160 * w for w in network.get_weights()])
    before = network.get_weights()
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.SGD(0.1), "kare")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"overflow|NaN"):
        model.fit(x, y, verbose=0)
    assert_same(network.get_weights(), before)


def test_a_model_is_not_kept_by_its_step(rows):
    """But for the variables of the first, by which the plan of its architecture goes."""
    for number in range(2):
        network = mlp()
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
        model.compile("sgd", "kare")
        model.fit(*rows, verbose=0)
        parts = [model, network, model.train_function]
        if number:
            parts.append(network.layers[0].kernel)
        gone = [weakref.ref(part) for part in parts]
        del model, network, parts
        gc.collect()
        assert not [part for part in gone if part() is not None]
