"""Regression against other regressors: scores of forecasts, tables, jobs, the page."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.gaussian_process.kernels import RBF

from keras_kare.experiments import (
    command,
    regression_jobs,
    regression_report,
    regressors,
    report,
)
from keras_kare.experiments.forecasts import (
    Forecast,
    crps_of_draws,
    crps_of_gaussian,
    scores,
)
from keras_kare.experiments.names import METHODS
from keras_kare.experiments.regression_tables import TABLES, load_table
from keras_kare.experiments.regressors import REGRESSORS, available

UNTIMED = ["fold", "rmse", "crps", "log_likelihood", "covered"]


def job(**parts):
    given = {"dataset": "friedman1", "method": "laplace_l1", "rows": 40, "seed": 0}
    return {**given, **parts}


def untimed(rows):
    return [[row[name] for name in UNTIMED] for row in rows]


class TestForecasts:
    def test_crps_of_a_gaussian_is_that_of_many_draws(self, rng):
        y, mean, std = rng.normal(size=(3, 4))
        std = np.exp(std)
        quantiles = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
        found = crps_of_gaussian(y, mean, std)
        draws = mean[:, None] + std[:, None] * quantiles
        np.testing.assert_allclose(found, crps_of_draws(y, draws), rtol=1e-3)

    def test_crps_of_draws_is_its_definition(self, rng):
        y, draws = rng.normal(size=3), rng.normal(size=(3, 7))
        pairs = np.abs(draws[:, :, None] - draws[:, None]).mean(axis=(1, 2))
        expected = np.abs(draws - y[:, None]).mean(axis=1) - 0.5 * pairs
        np.testing.assert_allclose(crps_of_draws(y, draws), expected)

    def test_crps_of_one_draw_is_the_absolute_error(self):
        found = crps_of_draws(np.array([1.0, 2.0]), np.array([[4.0], [1.5]]))
        np.testing.assert_allclose(found, [3.0, 0.5])

    def test_the_unit_does_not_matter(self, rng):
        y, mean = rng.normal(size=(2, 20))
        draws = rng.normal(size=(20, 9))
        for forecast in (Forecast(mean, np.full(20, 0.7)), Forecast(mean, draws=draws)):
            scaled = Forecast(*(None if v is None else 5.0 * v for v in forecast))
            assert scores(forecast, y, 2.0) == pytest.approx(scores(scaled, 5.0 * y, 10.0))

    def test_what_is_right_scores_well(self, rng):
        y = rng.normal(size=20_000)
        found = scores(Forecast(np.zeros(len(y)), np.ones(len(y))), y, 1.0)
        assert found["rmse"] == pytest.approx(1.0, abs=0.02)
        assert found["covered"] == pytest.approx(0.9, abs=0.01)
        assert found["log_likelihood"] == pytest.approx(
            np.mean(scipy.stats.norm.logpdf(y)), abs=1e-9
        )
        assert found["crps"] == pytest.approx(1.0 / np.sqrt(np.pi), abs=0.02)
        for std in (0.5, 2.0):  # proper scores: neither too sure nor too unsure is better
            other = scores(Forecast(np.zeros(len(y)), np.full(len(y), std)), y, 1.0)
            assert other["crps"] > found["crps"]
            assert other["log_likelihood"] < found["log_likelihood"]

    def test_no_distribution_no_score(self):
        found = scores(Forecast(np.zeros(3)), np.array([3.0, -3.0, 3.0]), 2.0)
        assert found == {"rmse": 1.5, "crps": None, "log_likelihood": None, "covered": None}

    def test_no_variance_is_finite(self):
        y, mean = np.zeros(2), np.ones(2)
        for forecast in (Forecast(mean, mean - 1.0), Forecast(mean, draws=mean[:, None])):
            found = scores(forecast, y, 1.0)
            assert all(np.isfinite(value) for value in found.values())
            assert found["crps"] == pytest.approx(1.0, abs=1e-3)


class TestTables:
    @pytest.mark.parametrize("name", ["diabetes", "iris_petal_width", "friedman2"])
    def test_rows_are_drawn_by_a_seed(self, name):
        x, y = load_table(name, 30, 0)
        assert len(x) == 30
        assert y.shape == (30,)
        assert x.dtype == y.dtype == np.float64
        again, other = load_table(name, 30, 0), load_table(name, 30, 1)
        np.testing.assert_array_equal(x, again[0])
        np.testing.assert_array_equal(y, again[1])
        assert not np.array_equal(x, other[0])

    def test_small_tables_are_whole(self):
        x, y = load_table("linnerud_weight", 1000, 0)
        assert x.shape == (20, 3)
        assert np.ptp(y) > 50.0  # pounds

    def test_the_target_is_no_input(self):
        x, y = load_table("wine_proline", 1000, 0)
        assert x.shape == (178, 12)
        assert y.max() == 1680.0  # mg/l
        assert not np.any(np.all(x == y[:, None], axis=0))

    def test_every_table_has_a_number_to_predict(self, data_folder, monkeypatch):
        monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
        for name in TABLES:
            x, y = load_table(name, 1000, 0)
            assert x.ndim == 2, name
            assert len(x) == len(y) >= 20, name
            assert np.all(np.isfinite(x)), name
            assert len(np.unique(y)) > 13, name  # a measurement, no class

    def test_there_are_enough_real_ones(self):
        assert sum(not table.simulated for table in TABLES.values()) >= 12
        assert [name for name, t in TABLES.items() if t.simulated] == [
            *("friedman1", "friedman2", "friedman3")
        ]


class TestRegressors:
    @pytest.mark.parametrize("name", sorted(set(available()) - {"catboost", "xrfm"}))
    def test_learns_a_line(self, name, rng):
        x = rng.normal(size=(120, 2))
        y = 100.0 + 10.0 * x[:, 0] + rng.normal(size=120)
        if name == "kare_regressor":
            fit = regressors.kare(epochs=10, hidden_sizes=(8,))
        else:
            fit = REGRESSORS[name].fit
        forecast = fit(x[:90], y[:90], 0)(x[90:])
        found = scores(forecast, y[90:], float(np.std(y)))
        assert forecast.mean.shape == (30,)
        assert found["rmse"] < 0.6
        known = ("kare_regressor", "kare_untrained", "gp_rbf", "gp_matern", "random_forest")
        assert (found["crps"] is not None) == (name in known)
        if name in known:
            assert 0.6 <= found["covered"] <= 1.0

    @pytest.mark.parametrize("name", ["catboost", "xrfm"])
    def test_those_of_other_libraries(self, name, rng):
        pytest.importorskip(REGRESSORS[name].library)
        x = rng.normal(size=(80, 2))
        y = 5.0 + x[:, 0]
        first, second = (REGRESSORS[name].fit(x, y, 0)(x).mean for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert np.mean((first - y) ** 2) < 0.2

    def test_a_gaussian_process_sees_noise(self, rng):
        x = rng.normal(size=(100, 1))
        y = 3.0 * x[:, 0] + 2.0 * rng.normal(size=100)
        forecast = regressors.gaussian_process(RBF)(x, y, 0)(x)
        assert np.mean(forecast.std) == pytest.approx(2.0, rel=0.3)

    def test_leave_one_out_is_what_chooses(self, rng):
        x = rng.normal(size=(40, 2))
        y = np.sign(x[:, 0])
        predict = regressors.laplace_l1(x, y, 0)
        assert np.mean((predict(x).mean - y) ** 2) < 0.3
        noise = regressors.laplace_l1(x, rng.normal(size=40), 0)
        assert np.std(noise(x).mean) < 0.7  # nothing to learn: a large ridge

    def test_every_method_has_a_name(self):
        assert set(REGRESSORS) <= set(METHODS)


class TestJobs:
    def test_a_job_a_table_and_regressor(self):
        found = regression_jobs.jobs(["diabetes", "friedman1"])
        assert len(found) == 2 * len(available())
        assert all(regression_jobs.current(each) for each in found)
        assert not regression_jobs.current({**found[0], "settings": "others"})
        assert not regression_jobs.current({**found[0], "method": "gone"})

    def test_published_results_are_of_the_jobs_of_today(self):
        results = Path(__file__).parents[1] / "benchmarks" / "results" / "regression"
        rows = pd.read_csv(results / "regression.csv")
        names = ["experiment", "dataset", "method", "settings", "rows", "seed"]
        for line in rows[names].drop_duplicates().to_dict("records"):
            assert regression_jobs.current(line), line

    def test_rows_are_those_of_four_folds(self):
        rows = regression_jobs.work(job())
        assert [row["fold"] for row in rows] == [0, 1, 2, 3]
        assert all(row["train_rows"] == 30 and row["test_rows"] == 10 for row in rows)
        assert all(row["columns"] == 10 and row["cpu_seconds"] >= 0.0 for row in rows)
        assert all(0.0 < row["rmse"] < 2.0 for row in rows)

    @pytest.mark.parametrize("method", ["gp_matern", "laplace_l1", "kare_untrained"])
    def test_same_seeds_same_numbers(self, method):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bounds of a Gaussian process
            first, second = (
                untimed(regression_jobs.work(job(method=method))) for _ in range(2)
            )
        assert first == second


def frame(**methods):
    """Rows of four folds of three tables, with errors of each method, the same noise."""
    noise = 0.01 * np.arange(4)
    lines = [
        {"dataset": table, "method": method, "fold": fold, "rmse": error + noise[fold]}
        | {"crps": error / 2.0, "log_likelihood": -error, "covered": 0.9}
        | {"train_rows": 30, "test_rows": 10, "columns": 3, "cpu_seconds": 0.5}
        for method, errors in methods.items()
        for table, error in zip(("friedman1", "wine", "iris"), errors, strict=True)
        for fold in range(4)
    ]
    return pd.DataFrame(lines)


class TestReport:
    def test_means_are_of_complete_methods(self):
        rows = frame(kare_regressor=(0.3, 0.4, 0.5), gp_rbf=(0.3, 0.4, 0.5))
        late = frame(xrfm=(0.1, 0.2, 0.3))
        found = regression_report.means(
            pd.concat([rows, late[late.dataset == "wine"]]), "rmse"
        )
        assert set(found) == {"kare_regressor", "gp_rbf"}
        assert found.loc["wine", "gp_rbf"] == pytest.approx(0.415)

    def test_a_fold_without_a_number_shows(self):
        rows = frame(kare_regressor=(0.3, 0.4, 0.5), gp_rbf=(0.3, 0.4, 0.5))
        rows.loc[(rows.method == "gp_rbf") & (rows.fold == 1), "rmse"] = np.nan
        assert regression_report.means(rows, "rmse")["gp_rbf"].isna().all()

    def test_methods_without_a_score_are_left_out(self):
        rows = frame(kare_regressor=(0.3, 0.4, 0.5), laplace_l1=(0.3, 0.4, 0.5))
        rows.loc[rows.method == "laplace_l1", "crps"] = np.nan
        assert list(regression_report.means(rows, "crps")) == ["kare_regressor"]

    def test_equal_to_three_digits_is_equal_in_rank(self):
        table = pd.DataFrame({"a": [0.50001, 0.3], "b": [0.5, 0.2], "c": [0.7, np.nan]})
        found = regression_report.ranks(table)
        assert found.to_numpy().tolist() == [[1.5, 1.5, 3.0], [2.0, 1.0, 3.0]]

    def test_duels_know_ties(self):
        rows = frame(kare_regressor=(0.3, 0.4, 0.5), gp_rbf=(0.2, 0.4, 0.6))
        noisy = (rows.method == "gp_rbf") & (rows.dataset == "wine") & (rows.fold == 0)
        rows.loc[noisy, "rmse"] += 0.05  # one fold of four
        assert regression_report.duels(rows, "rmse", "gp_rbf") == (1, 1, 1)
        assert regression_report.verdict(0.0, 0.0) == "tie"
        assert regression_report.verdict(0.3, 0.1) == "worse"
        assert regression_report.verdict(-0.3, 0.1) == "better"

    def test_sections_rank_measured_tables_alone(self):
        rows = frame(
            kare_regressor=(0.9, 0.4, 0.5),
            kare_untrained=(0.1, 0.8, 1.0),
            gp_rbf=(0.1, 0.5, 0.6),
        )
        page = "\n".join(regression_report.sections(rows))
        assert "### RMSE, 2 measured tables" in page
        assert "| **KARERegressor()** | 1.00 | 0.00 | 1.000 | 0.000 |" in page
        assert "| Gaussian process, RBF | 2.00 |" in page
        assert "training is better on 2 tables, ties on 0, and is worse on 0" in page
        assert "| friedman1 (simulated) | 40 | 3 |" in page

    def test_a_run_and_its_page(self, tmp_path, monkeypatch):
        few = ("gp_rbf", "laplace_l1", "kare_untrained")
        known = {name: REGRESSORS[name] for name in few}
        known["kare_regressor"] = regressors.Regressor(
            regressors.kare(epochs=10, hidden_sizes=(8,)), "small", "keras_kare"
        )
        monkeypatch.setattr(regression_jobs, "REGRESSORS", known)
        monkeypatch.setattr(regression_jobs, "available", lambda: known)
        monkeypatch.setattr(regression_jobs, "ROWS", 24)
        command_line = ["regression", "--out", str(tmp_path), "--workers", "0"]
        names = ["diabetes", "iris_petal_width", "friedman1"]
        command.main([*command_line, "--datasets", *names])
        rows = pd.read_csv(tmp_path / "regression" / "regression.csv")
        assert len(rows) == 3 * 4 * 4
        files = sorted((tmp_path / "regression" / "jobs").iterdir())
        written = [file.stat().st_mtime_ns for file in files]
        command.main([*command_line, "--datasets", "diabetes"])  # nothing is left to do
        assert written == [file.stat().st_mtime_ns for file in files]
        assert len(pd.read_csv(tmp_path / "regression" / "regression.csv")) == len(rows)
        page = report.write(tmp_path, None).read_text()
        assert "## Regression" in page
        assert "### RMSE, 2 measured tables" in page
        assert "### CRPS, 2 measured tables" in page
        assert "| iris petal width | 24 | 3 |" in page

    def test_unknown_tables_are_refused(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            command.main(["regression", "--datasets", "moon", "--out", str(tmp_path)])
        assert "no such table: 'moon'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "given",
        [
            ["regression", "--methods", "kare"],
            ["simulation", "--datasets", "diabetes"],
            ["regression", "--workers", "-1"],
        ],
    )
    def test_options_of_others_are_refused(self, tmp_path, capsys, given):
        with pytest.raises(SystemExit):
            command.main([*given, "--budget", "0", "--out", str(tmp_path)])
        assert f"argument {given[1]}: " in capsys.readouterr().err
