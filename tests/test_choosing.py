"""Every way to choose a ridge."""

from __future__ import annotations

import keras
import networks
import numpy as np
import pytest
from test_head import machine, rows

import keras_kare as kk
from keras_kare.machine import ridge as ridges


@pytest.mark.usefixtures("float64")
class TestRidge:
    @pytest.mark.parametrize("relative", [True, False])
    def test_a_given_ridge(self, rng, relative):
        x, y = rows(rng)
        model = machine(rng, ridge=0.3, relative=relative)
        model.fit_head(x, y)
        gram = np.asarray(model.kernel.gram(x))
        unit = np.trace(gram) / len(x) ** 2 if relative else 1.0
        report = model.head.report
        assert report["ridge"] == pytest.approx(0.3)
        assert model.head.ridge_value == report["ridge_value"] == pytest.approx(0.3 * unit)
        system = gram / len(x) + model.head.ridge_value * np.eye(len(x))
        np.testing.assert_allclose(system @ model.head.dual, y, atol=1e-9)

    def test_report_is_what_it_says(self, rng):
        x, y = rows(rng, targets=2)
        model = machine(rng, ridge=0.1)
        model.fit_head(x, y)
        report, n = model.head.report, len(x)
        gram = np.asarray(model.kernel.gram(x))
        z = report["ridge_value"]
        loo = np.asarray(kk.risk.leave_one_out(y, gram, z))
        dimension = np.trace(gram @ np.linalg.inv(gram + n * z * np.eye(n)))
        assert report["leave_one_out_mse"] == pytest.approx(np.mean((loo - y) ** 2))
        assert report["kare"] == pytest.approx(float(kk.risk.kare(y, gram, z)))
        assert report["effective_dimension"] == pytest.approx(dimension)
        assert report["rows"] == n
        assert report["jitter"] == 0.0
        assert report["seconds"] > 0.0
        assert report["solver"] == "cholesky"
        assert report["chosen_by"] == "the user"

    def test_auto_on_an_untrained_network_is_leave_one_out(self, rng):
        x, y = rows(rng)
        model = machine(rng, ridge="auto")
        model.fit_head(x, y)
        gram = np.asarray(model.kernel.gram(x))
        unit = np.trace(gram) / len(x) ** 2
        errors = [
            np.mean((y - kk.risk.leave_one_out(y, gram, ridge * unit)) ** 2)
            for ridge in ridges.GRID
        ]
        best = ridges.GRID[np.argmin(errors)]
        assert model.head.report["relative_ridge"] == pytest.approx(best)
        assert model.head.report["chosen_by"] == "leave-one-out"
        assert model.head.report["solver"] == "spectral"

    def test_auto_on_validation_rows(self, rng):
        (x, y), (xv, yv) = rows(rng), rows(rng, n=15)
        model = machine(rng, ridge="auto")
        model.fit_head(x, y, validation_data=(xv, yv))
        assert model.head.report["chosen_by"] == "validation data"
        chosen = model.head.report["relative_ridge"]
        gram = np.asarray(model.kernel.gram(x)) / len(x)
        cross = np.asarray(model.kernel.cross(xv, x)) / len(x)
        unit = np.trace(gram) / len(x)
        errors = [
            np.mean(
                (cross @ np.linalg.solve(gram + ridge * unit * np.eye(len(x)), y) - yv) ** 2
            )
            for ridge in ridges.GRID
        ]
        assert chosen == pytest.approx(ridges.GRID[np.argmin(errors)])

    def test_auto_on_a_trained_network_says_that_it_cannot_choose(self, rng):
        x, y = rows(rng)
        network = networks.mlp()
        network.compile("sgd", "mse")
        network.fit(x, y, verbose=0)
        model = machine(rng, network=network, ridge="auto")
        with pytest.warns(UserWarning, match="validation_data"):
            model.fit_head(x, y)
        assert model.head.report["relative_ridge"] == 1.0
        assert model.head.report["chosen_by"] == "default"

    def test_training_is_remembered(self, rng, tmp_path):
        """Through another `compile`, and through a file loaded without one."""
        x, y = rows(rng)
        model = machine(rng, ridge="auto")
        model.compile("sgd", "kare")
        model.fit(x, y, validation_data=(x, y), verbose=0)
        model.compile("sgd", "kare")
        with pytest.warns(UserWarning, match="validation_data"):
            model.fit_head(x, y)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
        with pytest.warns(UserWarning, match="validation_data"):
            loaded.fit_head(x, y)

    def test_of_equal_ridges_the_largest(self, rng):
        model = machine(rng, ridge="auto")
        x, y = rows(rng)
        model.fit_head(x, np.zeros_like(y))
        ridge = model.head.report["relative_ridge"]
        assert ridge == pytest.approx(ridges.GRID[-1])
