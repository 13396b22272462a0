"""Every Keras callback with `KAREModel.fit`, and `KernelDiagnostics`."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import keras_kare as kk
from keras_kare.callbacks import spectrum

DIAGNOSTICS = {
    "kare",
    "leave_one_out",
    "effective_dimension",
    "alignment",
    "drift",
    "smallest_eigenvalue",
    "weights_norm",
}


def data(rng, n=24, targets=1):
    x = rng.normal(size=(n, networks.D)).astype("float32")
    y = np.sin(x[:, :1] + np.arange(targets)) + 0.1 * rng.normal(size=(n, targets))
    return x, y.astype("float32")


def compiled(ridge=1.0, optimizer=None, network=None, loss="kare"):
    network = network or networks.mlp(depth=1, width=8)
    model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=ridge))
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return model


def twin_of(model, weights):
    """A machine of the same network at other weights."""
    network = keras.models.clone_model(model.network)
    network.set_weights(weights)
    return kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=model.head.ridge))


class Weights(keras.callbacks.Callback):
    """The weights at the end of each epoch, and what was logged."""

    def on_train_begin(self, logs=None):
        self.weights, self.logs = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        self.logs.append(dict(logs))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """One training that a list of callbacks watches, and ends before its last epoch."""
    keras.utils.set_random_seed(0)
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stopped")
    x, y = data(rng)
    validation = data(rng, n=12)
    model = compiled(optimizer=keras.optimizers.SGD(3.0))
    seen = Weights()
    saves = [
        keras.callbacks.ModelCheckpoint(
            str(folder / file),
            monitor="val_loss",
            save_best_only=True,
            save_weights_only=file.endswith("h5"),
        )
        for file in ("best.keras", "best.weights.h5")
    ]
    history = model.fit(
        x,
        y,
        epochs=30,
        validation_data=validation,
        callbacks=[
            seen,
            *saves,
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.9, patience=1),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.EarlyStopping(
                "val_loss", patience=2, restore_best_weights=True
            ),
        ],
        verbose=0,
    ).history
    return SimpleNamespace(
        **{"x": x, "y": y, "validation": validation, "model": model, "folder": folder},
        history=history,
        weights=seen.weights,
        best=int(np.argmin(history["val_loss"])),
    )


class TestStoppedTraining:
    def test_machine_is_that_of_the_best_epoch(self, stopped):
        weights, model = stopped.weights[stopped.best], stopped.model
        assert stopped.best == len(stopped.weights) - 3 < 27
        assert np.any(weights[0] != stopped.weights[-1][0])
        best = twin_of(model, weights)
        best.fit_head(stopped.x, stopped.y)
        assert model.machine.is_fresh()
        new = stopped.validation[0]
        np.testing.assert_allclose(model.predict(new), best.predict(new), atol=1e-5)

    @pytest.mark.parametrize("file", ["best.keras", "best.weights.h5"])
    def test_checkpoint_is_the_machine_that_was_asked_for(self, stopped, file):
        if file.endswith("keras"):
            loaded = keras.saving.load_model(stopped.folder / file)
        else:
            loaded = compiled(network=keras.models.clone_model(stopped.model.network))
            loaded.load_weights(stopped.folder / file)
        weights = stopped.weights[stopped.best]
        for a, b in zip(loaded.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
        expected = stopped.model.evaluate(*stopped.validation, verbose=0)
        assert loaded.evaluate(*stopped.validation, verbose=0) == pytest.approx(
            expected, rel=1e-4
        )

    def test_learning_rate_falls_on_plateaus(self, stopped):
        rate, least, expected = 3.0, np.inf, []
        for mse in stopped.history["val_loss"]:
            expected.append(rate)
            if mse < least - 1e-4:
                least = mse
            else:
                rate *= 0.9
        assert expected[-1] < 3.0
        np.testing.assert_allclose(stopped.history["learning_rate"], expected, rtol=1e-5)

    def test_log_in_a_file(self, stopped):
        rows = list(csv.DictReader((stopped.folder / "log.csv").open()))
        for name in ("loss", "val_loss"):
            assert [float(row[name]) for row in rows] == stopped.history[name]


class TestKerasCallbacks:
    def test_checkpoint_within_an_epoch_predicts(self, rng, tmp_path):
        x, y = data(rng)
        save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{batch}.keras"), save_freq=2)
        model = compiled()
        model.fit(x, y, batch_size=8, epochs=1, callbacks=[save], verbose=0)
        loaded = keras.saving.load_model(next(tmp_path.iterdir()))
        expected = twin_of(model, loaded.get_weights())
        expected.fit_head(x, y)
        np.testing.assert_allclose(loaded.predict(x), expected.predict(x), atol=1e-5)

    def test_predictions_within_training_are_those_of_the_head(self, rng):
        """At its own ridge, on all rows; validation alone takes the ridge of the loss."""
        x, y = data(rng)
        seen, predicted = Weights(), []
        predict = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: predicted.append(model.predict(x, verbose=0))
        )
        model = compiled(ridge=30.0)
        model.fit(x, y, epochs=2, callbacks=[seen, predict], verbose=0)
        for weights, found in zip(seen.weights, predicted, strict=True):
            twin = twin_of(model, weights).fit_head(x, y)
            np.testing.assert_allclose(found, twin.predict(x, verbose=0), atol=1e-5)

    def test_schedulers(self, rng):
        x, y = data(rng)
        a = compiled(optimizer=keras.optimizers.SGD(1.0))
        network = keras.models.clone_model(a.network)
        network.set_weights(a.get_weights())
        decay = keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5)
        b = compiled(optimizer=keras.optimizers.SGD(decay), network=network)
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.4 * 0.5**epoch)
        history = a.fit(x, y, epochs=3, callbacks=[schedule], verbose=0).history
        b.fit(x, y, epochs=3, verbose=0)
        np.testing.assert_allclose(history["learning_rate"], [0.4, 0.2, 0.1], rtol=1e-5)
        for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_lambda_sees_every_event(self, rng):
        x, y = data(rng)
        events = []
        names = ["train_begin", "epoch_begin", "train_batch_begin", "train_batch_end"]
        names += ["epoch_end", "train_end"]
        spy = keras.callbacks.LambdaCallback(
            **{
                f"on_{name}": lambda *a, name=name, **k: events.append(name)
                for name in names
            }
        )
        compiled(ridge="auto").fit(x, y, batch_size=12, callbacks=spy, verbose=0)
        batches = ["train_batch_begin", "train_batch_end"] * 2
        expected = ["train_begin", "epoch_begin", *batches, "epoch_end", "train_end"]
        assert events == expected, "callbacks must not run in the rehearsal"

    def test_infinite_loss_ends_training(self, rng):
        """Before any weight is changed, with Keras's callback or without."""
        x, y = data(rng)
        model = compiled()
        before = model.network.get_weights()
        huge = np.float32(3e18) * y
        stop = keras.callbacks.TerminateOnNaN()
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
            model.fit(x, huge, epochs=5, callbacks=[stop], verbose=0)
        for a, b in zip(model.network.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_divergence_is_an_error(self, rng):
        x, y = data(rng)
        network = networks.mlp(depth=1, activation="softplus")
        model = compiled(optimizer=keras.optimizers.SGD(1e30), network=network)
        stop = keras.callbacks.TerminateOnNaN()
        with pytest.raises(tf.errors.InvalidArgumentError, match="learning rate"):
            model.fit(x, y, epochs=5, callbacks=[stop], verbose=0)

    def test_tensorboard(self, rng, tmp_path):
        x, y = data(rng)
        board = keras.callbacks.TensorBoard(
            tmp_path, histogram_freq=1, write_steps_per_second=True, update_freq=1
        )
        diagnostics = kk.callbacks.KernelDiagnostics(eigenvalues=1)
        compiled().fit(
            x,
            y,
            epochs=2,
            validation_data=data(rng, n=8),
            callbacks=[diagnostics, board],
            verbose=0,
        )
        train, held = tags(tmp_path / "train"), tags(tmp_path / "validation")
        assert {f"epoch_{name}" for name in (*DIAGNOSTICS, "loss", "eigenvalue_1")} <= train
        assert any(tag.endswith("kernel/histogram") for tag in train)
        assert "epoch_loss" in held

    def test_averaged_weights_are_validated_and_kept(self, rng):
        x, y = data(rng)
        validation = data(rng, n=12)
        optimizer = keras.optimizers.SGD(2.0, use_ema=True, ema_momentum=0.8)
        model = compiled(optimizer=optimizer)
        averages = []

        class Averages(keras.callbacks.Callback):
            def on_test_begin(self, logs=None):
                averages.append(self.model.get_weights())

        swap = keras.callbacks.SwapEMAWeights()
        seen = Weights()
        history = model.fit(
            x,
            y,
            batch_size=12,
            epochs=2,
            validation_data=validation,
            callbacks=[swap, Averages(), seen],
            verbose=0,
        ).history
        machine = compiled(network=twin_of(model, averages[0]).network)
        machine.head.ridge, machine.head.relative = 0.1, False
        for average, raw, mse in zip(
            averages, seen.weights, history["val_loss"], strict=True
        ):
            assert np.any(average[0] != raw[0])
            machine.set_weights(average)
            machine.fit_head(x, y)
            assert machine.evaluate(*validation, verbose=0) == pytest.approx(mse, rel=1e-4)


def tags(folder):
    """Names of all summaries in a folder of TensorBoard's."""
    found = set()
    for file in folder.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            found |= {value.tag for value in event.summary.value}
    return found


def by_definition(gram, y, z):
    """The formulas of the docstring, with inverses."""
    n = len(gram)
    inverse = np.linalg.inv(gram / n + z * np.eye(n))
    alpha, centring = inverse @ y, np.eye(n) - 1.0 / n
    centred, targets = centring @ gram @ centring, centring @ y @ y.T @ centring
    norms = np.linalg.norm(centred) * np.linalg.norm(targets)
    return {
        "kare": np.mean(alpha**2) / (np.trace(inverse) / n) ** 2,
        "leave_one_out": np.mean((alpha / np.diag(inverse)[:, None]) ** 2),
        "effective_dimension": np.trace(gram @ np.linalg.inv(gram + n * z * np.eye(n))),
        "alignment": np.sum(centred * targets) / norms,
        "smallest_eigenvalue": np.linalg.eigvalsh(gram / n)[0],
        **{
            f"eigenvalue_{i + 1}": value
            for i, value in enumerate(np.linalg.eigvalsh(gram / n)[::-1][:3])
        },
    }


class TestKernelDiagnostics:
    @pytest.mark.parametrize(("targets", "relative"), [(1, False), (3, True)])
    def test_equal_their_formulas(self, rng, targets, relative):
        x, y = data(rng, targets=targets)
        model = compiled(loss=kk.losses.KARE(0.3, relative=relative))
        start = model.kernel.gram(x, dtype="float64").numpy()
        seen = Weights()
        diagnostics = kk.callbacks.KernelDiagnostics(eigenvalues=3)
        history = model.fit(
            x, y, epochs=2, callbacks=[diagnostics, seen], verbose=0
        ).history
        gram = model.kernel.gram(x, dtype="float64").numpy()
        z = 0.3 * np.trace(gram) / len(x) ** 2 if relative else 0.3
        expected = by_definition(gram, y.astype("float64"), z)
        expected["drift"] = np.linalg.norm(gram - start) / np.linalg.norm(start)
        assert expected["drift"] > 0.0
        weights = np.concatenate([np.ravel(w) for w in model.network.get_weights()])
        expected["weights_norm"] = np.linalg.norm(weights)
        for name, value in expected.items():
            assert history[name][-1] == pytest.approx(value, rel=1e-6, abs=1e-9), name
            assert seen.logs[-1][name] == history[name][-1], "later callbacks must see it"
        assert set(history) == {"loss", *expected}
        # The loss of an epoch is that of the weights before it.
        np.testing.assert_allclose(history["kare"][0], history["loss"][1], rtol=1e-4)

    def test_rows_of_its_own(self, rng):
        x, y = data(rng)
        xd, yd = data(rng, n=10)
        batches = tf.data.Dataset.from_tensor_slices((xd, yd)).batch(5)
        model = compiled()
        for given in ((xd, yd[:, 0]), (batches,)):
            diagnostics = kk.callbacks.KernelDiagnostics(*given, eigenvalues=20)
            history = model.fit(x, y, callbacks=[diagnostics], verbose=0).history
            gram = model.kernel.gram(xd, dtype="float64").numpy()
            expected = by_definition(gram, yd.astype("float64"), 0.1)
            assert history["kare"][0] == pytest.approx(expected["kare"], rel=1e-6)
            largest = {f"eigenvalue_{i}" for i in range(1, 11)}
            assert set(history) == {"loss", *DIAGNOSTICS, *largest}

    def test_some_rows_at_some_epochs(self, rng, tmp_path):
        x, y = data(rng)
        path, model = tmp_path / "log.csv", compiled()
        history = model.fit(
            x,
            y,
            initial_epoch=1,
            epochs=5,
            callbacks=[
                kk.callbacks.KernelDiagnostics(every=3, rows=4),
                keras.callbacks.CSVLogger(path),
            ],
            verbose=0,
        )
        assert history.epoch == [1, 2, 3, 4]
        assert len(history.history["kare"]) == 2
        rows = list(csv.DictReader(path.open()))
        assert [row["kare"] == "NA" for row in rows] == [False, True, True, False]
        chosen = [0, 7, 15, 23]
        gram = model.kernel.gram(x[chosen], dtype="float64").numpy()
        expected = by_definition(gram, y[chosen].astype("float64"), 0.1)
        for name in ("alignment", "eigenvalue_1"):
            assert history.history[name][-1] == pytest.approx(expected[name], rel=1e-6)

    def test_weights_count_as_repeated_rows(self, rng):
        b = rng.normal(size=(6, 3))
        gram, y = b @ b.T, rng.normal(size=(6, 1))
        counts = np.array([1, 3, 2, 1, 1, 2])
        rows = np.repeat(np.arange(6), counts)
        weighted = spectrum.diagnose(gram, y, counts, 0.2, 2)
        repeated = spectrum.diagnose(gram[np.ix_(rows, rows)], y[rows], None, 0.2, 2)
        for name in ("kare", "effective_dimension", "eigenvalue_1", "eigenvalue_2"):
            assert weighted[name] == pytest.approx(repeated[name])

    def test_alignment_of_perfect_and_of_constant_kernels(self, rng):
        y = rng.normal(size=(9, 1))
        assert spectrum.alignment(y @ y.T + 5.0, y) == pytest.approx(1.0)
        assert spectrum.alignment(np.ones((9, 9)), y) == 0.0

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"every": 0}, "`every` must be a whole number of at least 1"),
            ({"every": 1.5}, "`every` must be"),
            ({"rows": 1}, "`rows` must be a whole number of at least 2"),
            ({"eigenvalues": -1}, "`eigenvalues` must be"),
            ({"eigenvalues": True}, "`eigenvalues` must be"),
            ({"y": np.ones(3)}, "`y` needs the inputs"),
            ({"x": np.ones((3, 4))}, "`y` is missing"),
            ({"x": np.ones((3, 4)), "y": np.ones(3)}, "targets differ"),
            ({"x": np.full((3, 4), np.nan), "y": np.arange(3.0)}, "`x` holds NaN"),
        ],
    )
    def test_bad_arguments(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            kk.callbacks.KernelDiagnostics(**arguments)

    def test_bad_training(self, rng):
        x, y = data(rng)
        diagnostics = kk.callbacks.KernelDiagnostics()
        with pytest.raises(ValueError, match="targets differ"):
            compiled().fit(x, np.ones_like(y), callbacks=[diagnostics], verbose=0)
        network = networks.mlp()
        network.compile("sgd", "mse")
        with pytest.raises(ValueError, match="needs rows to look at where no"):
            network.fit(x, y, callbacks=[diagnostics], verbose=0)

    @pytest.mark.parametrize("loss", ["mse", "hinge"])
    def test_of_a_network_that_trains_by_itself(self, rng, loss):
        x, y = data(rng)
        network = networks.mlp()
        start = kk.kernels.NTK(network).gram(x, dtype="float64").numpy()
        network.compile(keras.optimizers.SGD(0.1), loss)
        diagnostics = kk.callbacks.KernelDiagnostics(x, y, eigenvalues=3, ridge=2.0)
        history = network.fit(x, y, epochs=2, callbacks=[diagnostics], verbose=0).history
        gram = kk.kernels.NTK(network).gram(x, dtype="float64").numpy()
        z = 2.0 * np.trace(gram) / len(x) ** 2
        for name, value in by_definition(gram, y.astype("float64"), z).items():
            assert history[name][-1] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        moved = np.linalg.norm(gram - start) / np.linalg.norm(start)
        assert history["drift"][-1] == pytest.approx(moved)
