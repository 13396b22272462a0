"""How far kernels move while networks train by themselves: jobs, page, figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pages import page_of

from keras_kare.experiments import drift_jobs
from keras_kare.experiments.drift_figure import drift_figure
from keras_kare.kernels import NTK


def job(**parts):
    given = {"dataset": "circle", "architecture": "dense", "width": 64, "seed": 0}
    return {**given, "loss": "squared", **parts}


def last(**parts):
    return drift_jobs.work(job(**parts), (0, 30, 1000))[-1]


@pytest.mark.parametrize("architecture", drift_jobs.NETWORKS)
def test_cross_entropy_moves_the_kernel_further(architecture):
    moved = {loss: last(architecture=architecture, loss=loss) for loss in drift_jobs.LOSSES}
    assert all(row["accuracy"] == 1.0 for row in moved.values())
    assert moved["cross-entropy"]["drift"] > 2.0 * moved["squared"]["drift"]
    assert moved["cross-entropy"]["weights_norm"] > moved["squared"]["weights_norm"]


def test_wide_networks_stay_nearer_under_squared_loss():
    drifts = [last(width=width)["drift"] for width in (16, 64, 256)]
    assert drifts[0] > drifts[1] > drifts[2] > 0.0


def test_the_start_is_the_start():
    row = drift_jobs.work(job(), (0,))[0]
    assert row["drift"] == 0.0
    x, y = drift_jobs.data("circle", 0)
    network = drift_jobs.NETWORKS["dense"](2, 64)
    assert NTK(network).gram(x).shape == (20, 20)
    assert np.array_equal(np.unique(y), [-1.0, 1.0])


def test_steps_are_gradient_descent(monkeypatch):
    monkeypatch.setitem(drift_jobs.LOSS, "squared", lambda f, y: 0.0 * f[0, 0])
    assert drift_jobs.work(job(), (0, 5))[-1]["drift"] == 0.0


def test_digits_are_of_both_parities(data_folder, monkeypatch, mnist_cache):
    monkeypatch.setenv("KERAS_KARE_DATA", str(data_folder))
    x, y = drift_jobs.data("parity", 0)
    assert x.shape == (drift_jobs.ROWS, 784)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-5)
    assert set(y.ravel()) == {-1.0, 1.0}


def test_a_run_and_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(drift_jobs, "WIDTHS", (8, 16))
    monkeypatch.setattr(drift_jobs, "STEPS", (0, 3))
    work = drift_jobs.work
    few = [each for each in drift_jobs.jobs([0, 1]) if each["dataset"] == "circle"]
    page = page_of("drift", few, lambda job: work(job, (0, 3)), tmp_path, monkeypatch)
    assert "How far kernels move" in page
    assert "After 3 steps, means over 2 seeds" in page
    assert "| circle | residual | 16 | cross-entropy |" in page
    assert (tmp_path / "drift.png").exists()
    rows = pd.read_csv(tmp_path / "drift" / "drift.csv")
    assert len(rows) == 2 * len(few)


def test_the_figure_has_a_panel_a_data_set_and_architecture():
    rows = pd.DataFrame(
        {"dataset": data, "architecture": "dense", "width": width, "loss": loss}
        | {"steps": steps, "drift": 0.1 * steps, "seed": 0}
        for data in ("circle", "parity")
        for width in (8, 16)
        for loss in drift_jobs.LOSSES
        for steps in (0, 1, 10)
    )
    axes = drift_figure(rows).axes
    assert [axis.get_title() for axis in axes] == ["circle, dense", "parity, dense"]
    assert [len(axis.lines) for axis in axes] == [4, 4]
    with pytest.raises(ValueError, match="drift"):
        drift_figure(rows.drop(columns="drift"))
