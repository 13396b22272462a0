"""What Keras's training offers besides callbacks, and training that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import networks
import numpy as np
import pytest

import keras_kare as kk
from keras_kare.machine import Machine
from keras_kare.models import rehearsal

SCRIPT = Path(__file__).parent / "killed_training.py"


def data(rng, n=24):
    x = rng.normal(size=(n, networks.D)).astype("float32")
    return x, (np.sin(x[:, :1]) + 0.1 * rng.normal(size=(n, 1))).astype("float32")


def network_like(network=None):
    fresh = networks.mlp(depth=1, width=8)
    if network is not None:
        fresh.set_weights(network.get_weights())
    return fresh


def trained(given, network, optimizer, epochs=2, ridge=1.0, compile=None, **fit):
    model = kk.KAREModel(network_like(network), head=kk.NTKRidgeHead(ridge=ridge))
    model.compile(optimizer, "kare", **(compile or {}))
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0, **fit}
    model.fit(*given, epochs=epochs, **fit)
    return model


def assert_same(a, b, atol=1e-6):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def gradients_of(model, x, y):
    """KARE's gradients by the weights, from one step of plain descent."""
    probe = trained((x, y), model.network, keras.optimizers.SGD(1.0), 1, batch_size=len(x))
    pairs = zip(model.get_weights(), probe.get_weights(), strict=True)
    return [before - after for before, after in pairs]


class TestSteps:
    def test_steps_per_execution_changes_nothing(self, rng):
        """Also where it does not divide the three batches of an epoch."""
        given, network = data(rng), networks.mlp(depth=1, width=8)
        a = trained(given, network, keras.optimizers.SGD(0.5))
        b = trained(
            given,
            network,
            keras.optimizers.SGD(0.5),
            compile={"steps_per_execution": 2},
            validation_data=given,
        )
        assert_same(a, b)
        assert int(b.optimizer.iterations) == 6
        assert b.evaluate(*given, verbose=0) == pytest.approx(
            a.evaluate(*given, verbose=0), rel=1e-4
        )

    def test_accumulated_gradients_are_the_mean_of_batches(self, rng):
        (x, y), network = data(rng, n=16), networks.mlp(depth=1, width=8)
        sgd = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        model = trained((x, y), network, sgd, epochs=1)
        start = kk.KAREModel(network)
        halves = [gradients_of(start, x[i : i + 8], y[i : i + 8]) for i in (0, 8)]
        for weight, before, one, other in zip(
            model.get_weights(), network.get_weights(), *halves, strict=True
        ):
            np.testing.assert_allclose(weight, before - 0.25 * (one + other), atol=1e-5)

    def test_clipping(self, rng):
        (x, y), network = data(rng), networks.mlp(depth=1, width=8)
        before, most = network.get_weights(), 1e-3
        gradients = gradients_of(kk.KAREModel(network), x, y)
        whole = np.sqrt(sum(np.sum(g**2) for g in gradients))
        norms = {
            "clipnorm": [np.linalg.norm(g) for g in gradients],
            "global_clipnorm": [whole] * len(gradients),
        }
        for clip, lengths in norms.items():
            sgd = keras.optimizers.SGD(1.0, **{clip: most})
            model = trained((x, y), network, sgd, epochs=1, batch_size=24)
            assert max(lengths) > most
            for after, w, g, norm in zip(
                model.get_weights(), before, gradients, lengths, strict=True
            ):
                np.testing.assert_allclose(
                    w - after, g * min(1.0, most / max(norm, most)), atol=2e-7
                )

    def test_averaged_weights_are_solved_at_the_end(self, rng):
        given, network = data(rng), networks.mlp(depth=1, width=8)
        steps = []

        class Steps(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                steps.append(self.model.get_weights()[0])

        sgd = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
        model = trained(given, network, sgd, callbacks=[Steps()])
        average = steps[0]
        for step in steps[1:]:
            average = 0.5 * average + 0.5 * step
        np.testing.assert_allclose(model.get_weights()[0], average, atol=1e-5)
        assert np.max(np.abs(average - steps[-1])) > 1e-4
        assert model.machine.is_fresh()


def test_same_seed_same_bits(rng):
    given, results = data(rng), []
    for seed in (7, 7):
        keras.utils.set_random_seed(seed)
        model = trained(given, None, keras.optimizers.Adam(0.01), shuffle=True)
        results.append([*model.get_weights(), model.predict(given[0])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_is_close_to_float32(rng):
    given, models, histories = data(rng), [], []
    start = networks.mlp(depth=1, width=8)
    try:
        for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
            keras.config.set_dtype_policy(policy)
            model = kk.KAREModel(network_like(start), head=kk.NTKRidgeHead(ridge=1.0))
            model.compile(keras.optimizers.SGD(0.1), "kare")
            history = model.fit(*given, epochs=3, validation_data=given, verbose=0)
            models.append(model)
            histories.append(history.history)  # old Keras forgets it when it predicts
    finally:
        keras.config.set_dtype_policy("float32")
    plain, *mixed = models
    for model, history in zip(mixed, histories[1:], strict=True):
        assert model.network.layers[0].compute_dtype != "float32"
        assert all(w.dtype == np.float32 for w in model.get_weights())
        assert_same(plain, model, atol=0.02)
        assert np.any(plain.get_weights()[0] != model.get_weights()[0])
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(histories[0][name], history[name], rtol=0.05)
        np.testing.assert_allclose(
            plain.predict(given[0]), model.predict(given[0]), atol=0.05
        )
    # Keras scales the loss for float16; the scale is taken out of the gradients again.
    scaling = keras.optimizers.LossScaleOptimizer
    assert [isinstance(m.optimizer, scaling) for m in models] == [False, False, True]


class Interrupt(keras.callbacks.Callback):
    """Ends training by an error, as if the machine had gone down."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("interrupted")


class TestBackup:
    def fit(self, given, folder, interrupt=None):
        keras.utils.set_random_seed(3)
        model = kk.KAREModel(networks.mlp(depth=1, width=8))
        model.compile(keras.optimizers.Adam(0.05), "kare")
        backup = keras.callbacks.BackupAndRestore(
            str(folder), double_checkpoint=True, delete_checkpoint=False
        )
        history = model.fit(
            *given,
            epochs=6,
            shuffle=False,
            callbacks=[backup, Interrupt(interrupt)],
            verbose=0,
        )
        return model, history.epoch

    @pytest.mark.slow
    def test_resumed_training_rehearses_as_a_whole_one(self, rng, tmp_path, monkeypatch):
        """`ridge="auto"` without validation rows: from the start, for all epochs."""
        given, rehearsed = data(rng, n=30), []
        choose = Machine.choose_ridge

        def spy(machine, *others, **keywords):
            rehearsed.append(machine.kernel.network.get_weights())
            return choose(machine, *others, **keywords)

        monkeypatch.setattr(Machine, "choose_ridge", spy)
        whole, epochs = self.fit(given, tmp_path / "whole")
        assert epochs == list(range(6))
        assert np.any(rehearsed[0][0] != whole.get_weights()[0])
        with pytest.raises(RuntimeError, match="interrupted"):
            self.fit(given, tmp_path / "broken", interrupt=4)
        # The backup of the whole training is that of one killed after its last epoch.
        for folder, left in (("broken", [4, 5]), ("whole", [])):
            resumed, epochs = self.fit(given, tmp_path / folder)
            assert epochs == left
            assert_same(whole, resumed)
            for one, other in zip(rehearsed[0], rehearsed.pop(), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)
            assert len(rehearsed) == 1
            assert resumed.head.report["chosen_by"] == rehearsal.NAME
        # Killed after it had written weights, before it wrote their epoch.
        facts = tmp_path / "whole" / "training_metadata.json"
        facts.write_text(facts.read_text().replace('"epoch": 6', '"epoch": 5'))
        with pytest.warns(UserWarning, match="weights of step 6, and says that epoch 5"):
            self.fit(given, tmp_path / "whole")


def run_killed(folder, epochs, *where):
    command = [sys.executable, str(SCRIPT), str(folder), str(epochs), *map(str, where)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_killed(folder, epochs, kills):
    """Kill a training at each place in turn, then let it finish."""
    for kill in kills:
        done = run_killed(folder, epochs, *kill)
        assert done.returncode == -signal.SIGKILL, (kill, done.stdout, done.stderr)
    done = run_killed(folder, epochs)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) <= 1e-6
    assert not folder.exists(), "Keras removes the backup of a finished training"


def test_killed_training_ends_as_if_it_had_not_been(tmp_path):
    """In the middle of writing a backup; `make test-slow` kills it elsewhere, too."""
    check_killed(tmp_path / "backup", 5, [("save", 3, 5)])


@pytest.mark.slow
def test_training_that_is_killed_twenty_times(tmp_path):
    rng = np.random.default_rng(0)
    kills = []
    for i in range(20):
        if i % 2:
            kills.append(("save", rng.integers(1, 4), rng.integers(1, 12)))
        else:  # three steps an epoch; a backup before the first kill
            kills.append(("step", rng.integers(4, 13)))
    check_killed(tmp_path / "backup", 90, kills)


@pytest.mark.parametrize("weighted", [False, True])
def test_one_batch_trains_as_arrays_do(rng, weighted):
    """Rows that are one batch go to Keras as a dataset of that batch, which is faster."""
    x, y = data(rng)
    weights = {"sample_weight": rng.integers(1, 3, len(x))} if weighted else {}
    held = data(rng, 7)
    network = network_like()
    found = []
    for steps in (None, 1):  # given `steps_per_epoch`, Keras takes the arrays
        model = kk.KAREModel(network_like(network), head=kk.NTKRidgeHead(ridge=1.0))
        model.compile(keras.optimizers.SGD(0.1), "kare", metrics=["mae"])
        fit = {"epochs": 3, "shuffle": False, "verbose": 0, **weights}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            history = model.fit(x, y, validation_data=held, steps_per_epoch=steps, **fit)
        assert history.params["steps"] == 1
        found.append([*history.history.values(), *model.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_steps_per_execution_beyond_an_epoch_take_no_more_steps(rng):
    x, y = data(rng)
    model = kk.KAREModel(network_like(), head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(0.1), "kare", steps_per_execution=4)
    model.fit(x, y, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 2


def test_validation_batch_sizes_are_checked(rng):
    x, y = data(rng)
    model = kk.KAREModel(network_like(), head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(0.1), "kare")
    with pytest.raises(ValueError, match="`validation_batch_size` must be"):
        model.fit(x, y, validation_split=0.25, validation_batch_size="all")


def test_validation_takes_as_many_rows_at_a_time_as_training(rng):
    class Steps(keras.callbacks.Callback):
        taken = 0

        def on_test_batch_end(self, batch, logs=None):
            self.taken += 1

    rows, steps = 1100, Steps()
    x, y = data(rng, n=rows)
    model = kk.KAREModel(networks.mlp(depth=1, width=2), head=kk.NTKRidgeHead(ridge=1.0))
    model.compile(keras.optimizers.SGD(0.1), "kare")
    model.fit(x, y, validation_data=(x, y), callbacks=[steps], verbose=0)
    assert steps.taken == 1


class Broken(keras.callbacks.Callback):
    """Ends training by an error."""

    def on_epoch_end(self, epoch, logs=None):
        raise RuntimeError("broken off")


class TestLinesOfWarnings:
    """Warnings name the line of the user's script."""

    def made(self, ridge="auto", **head):
        model = kk.KAREModel(network_like(), head=kk.NTKRidgeHead(ridge=ridge, **head))
        model.compile(keras.optimizers.SGD(0.1), "kare")
        return model

    def test_of_a_trained_network(self, rng):
        x, y = data(rng)
        model = self.made()
        model.fit(x, y, validation_data=(x, y), verbose=0)
        with pytest.warns(UserWarning, match="no rows to choose on") as of_head:
            model.fit_head(x, y)
        with pytest.warns(UserWarning, match="no rows to choose on") as of_fit:
            model.fit(x, y, epochs=0, verbose=0)
        assert [w.filename for w in (*of_head, *of_fit)] == [__file__, __file__]

    def test_of_training_that_was_broken_off(self, rng):
        x, y = data(rng)
        model = self.made()
        with pytest.raises(RuntimeError, match="broken off"):
            model.fit(x, y, callbacks=[Broken()], verbose=0)
        with pytest.warns(UserWarning, match="relative ridge of 1, since none") as warned:
            model.predict(x, verbose=0)
        assert [w.filename for w in warned] == [__file__]

    def test_of_kare_that_was_fooled(self, rng):
        x, y = data(rng)
        model = self.made(ridge=1.0)
        with pytest.warns(UserWarning, match="overfitted") as warned:
            model.fit(x, y, validation_data=(x, 100.0 * y), verbose=0)
        assert [w.filename for w in warned] == [__file__]

    def test_of_kare_that_a_rehearsal_finds_fooled(self, rng):
        """Targets that are noise: only rows that a rehearsal left out can tell."""
        x = rng.normal(size=(40, 4)).astype("float32")
        y = rng.normal(size=(40, 1)).astype("float32")
        model = self.made()
        model.compile(keras.optimizers.Adam(0.1), kk.losses.KARE(1e-3))
        with pytest.warns(UserWarning, match="rows held out from a rehearsal") as warned:
            history = model.fit(x, y, epochs=100, verbose=0)
        assert [w.filename for w in warned] == [__file__]
        assert "than 3 times as much: training has overfitted" in str(warned[0].message)
        said = float(str(warned[0].message).split("rehearsal of the training is ")[1][:4])
        assert said > 3.0 * history.history["loss"][-1]
        assert said > 0.5 * np.mean(y**2)

    def test_of_a_rehearsal_that_failed(self, rng, monkeypatch):
        def fails(*arguments):
            raise ValueError("no choice")

        x, y = data(rng)
        model = self.made()
        monkeypatch.setattr(Machine, "choose_ridge", fails)
        with pytest.warns(UserWarning, match="rehearsal on fewer rows failed") as warned:
            model.fit(x, y, verbose=0)
        assert [w.filename for w in warned] == [__file__]

    def test_of_a_machine_that_is_not_solved_well(self, rng):
        x, y = data(rng)
        solver = kk.solvers.CG(tolerance=1e-12, max_iterations=1)
        model = self.made(ridge=1e-3, solver=solver).fit_head(x, y)
        with pytest.warns(RuntimeWarning, match="relative residual") as warned:
            model.predict(x, verbose=0)
        assert [w.filename for w in warned] == [__file__]
