"""Models of one architecture train by one traced step, each as it would alone."""

from __future__ import annotations

import gc
import weakref
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_cases import IN_GRAPHS

import keras_kare as kk
from keras_kare.kernels import traces as traces_module

layers = keras.layers


class Alone(kk.KAREModel):
    """Trains as Keras does: its steps are traced for it alone."""

    def train_step(self, data):
        return super().train_step(data)


pytestmark = pytest.mark.usefixtures("float64", "nothing_shared")


@pytest.fixture
def steps(monkeypatch):
    """How often a step was traced to be shared."""
    found = []
    traced = traces_module.Traces._traced

    def counted(self, method, specs):
        if method.__name__ == "_differentiated":
            found.append([tuple(t.shape) for t in keras.tree.flatten(specs)])
        return traced(self, method, specs)

    monkeypatch.setattr(traces_module.Traces, "_traced", counted)
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
    """Weights, losses and metrics after training; who trains alone does without traces."""
    network = mlp(**(network or {}))
    kernel = kk.kernels.NTK(network, outputs=outputs)
    model = kind(kernel, head=kk.NTKRidgeHead(ridge=0.1))
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, loss, metrics=["mae"], run_eagerly=kind is Alone)
    history = model.fit(x, y, epochs=epochs, verbose=0, shuffle=False, **fit)
    return [*network.get_weights(), history.history]


def assert_same(found, expected):
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        found,
        expected,
    )


LOSSES = [
    *(case.kind(0.1) for case in IN_GRAPHS),
    kk.losses.KARE(3.0),
    kk.losses.KARE(3.0, relative=True),
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


def fitted(kind, x, y, change=None, loss=None, optimizer=None, **fit):
    """Losses and weights; `change` is what a user does to the model after a first fit."""
    network = mlp()
    model = kind(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss or kk.losses.KARE(0.1))
    found = []
    for count in (13, 11) if change else (13,):
        history = model.fit(x[:count], y[:count], verbose=0, shuffle=False, **fit)
        found.append(history.history)
        if change:
            change(model)
    return [*network.get_weights(), found]


def other_ridge(model):
    model.loss.ridge = 5.0


def other_scale(model):
    model.optimizer.loss_scale_factor = 64.0


def late_regularizer(model):
    model.network.layers[0].kernel.regularizer = keras.regularizers.L2(3.0)


@pytest.mark.parametrize("change", [other_ridge, other_scale, late_regularizer])
def test_what_is_changed_without_compile_stays_with_its_model(change, rows):
    """It is seen by what is traced after it, as in Keras, and by no other model."""
    for kind in (kk.KAREModel, Alone):
        fitted(kind, *rows, change)
    assert_same(fitted(kk.KAREModel, *rows), fitted(Alone, *rows))
    assert_same(fitted(kk.KAREModel, *rows, change), fitted(Alone, *rows, change))
    part = [t[:9] for t in rows]
    assert_same(fitted(kk.KAREModel, *part), fitted(Alone, *part))


def test_callbacks_may_change_the_loss(rows):
    class Ridge(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.loss.ridge = 5.0

    fitted(kk.KAREModel, *rows, callbacks=[Ridge()])
    assert_same(fitted(kk.KAREModel, *rows), fitted(Alone, *rows))


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.1)])
def test_ridges_of_numpy(number, rows, steps):
    loss = kk.losses.KARE(number, relative=np.bool_(True))
    assert np.isfinite(fitted(kk.KAREModel, *rows, loss=loss)[-1][0]["loss"]).all()
    assert len(steps) == 1


class Doubled(kk.kernels.NTK):
    def gram(self, x, dtype=None, out=None):
        return 2.0 * super().gram(x, dtype, out)


class Hundredfold(keras.optimizers.SGD):
    def scale_loss(self, loss):
        return 100.0 * loss


class WithVariable(kk.KAREModel):
    def build(self, shape=None):
        self.own = self.add_weight(shape=(1,), name="own")
        super().build(shape)


class Squared(kk.KAREModel):
    def _differentiated(self, *arguments):
        loss, predictions, gradients = super()._differentiated(*arguments)
        return loss, predictions, [2.0 * loss * gradient for gradient in gradients]


def test_what_users_override_is_theirs_alone(rows, steps):
    alone = fitted(Alone, *rows)
    x, y = rows
    for kernel in (Doubled(mlp()), kk.kernels.NTK(mlp()), Doubled(mlp())):
        model = kk.KAREModel(kernel, head=kk.NTKRidgeHead(ridge=0.1))
        model.compile(keras.optimizers.SGD(0.1), kk.losses.KARE(0.1))
        model.fit(x, y, verbose=0, shuffle=False)
        same = np.allclose(model.network.get_weights()[0], alone[0], rtol=1e-10)
        assert same == (type(kernel) is kk.kernels.NTK)
    fitted(kk.KAREModel, x, y, optimizer=Hundredfold(0.1))
    for kind in (WithVariable, Squared):
        fitted(kind, x, y)
        assert_same(fitted(kk.KAREModel, x, y), alone)
    assert len(steps) == 1


def test_gradients_go_to_the_layers_that_train_now(rng):
    """Two layers of one shape, frozen in turn between fits."""
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 1))
    keras.utils.set_random_seed(0)
    first, second = (layers.Dense(3, "tanh", use_bias=False) for _ in range(2))
    network = keras.Sequential([keras.Input((3,)), first, second, layers.Dense(1)])
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.SGD(0.1), "kare")
    model.fit(x, y, verbose=0)
    for count, frozen, trained in ((12, first, second), (9, second, first)):
        frozen.trainable, trained.trainable = False, True
        before = frozen.kernel.numpy(), trained.kernel.numpy()
        gradient = by_hand(network, trained.kernel, x[:count], y[:count])
        model.fit(x[:count], y[:count], verbose=0, shuffle=False)
        np.testing.assert_array_equal(frozen.kernel.numpy(), before[0])
        step = (before[1] - trained.kernel.numpy()) / 0.1
        np.testing.assert_allclose(step, gradient, rtol=1e-9)


def test_a_layer_that_a_callback_freezes(rng):
    """As in Keras: batches of a known shape go on as they were, others see it."""

    class Freeze(keras.callbacks.Callback):
        kernels: ClassVar = []

        def on_train_batch_end(self, batch, logs=None):
            layer = self.model.network.layers[0]
            layer.trainable = False
            self.kernels.append(layer.kernel.numpy())

    model = kk.KAREModel(mlp(), head=kk.NTKRidgeHead(ridge=0.1))
    model.compile(keras.optimizers.SGD(0.1), "kare")
    data = rng.normal(size=(13, 3)), rng.normal(size=(13, 1))
    model.fit(*data, batch_size=5, callbacks=[Freeze()], verbose=0)
    _, second, third = Freeze.kernels
    np.testing.assert_array_equal(third, second)
    assert not np.array_equal(second, Freeze.kernels[0])


def by_hand(network, variable, x, y):
    kernel = kk.kernels.NTK(network, method="jacobian")
    with tf.GradientTape() as tape:
        gram = tf.function(kernel.gram, autograph=False)(tf.constant(x))
        loss = kk.risk.kare(y, gram, 0.1)
    return tape.gradient(loss, variable.value).numpy()


def test_few_traces_for_many_lengths(rng, steps):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((None, 2)),
            layers.Conv1D(3, 2, activation="tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
    model.compile("sgd", "kare")
    for length in (4, 5, 6, 7, 8):
        model.train_on_batch(rng.normal(size=(6, length, 2)), rng.normal(size=(6, 1)))
    assert [shapes[0] for shapes in steps] == [(None, 4, 2), (None, None, 2)]


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
