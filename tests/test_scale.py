"""Heads of any size: solvers of a head, streams, warnings, interruptions, files."""

from __future__ import annotations

import keras
import networks
import numpy as np
import psutil
import pytest
import tensorflow as tf
from gaussian import Gaussian

import keras_kare as kk
from keras_kare.machine import ridge
from keras_kare.models import gathering
from keras_kare.solvers import CG, EigenPro, Nystrom, Primal, System, stream
from keras_kare.solvers.eigenpro.feature_steps import FeatureIterate

EXACT_EIGENPRO = EigenPro(tolerance=1e-7, components=30, subsample=60)

SOLVERS = ["spectral", "cholesky", "primal", "cg", Nystrom(centres=500)]


def data(rng, n=120, targets=2):
    x = rng.normal(size=(n, networks.D)).astype("float32")
    y = np.sin(x @ rng.normal(size=(networks.D, targets))).astype("float32")
    return x, y


def machine(solver, ridge=0.5, c=1, **kwargs):
    keras.utils.set_random_seed(3)
    head = kk.NTKRidgeHead(ridge=ridge, solver=solver, **kwargs)
    return kk.KAREModel(networks.mlp(c=c), head=head)


def batches(x, y, size=17, weights=None):
    parts = (x, y) if weights is None else (x, y, weights)
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


class TestEverySolver:
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("form", ["dual", "primal"])
    def test_predicts_the_same(self, rng, solver, form):
        x, y = data(rng)
        weights = rng.integers(1, 4, size=len(x)).astype("float32")
        test = data(rng, 30)[0]
        expected = machine("cholesky", form="dual")
        expected.fit_head(x, y, sample_weight=weights)
        model = machine(solver, form=form)
        model.fit_head(x, y, sample_weight=weights)
        report = model.head.report
        assert report["form"] == form
        assert report["converged"]
        assert report["why"] == "the user"
        assert report["residual"] <= report["tolerance"]
        assert report["ridge_value"] == pytest.approx(expected.head.ridge_value, rel=1e-5)
        np.testing.assert_allclose(model.predict(test), expected.predict(test), atol=1e-4)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_is_saved_loaded_and_exported(self, rng, tmp_path, solver):
        x, y = data(rng)
        model = machine(solver)
        model.fit_head(x, y)
        before = model.predict(x[:9])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.predict(x[:9]), before)
        assert loaded.head.report == model.head.report
        assert vars(loaded.head.solver) == vars(model.head.solver)
        loaded.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(served.serve(x[:9]), before, atol=1e-5)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_chooses_a_ridge_on_validation_rows(self, rng, solver):
        (x, y), validation = data(rng), data(rng, 40)
        model = machine(solver, ridge="auto")
        model.fit_head(x, y, validation_data=validation)
        report = model.head.report
        assert report["chosen_by"] == "validation data"
        chosen = report["relative_ridge"]

        def error(ridge):
            other = machine("cholesky", ridge=ridge)
            other.fit_head(x, y)
            return np.mean((other(validation[0]).numpy() - validation[1]) ** 2)

        assert error(chosen) < min(error(20.0 * chosen), error(chosen / 20.0)) * 1.001

    @pytest.mark.parametrize(
        ("solver", "by"),
        [
            ("spectral", "leave-one-out"),
            ("primal", "leave-one-out"),
            ("cg", "hold-out (12 rows)"),
            ("nystrom", "hold-out (12 rows)"),
        ],
    )
    def test_says_how_it_chose_without_them(self, rng, solver, by):
        x, y = data(rng)
        model = machine(solver, ridge="auto")
        model.fit_head(x, y)
        assert model.head.report["chosen_by"] == by
        assert model.head.report["rows"] == len(x)

    @pytest.mark.parametrize("solver", ["cholesky", "cg", "nystrom"])
    def test_other_kernels(self, rng, solver):
        x, y = data(rng)
        results = []
        for name in ("spectral", solver):
            head = kk.NTKRidgeHead(ridge=0.5, solver=name)
            model = kk.KAREModel(Gaussian(), head=head)
            model.fit_head(x, y)
            results.append(model.predict(x))
        np.testing.assert_allclose(results[0], results[1], atol=1e-4)

    def test_residual_machines(self, rng):
        x, y = data(rng, targets=1)
        results = []
        for solver in ("cholesky", "cg", "primal"):
            model = machine(solver, residual=True)
            model.fit_head(x, y)
            results.append(model.predict(x))
        model = machine("primal", residual=True)
        model.fit_head(batches(x, y))
        for other in (*results[1:], model.predict(x)):
            np.testing.assert_allclose(results[0], other, atol=1e-4)

    def test_the_machine_of_centres_keeps_only_them(self, rng):
        x, y = data(rng)
        model = machine(Nystrom(centres=10), form="dual")
        model.fit_head(x, y)
        assert model.head.anchors.shape == (10, networks.D)
        assert model.head.dual.shape == (10, 2)
        assert model.head.targets is None
        assert 0.0 < model.head.report["kernel_error"] < 1.0
        model.predict(x)
        model.network.trainable_variables[0].assign_add(
            keras.ops.ones_like(model.network.trainable_variables[0])
        )
        with pytest.raises(ValueError, match="stale"):
            model.predict(x)
        with pytest.raises(ValueError, match="anchors"):
            model.variance(x)


class TestTrust:
    def test_predict_warns_where_a_solver_gave_up(self, rng):
        x, y = data(rng)
        solver = CG(rank=0, max_iterations=1, tolerance=1e-9)
        model = machine(solver, ridge=1e-3)
        model.fit_head(x, y)
        assert model.head.report["stopped"] == "iterations"
        assert not model.head.report["converged"]
        with pytest.warns(RuntimeWarning, match=r"residual of .* \(stopped: iterations\)"):
            model.predict(x)

    def test_ctrl_c_leaves_a_head_that_predicts(self, rng, monkeypatch):
        x, y = data(rng)
        model = machine(CG(rank=40, tolerance=1e-12), ridge=1e-3)
        real, calls = System.matmul, []

        def interrupted(self, *arguments, **named):
            calls.append(1)
            if len(calls) == 12:
                raise KeyboardInterrupt
            return real(self, *arguments, **named)

        monkeypatch.setattr(System, "matmul", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            model.fit_head(x, y)
        assert "best iterate" in stopped.value.__notes__[0]
        monkeypatch.undo()
        assert model.head.report["stopped"] == "interrupted"
        with pytest.warns(RuntimeWarning, match="stopped: interrupted"):
            predicted = model.predict(x)
        assert np.mean((predicted - y) ** 2) < np.mean(y**2)

    def test_memory_is_checked_before_the_work(self, rng):
        x, y = data(rng)
        model = machine(kk.solvers.Cholesky(memory_limit=1000))
        with pytest.raises(MemoryError, match=r"takes 576 kB for 120 rows.*cg"):
            model.fit_head(x, y)

    def test_auto_says_why(self, rng):
        x, y = data(rng)
        model = machine("auto")
        model.fit_head(x, y)
        assert model.head.report["solver"] == "cholesky"
        assert "120 rows" in model.head.report["why"]


class TestStreams:
    @pytest.mark.parametrize("solver", [Primal(), Nystrom(centres=500), EXACT_EIGENPRO])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equal_arrays(self, rng, solver, weighted):
        x, y = data(rng, 150)
        weights = rng.integers(1, 4, size=150).astype("float32") if weighted else None
        model, streamed = machine(solver, ridge=2.0), machine(solver, ridge=2.0)
        model.fit_head(x, y, sample_weight=weights)
        streamed.fit_head(batches(x, y, weights=weights))
        np.testing.assert_allclose(streamed.predict(x), model.predict(x), atol=1e-5)
        for name in ("rows", "ridge_value", "effective_dimension"):
            expected, found = model.head.report[name], streamed.head.report[name]
            assert found == expected or found == pytest.approx(expected, rel=1e-5)
        assert streamed.head.report["converged"]
        if isinstance(solver, Primal):
            kare = model.head.report["kare"]
            assert streamed.head.report["kare"] == pytest.approx(kare, rel=1e-5)

    @pytest.mark.parametrize("solver", ["primal", "nystrom", "eigenpro"])
    def test_are_saved_loaded_and_exported(self, rng, tmp_path, solver):
        x, y = data(rng)
        model = machine(solver)
        model.fit_head(batches(x, y))
        before = model.predict(x[:9])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.predict(x[:9]), before)
        loaded.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_allclose(served.serve(x[:9]), before, atol=1e-5)

    @pytest.mark.parametrize("solver", ["primal", "nystrom", "eigenpro"])
    def test_fit_trains_and_solves_on_them(self, rng, solver, monkeypatch):
        x, y = data(rng, 200)
        model = machine(solver)
        model.compile(keras.optimizers.SGD(0.01), "kare")
        monkeypatch.setattr(
            gathering, "concatenated", lambda *_: pytest.fail("all rows were gathered")
        )
        history = model.fit(batches(x, y, 50), epochs=2, validation_data=(x[:40], y[:40]))
        assert len(history.history["loss"]) == 2
        assert model.head.report["rows"] == 200
        assert np.mean((model.predict(x) - y) ** 2) < np.mean(y**2)

    def test_memory_does_not_grow_with_the_rows(self):
        """A machine of few variables on rows that would take 400 MB."""
        keras.utils.set_random_seed(0)
        rows = tf.random.normal((10_000, 100))

        def make(i):
            x = rows + tf.cast(i, tf.float32)
            return x, x[:, :1]

        network = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1)])
        head = kk.NTKRidgeHead(ridge=1.0, solver="primal")
        model = kk.KAREModel(network, head=head)
        model.fit_head(tf.data.Dataset.range(2).map(make))
        process = psutil.Process()
        before = process.memory_info().rss
        model.fit_head(tf.data.Dataset.range(100).map(make))
        assert model.head.report["rows"] == 1_000_000
        assert process.memory_info().rss - before < 100e6

    def test_auto_needs_validation_rows(self, rng):
        x, y = data(rng)
        model = machine("primal", ridge="auto")
        with pytest.raises(ValueError, match="needs rows to choose on"):
            model.fit_head(batches(x, y))
        model.compile(keras.optimizers.SGD(0.01), "kare")
        with pytest.raises(ValueError, match="needs rows to choose on"):
            model.fit(batches(x, y))
        model.fit_head(batches(x, y), validation_data=data(rng, 40))
        assert model.head.report["chosen_by"] == "validation data"

    def test_stale_streams_cannot_be_solved_again(self, rng):
        x, y = data(rng)
        model = machine("primal")
        model.fit_head(batches(x, y))
        model.compile(keras.optimizers.SGD(0.01), "kare")
        model.train_on_batch(x, y)
        with pytest.raises(ValueError, match="fit_head"):
            model.predict(x)

    def test_bad_batches_are_named(self, rng):
        x, y = data(rng)
        model = machine("primal")
        with pytest.raises(ValueError, match="no rows"):
            model.fit_head(batches(x[:0], y[:0]))
        y[50] = np.nan
        with pytest.raises(ValueError, match="`y` holds NaN"):
            model.fit_head(batches(x, y))

    def test_eigenpro_chooses_a_ridge_downhill(self, rng):
        x, y = data(rng)
        rows, held = batches(x[:90], y[:90]), (x[90:], y[90:])
        solver = EigenPro(components=60)
        model, direct = (machine(s, ridge="auto") for s in (solver, "spectral"))
        model.fit_head(rows, validation_data=held)
        direct.fit_head(x[:90], y[:90], validation_data=held)
        report = model.head.report
        assert report["chosen_by"] == "validation data"
        assert report["converged"]
        assert report["iterations"] > 0
        errors = [np.mean((m.predict(held[0]) - held[1]) ** 2) for m in (model, direct)]
        assert errors[0] < 1.1 * errors[1]

    def test_eigenpro_reads_batches_of_any_size(self, rng):
        x, y = data(rng)
        expected = machine("cholesky", ridge=2.0)
        expected.fit_head(x, y)
        for batch, rows in ((120, 13), (7, 1000), (1, 64)):
            solver = EigenPro(1e-6, batch_size=rows, components=30, subsample=50)
            model = machine(solver, ridge=2.0)
            model.fit_head(batches(x, y, batch))
            assert model.head.report["converged"]
            np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-4)

    def test_eigenpro_refuses_another_order(self, rng, monkeypatch):
        x, y = data(rng)
        rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(120).batch(40)
        model = machine("eigenpro")
        model.compile(keras.optimizers.SGD(0.01), "kare")
        with pytest.raises(ValueError, match="reshuffle_each_iteration=False"):
            model.fit(rows, epochs=1)
        assert int(model.optimizer.iterations) == 0
        late = tf.data.Dataset.from_tensor_slices((x, y))
        late = late.take(40).concatenate(late.skip(40).shuffle(80)).batch(40)
        monkeypatch.setattr(stream, "TOGETHER", 40)
        with pytest.raises(ValueError, match="near row 40"):
            model.fit_head(late)

    def test_eigenpro_gathers_rows_of_kernels_without_features(self, rng):
        x, y = data(rng)
        model, expected = (
            kk.KAREModel(Gaussian(), head=kk.NTKRidgeHead(ridge=1.0, solver=solver))
            for solver in (EigenPro(tolerance=1e-6), "cholesky")
        )
        model.fit_head(batches(x, y, 20))
        expected.fit_head(x, y)
        np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-4)

    @pytest.mark.parametrize(("limit", "what"), [(1e3, "features"), (2e4, "rows")])
    def test_eigenpro_checks_memory(self, rng, limit, what):
        x, y = data(rng)
        model = machine(EigenPro(memory_limit=int(limit), subsample=10))
        with pytest.raises(MemoryError, match=what):
            model.fit_head(batches(x, y))

    def test_interrupted_eigenpro_keeps_its_best(self, rng, monkeypatch):
        x, y = data(rng)
        model = machine(EigenPro(tolerance=1e-12, subsample=20))
        epochs = iter(range(3))
        update = FeatureIterate.update

        def interrupted(self, numbers, x_rows, y_rows):
            if numbers[0] == 0 and next(epochs, None) is None:
                raise KeyboardInterrupt
            return update(self, numbers, x_rows, y_rows)

        monkeypatch.setattr(FeatureIterate, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit_head(batches(x, y))
        assert model.head.report["stopped"] == "interrupted"
        assert model.head.report["residual"] < 0.5
        with pytest.warns(RuntimeWarning, match="residual"):
            assert np.mean((model.predict(x) - y) ** 2) < np.mean(y**2)

    def test_nothing_is_given_beside_them(self, rng):
        x, y = data(rng)
        model, weights = machine("primal"), np.ones(len(x))
        model.compile(keras.optimizers.SGD(0.01), "kare")
        with pytest.raises(ValueError, match="`sample_weight` and `class_weight` need"):
            model.fit_head(batches(x, y), sample_weight=weights)
        with pytest.raises(ValueError, match="`y` must not be given"):
            model.fit_head(batches(x, y), y)
        with pytest.raises(ValueError, match="`sample_weight` and `class_weight` need"):
            model.fit(batches(x, y), sample_weight=weights)
        with pytest.raises(ValueError, match="`sample_weight` and `class_weight` need"):
            model.fit(batches(x, np.sign(y[:, :1])), class_weight={0: 1.0, 1: 2.0})

    @pytest.mark.parametrize("solver", ["primal", Nystrom(centres=500), EXACT_EIGENPRO])
    def test_batches_of_no_weight_or_of_one_row_count(self, rng, solver):
        x, y = data(rng, 103)
        weights = rng.integers(1, 4, size=103).astype("float32")
        weights[:17] = 0.0
        model, expected = machine(solver, ridge=2.0), machine("cholesky", ridge=2.0)
        expected.fit_head(x, y, sample_weight=weights)
        model.fit_head(batches(x, y, weights=weights))
        np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-4)
        with pytest.raises(ValueError, match="positive for some rows"):
            model.fit_head(batches(x, y, weights=0.0 * weights))

    def test_a_batch_of_one_row_trains_nothing(self, rng):
        x, y = data(rng, 103)
        model, expected = machine("primal"), machine("primal")
        for each in (model, expected):
            each.compile(keras.optimizers.SGD(0.01), "kare")
        with pytest.raises(tf.errors.InvalidArgumentError, match="batch of one row"):
            model.fit(batches(x, y), epochs=1)
        expected.fit(batches(x[:102], y[:102]), epochs=1)
        for weight, other in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(weight, other, atol=1e-6)

    def test_batches_that_do_not_fit_together(self, rng):
        x, y = data(rng)
        model = machine("primal")
        wider = batches(x, np.hstack([y, y]))
        wider = wider.map(lambda x, y: (x, tf.ensure_shape(y, (None, None))))
        rows = batches(x, y).map(lambda x, y: (x, tf.ensure_shape(y, (None, None))))

        def unlike():
            yield from rows
            yield from wider

        spec = (tf.TensorSpec((None, networks.D)), tf.TensorSpec((None, None)))
        with pytest.raises(ValueError, match="batch 8 with 4 targets"):
            model.fit_head(tf.data.Dataset.from_generator(unlike, output_signature=spec))

        class Batches(keras.utils.PyDataset):
            num_batches = 3

            def __getitem__(self, i):
                part = slice(40 * i, 40 * i + 40)
                given = (x[part], y[part])
                return given if i else (*given, np.ones(40))

        with pytest.raises(ValueError, match="batch 1 with 2 targets and no weights"):
            model.fit_head(Batches())
        with pytest.raises(ValueError, match="single rows"):
            model.fit_head(tf.data.Dataset.from_tensor_slices((x, y)))
        with pytest.raises(ValueError, match="take"):
            model.fit_head(batches(x, y).repeat())

    def test_keep_no_rows(self, rng):
        x, y = data(rng)
        model = machine("primal", form="dual")
        model.compile(keras.optimizers.SGD(0.01), "kare")
        with pytest.raises(ValueError, match="needs anchors"):
            model.fit(batches(x, y))
        assert int(model.optimizer.iterations) == 0
        model = machine("nystrom", form="dual")
        model.fit_head(batches(x, y))
        with pytest.raises(ValueError, match="with all its rows"):
            model.variance(x)

    def test_a_reservoir_draws_each_row_alike(self):
        rows = np.arange(60.0)[:, None]

        def read():
            for begin in range(0, 60, 7):
                part = rows[begin : begin + 7]
                yield tf.constant(part), part, None

        counts = np.zeros(60)
        for seed in range(300):
            drawn, x = stream.Stream(read).sample(12, seed)
            np.testing.assert_array_equal(x[:, 0], drawn)
            assert len(set(drawn)) == 12
            counts[drawn] += 1
        # Binomial(300, 0.2): mean 60, standard deviation 7.
        assert np.all(np.abs(counts - 60) < 5 * 7)


def test_rows_that_are_held_out_are_few(monkeypatch, rng):
    monkeypatch.setattr(ridge, "MOST_HELD_OUT", 5)
    x, y = data(rng)
    model = machine("cg", ridge="auto")
    model.fit_head(x, y)
    assert model.head.report["chosen_by"] == "hold-out (5 rows)"
