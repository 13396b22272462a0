"""`KAREModel` as a Keras model: training, validation, callbacks, data of every kind."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.machine import Machine
from keras_kare.models import gathering, rehearsal


def data(rng, n=24, targets=1):
    x = rng.normal(size=(n, networks.D)).astype("float32")
    y = np.sin(x[:, :1] + np.arange(targets)) + 0.1 * rng.normal(size=(n, targets))
    return x, y.astype("float32")


def compiled(
    ridge=1.0, learning_rate=0.1, metrics=None, network=None, loss="kare", **kwargs
):
    model = kk.KAREModel(
        network or networks.mlp(), head=kk.NTKRidgeHead(ridge=ridge), **kwargs
    )
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=metrics)
    return model


class Pairs(keras.utils.PyDataset):
    def __init__(self, x, y, size, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, i):
        part = slice(i * self.size, (i + 1) * self.size)
        return self.x[part], self.y[part]


class TestFit:
    def test_step_is_gradient_descent_on_kare(self, rng):
        x, y = data(rng)
        model = compiled(learning_rate=0.5)
        variables = [v.value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = kk.losses.KARE()(y, model.kernel.gram(x))
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        expected = [v - 0.5 * g for v, g in zip(variables, gradients, strict=True)]
        history = model.fit(x, y, verbose=0)
        assert history.history["loss"] == [pytest.approx(float(loss), rel=1e-5)]
        for weight, value in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-6)

    def test_kare_falls(self, rng):
        x, y = data(rng, n=40)
        losses = compiled(learning_rate=1.0).fit(x, y, epochs=10, verbose=0).history["loss"]
        assert losses[-1] < losses[0]

    def test_head_is_solved_on_all_rows(self, rng):
        x, y = data(rng)
        model = compiled()
        model.fit(x, y, batch_size=8, verbose=0)
        assert model.head.report["rows"] == len(x)
        np.testing.assert_array_equal(model.head.anchors, x)
        assert model.machine.is_fresh()

    def test_history_has_the_units_of_the_docs(self, rng):
        x, y = data(rng)
        xv, yv = data(rng, n=10)
        model = compiled(metrics=["mse", "mae", "accuracy"])
        history = model.fit(x, y, epochs=3, validation_data=(xv, yv), verbose=0).history
        assert set(history) == {
            *("loss", "mse", "mae", "accuracy"),
            *("val_loss", "val_mse", "val_mae", "val_accuracy"),
        }
        np.testing.assert_allclose(history["val_loss"], history["val_mse"], rtol=1e-5)

    def test_validation_is_the_machine_at_the_ridge_of_the_loss(self, rng):
        x, y = data(rng)
        xv, yv = data(rng, n=10)
        for loss in (kk.losses.KARE(0.3), kk.losses.KARE(0.3, relative=True)):
            model = compiled(loss=loss)
            history = model.fit(x, y, validation_data=(xv, yv), verbose=0).history
            gram, cross = model.kernel.gram(x), model.kernel.cross(xv, x)
            z = loss.absolute_ridge(gram)
            dual = np.linalg.solve(gram / len(x) + z * np.eye(len(x)), y)
            expected = np.mean((cross @ dual / len(x) - yv) ** 2)
            assert history["val_loss"][-1] == pytest.approx(float(expected), rel=1e-3)

    def test_validation_anchors_bound_the_rows(self, rng, monkeypatch):
        x, y = data(rng, n=30)
        solved = []
        solve = Machine.solve
        monkeypatch.setattr(
            Machine,
            "solve",
            lambda self, rows, *a, **k: (
                solved.append(len(rows)),
                solve(self, rows, *a, **k),
            ),
        )
        model = compiled(validation_anchors=7)
        model.fit(x, y, validation_data=data(rng, n=5), epochs=2, verbose=0)
        assert solved == [7, 7, 30]

    def test_metrics_in_training_are_leave_one_out(self, rng):
        x, y = data(rng)
        model = compiled(metrics=["mse", "accuracy"], learning_rate=1e-9)
        history = model.fit(x, y, verbose=0).history
        loo = kk.risk.leave_one_out(y, model.kernel.gram(x), 0.1)
        assert history["mse"][0] == pytest.approx(float(np.mean((loo - y) ** 2)), rel=1e-3)
        assert history["accuracy"][0] == pytest.approx(np.mean(np.sign(loo) == np.sign(y)))

    def test_regularisers_are_added(self, rng):
        x, y = data(rng)
        start, plain = networks.mlp(), networks.mlp()
        heavy = networks.mlp(kernel_regularizer=keras.regularizers.L2(0.5))
        plain.set_weights(start.get_weights())
        heavy.set_weights(start.get_weights())
        losses = [
            compiled(network=n).fit(x, y, verbose=0).history["loss"][0]
            for n in (plain, heavy)
        ]
        penalty = 0.5 * sum(np.sum(np.square(layer.kernel)) for layer in start.layers)
        assert losses[1] - losses[0] == pytest.approx(penalty, rel=1e-4)

    def test_activity_regularisers_are_added(self, rng):
        x, y = data(rng)
        network = networks.mlp(activity_regularizer=keras.regularizers.L2(10.0))
        plain = networks.mlp()
        plain.set_weights(network.get_weights())
        a = compiled(network=network).fit(x, y, verbose=0).history["loss"][0]
        assert a > compiled(network=plain).fit(x, y, verbose=0).history["loss"][0]

    def test_frozen_layers_do_not_train(self, rng):
        x, y = data(rng)
        network = networks.frozen()
        before = network.layers[1].get_weights()
        compiled(network=network).fit(x, y, epochs=2, verbose=0)
        for a, b in zip(network.layers[1].get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("name", ["two inputs", "named inputs"])
    def test_several_inputs(self, rng, name):
        network = networks.STRUCTURED[name]()
        x = keras.tree.map_structure(
            lambda t: t.astype("float32"), networks.rows_for(network, 12, rng)
        )
        y = rng.normal(size=(12, 1)).astype("float32")
        model = compiled(network=network)
        model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
        assert model.predict(x, verbose=0).shape == (12, 1)
        keras.tree.assert_same_structure(model.head.anchors, x)

    def test_many_targets_of_a_network_with_one_output(self, rng):
        x, y = data(rng, targets=5)
        model = compiled(metrics=["accuracy"])
        model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
        assert model.predict(x).shape == (24, 5)

    def test_targets_of_any_trailing_shape(self, rng):
        x, _ = data(rng)
        model = compiled(metrics=["mse"])
        model.fit(x, rng.normal(size=(24, 2, 3)), verbose=0)
        assert model.predict(x).shape == (24, 6)
        model.fit(x, rng.normal(size=24), verbose=0)
        assert model.predict(x).shape == (24, 1)

    def test_float64(self, rng, float64):
        x, y = data(rng)
        model = compiled()
        model.fit(x.astype("float64"), y.astype("float64"), verbose=0)
        assert model.predict(x).dtype == np.float64
        assert all(w.dtype == np.float64 for w in model.get_weights())

    def test_unbuilt_subclassed_network(self, rng):
        x, y = data(rng)
        model = compiled(network=networks.Subclassed())
        model.fit(x, y, epochs=2, verbose=0)
        assert model.predict(x).shape == (24, 1)

    def test_run_eagerly(self, rng):
        x, y = data(rng)
        model = kk.KAREModel(networks.mlp(), head=kk.NTKRidgeHead(ridge=1.0))
        model.compile("sgd", "kare", metrics=["mse"], run_eagerly=True)
        eager = model.fit(x, y, validation_data=(x, y), verbose=0).history
        assert np.all(np.isfinite([*eager["loss"], *eager["val_loss"]]))


class TestCompiledNetwork:
    """A network that was trained by itself keeps its own metrics out of ours."""

    def test_metrics_are_ours(self, rng):
        x, y = data(rng)
        network = networks.mlp()
        network.compile("adam", "mse", metrics=["mae", "accuracy"])
        network.fit(x, y, epochs=2, verbose=0)
        model = compiled(network=network, metrics=["mse", "accuracy"])
        history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0).history
        expected = {"loss", "mse", "accuracy", "val_loss", "val_mse", "val_accuracy"}
        assert set(history) == expected
        assert min(history["loss"] + history["val_loss"]) > 0.0
        np.testing.assert_allclose(history["val_loss"], history["val_mse"], rtol=1e-5)

    def test_after_ntk_evaluates_without_compile(self, rng):
        x, y = data(rng)
        network = networks.mlp()
        network.compile("adam", "mse")
        network.fit(x, y, epochs=1, verbose=0)
        model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=1.0))
        model.fit_head(x, y)
        mse = np.mean((model.predict(x) - y) ** 2)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(float(mse), rel=1e-4)


class TestBatches:
    @pytest.mark.parametrize(
        ("n", "size"),
        [(2, 2), (100, 100), (4096, 4096), (4097, 820), (5000, 1000), (10**6, 1024)],
    )
    def test_default_size(self, n, size):
        assert gathering.default_batch_size(n) == size
        gathering.check_batch_size(size, n)

    def test_default_is_a_full_batch(self, rng):
        x, y = data(rng, n=50)
        model = compiled()
        model.fit(x, y, epochs=3, verbose=0)
        assert int(model.optimizer.iterations) == 3

    @pytest.mark.parametrize("kind", ["dataset", "pydataset", "endless"])
    def test_datasets_equal_arrays(self, rng, kind):
        x, y = data(rng, n=24)
        network = networks.mlp()
        twin = keras.models.clone_model(network)
        twin.set_weights(network.get_weights())
        a, b = compiled(network=network), compiled(network=twin)
        a.fit(
            x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)
        )
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        steps = 3 if kind == "endless" else None
        given = {
            "dataset": batches,
            "pydataset": Pairs(x, y, 8),
            "endless": batches.repeat(),
        }[kind]
        checked = {"dataset": batches, "pydataset": Pairs(x, y, 8), "endless": batches}[
            kind
        ]
        b.fit(
            given,
            epochs=2,
            steps_per_epoch=steps,
            shuffle=False,
            validation_data=checked,
            verbose=0,
        )
        np.testing.assert_allclose(a.predict(x), b.predict(batches), atol=1e-5)
        for one, other in zip(
            a.history.history.values(), b.history.history.values(), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        np.testing.assert_allclose(
            a.evaluate(x, y, verbose=0), b.evaluate(checked, verbose=0), rtol=1e-5
        )

    def test_finite_dataset_with_steps_gives_all_rows(self, rng):
        x, y = data(rng, n=24)
        model = compiled()
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        model.fit(batches, epochs=3, steps_per_epoch=1, verbose=0)
        assert model.head.report["rows"] == 24

    def test_validation_split(self, rng):
        x, y = data(rng, n=20)
        model = compiled(ridge="auto")
        history = model.fit(x, y, validation_split=0.25, verbose=0)
        assert "val_loss" in history.history
        np.testing.assert_array_equal(model.head.anchors, x[:15])
        assert model.head.report["chosen_by"] == "validation data"

    def test_on_batch(self, rng):
        x, y = data(rng)
        model = compiled(metrics=["mse"])
        model.fit_head(x, y)
        loss, mse = model.test_on_batch(x, y)
        assert loss == pytest.approx(mse, rel=1e-4)
        predicted = model.predict_on_batch(x)
        np.testing.assert_allclose(predicted, model.predict(x), atol=1e-6)
        told = model.train_on_batch(x, y, return_dict=True)
        assert set(told) == {"loss", "mse"}
        assert not model.machine.is_fresh()
        assert np.max(np.abs(model.predict_on_batch(x) - predicted)) > 0


class TestCallbacks:
    def test_early_stopping_restores_and_the_head_follows(self, rng):
        x, y = data(rng, n=40)
        model = compiled(learning_rate=2.0)
        seen = []
        record = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append(
                (logs["val_loss"], model.get_weights())
            )
        )
        stop = keras.callbacks.EarlyStopping(
            "val_loss", patience=3, restore_best_weights=True
        )
        xv, yv = data(rng, n=20)
        model.fit(
            x, y, epochs=12, validation_data=(xv, yv), callbacks=[record, stop], verbose=0
        )
        best = min(seen, key=lambda pair: pair[0])[1]
        for a, b in zip(model.get_weights(), best, strict=True):
            np.testing.assert_array_equal(a, b)
        assert model.machine.is_fresh()

    def test_initial_epoch(self, rng):
        x, y = data(rng)
        history = compiled().fit(x, y, initial_epoch=3, epochs=5, verbose=0)
        assert history.epoch == [3, 4]

    def test_checkpoint_of_each_epoch_predicts(self, rng, tmp_path):
        x, y = data(rng)
        model = compiled()
        path = str(tmp_path / "{epoch}.keras")
        save = keras.callbacks.ModelCheckpoint(path)
        model.fit(x, y, epochs=2, callbacks=[save], verbose=0)
        loaded = keras.saving.load_model(tmp_path / "2.keras")
        np.testing.assert_allclose(loaded.predict(x), model.predict(x), atol=1e-5)

    def test_quiet(self, rng, capfd):
        x, y = data(rng)
        model = compiled()
        capfd.readouterr()
        model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
        assert capfd.readouterr().out == ""

    def test_interrupted_training_can_still_predict(self, rng):
        x, y = data(rng)
        model = compiled()

        def interrupt(epoch, logs):
            raise KeyboardInterrupt

        stop = keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, epochs=5, callbacks=[stop], verbose=0)
        fresh = kk.KAREModel(model.network, head=kk.NTKRidgeHead(ridge=1.0))
        fresh.fit_head(x, y)
        np.testing.assert_allclose(model.predict(x), fresh.predict(x), atol=1e-5)


class TestRehearsal:
    def test_chooses_on_rows_that_never_trained(self, rng):
        x, y = data(rng, n=30)
        model = compiled(ridge="auto", learning_rate=0.5)
        twin = keras.models.clone_model(model.network)
        twin.set_weights(model.network.get_weights())
        model.fit(x, y, epochs=3, verbose=0)
        training, choosing = rehearsal.held_out(30)
        assert not set(training) & set(choosing)
        assert len(training) + len(choosing) == 30
        other = compiled(ridge="auto", learning_rate=0.5, network=twin)
        other.fit(
            x[training],
            y[training],
            epochs=3,
            validation_data=(x[choosing], y[choosing]),
            verbose=0,
        )
        report = model.head.report
        assert report["relative_ridge"] == pytest.approx(
            other.head.report["relative_ridge"]
        )
        assert report["chosen_by"] == rehearsal.NAME
        assert report["rows"] == 30

    def test_leaves_no_trace(self, rng):
        """Weights, optimizer and history are those of the training on all rows."""
        x, y = data(rng, n=30)
        network = networks.mlp()
        twin = keras.models.clone_model(network)
        twin.set_weights(network.get_weights())
        results = []
        for ridge, net in (("auto", network), (1.0, twin)):
            model = kk.KAREModel(net, head=kk.NTKRidgeHead(ridge=ridge))
            model.compile(keras.optimizers.Adam(0.01), "kare")
            history = model.fit(x, y, epochs=4, verbose=0)
            assert history is model.history
            variables = [*model.variables, *model.optimizer.variables]
            results.append(
                (history.history["loss"], [np.asarray(v.value) for v in variables])
            )
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
        for a, b in zip(results[0][1], results[1][1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_a_failed_rehearsal_is_told(self, rng, monkeypatch):
        def fail(*arguments, **keywords):
            raise ValueError("the kernel is zero")

        monkeypatch.setattr(Machine, "choose_ridge", fail)
        x, y = data(rng)
        model = compiled(ridge="auto")
        with pytest.warns(UserWarning, match="the kernel is zero"):
            history = model.fit(x, y, epochs=2, verbose=0)
        assert history.epoch == [0, 1]
        assert "failed" in model.head.report["chosen_by"]
        assert model.machine.is_fresh()

    def test_too_few_rows(self, rng):
        x, y = data(rng, n=5)
        model = compiled(ridge="auto")
        model.fit(x, y, verbose=0)
        assert model.head.report["relative_ridge"] == 1.0
        assert "too few" in model.head.report["chosen_by"]

    def test_no_epochs_is_no_training(self, rng):
        x, y = data(rng)
        model = compiled(ridge="auto")
        model.fit(x, y, epochs=0, verbose=0)
        assert model.head.report["chosen_by"] == "leave-one-out"

    def test_mini_batches(self, rng):
        x, y = data(rng, n=40)
        model = compiled(ridge="auto")
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
        model.fit(batches, epochs=2, verbose=0)
        assert model.head.report["chosen_by"] == rehearsal.NAME

    @pytest.mark.parametrize("n", range(2, 60))
    def test_even_batches_leave_no_single_row(self, n):
        for batches in range(1, n // 2 + 1):
            size = gathering.even_batch_size(n, batches)
            assert size >= 2
            assert n % size != 1
