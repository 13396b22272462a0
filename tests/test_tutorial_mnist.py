"""The MNIST tutorial: its script runs, its facts hold, its notebook is its twin."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tutorial_scripts import check_notebook, numbers, run, told

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture
def tfds_folder(data_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A `data_dir` as tensorflow-datasets builds it from its downloads."""
    missing = [name for name in FILES if not (data_folder / "mnist" / name).is_file()]
    if missing:
        message = f"KERAS_KARE_DATA has no mnist/{missing[0]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    cache = request.getfixturevalue("mnist_cache")
    return cache / "keras_kare" / "tensorflow_datasets"


def test_script_runs_and_its_facts_hold(tfds_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    out, err = run(
        "mnist_tfds.py",
        tmp_path,
        KERAS_KARE_TFDS_DIR=tfds_folder,
        KERAS_KARE_TUTORIAL_ROWS=300,
        KERAS_KARE_TUTORIAL_EPOCHS=12,
        MPLBACKEND="Agg",
        TMPDIR=made,
    )
    # So few rows are overfitted, and the user's line is told so.
    said = told("mnist_tfds.py", err)
    assert [line for line in said if "overfitted KARE" not in line] == [], err
    assert "300 training, 300 validation and 600 test rows, 12 epochs" in out

    # KARE is the training error over (1 - d/n)², and falls when it is trained.
    (by_hand,) = numbers(out, r"training MSE / \(1 - d/n\)\^2 +([\d.]+)")
    (kare,) = numbers(out, r"KARE of the untrained kernel +([\d.]+)")
    assert by_hand == pytest.approx(kare, abs=2e-4)
    first, last = numbers(out, r"KARE +([\d.]+) in the first epoch, ([\d.]+) in the last")
    assert 0.0 < last < first / 2
    first, last = numbers(
        out, r"measured MSE +([\d.]+) in the first .* ([\d.]+) in the last"
    )
    assert last < first

    # The head chose its ridge on the validation rows, from all training rows.
    assert re.search(r"^chosen_by +validation data$", out, re.MULTILINE)
    assert re.search(r"^rows +300$", out, re.MULTILINE)
    assert numbers(out, r"^jitter +([\d.e-]+)$") == [0.0]

    # Every row of the first table, and `evaluate` beside it.
    table = {
        name: numbers(out, rf"^{re.escape(name)} +([\d.]+) +([\d.]+)%$")
        for name in (
            "kernel of the untrained net",
            "ordinary network",
            "after-NTK",
            "NTK-KARE",
        )
    }
    for name, (mse, accuracy) in table.items():
        assert mse < 0.4, name
        assert accuracy > 90.0, name
    assert table["NTK-KARE"][0] < table["kernel of the untrained net"][0]
    evaluated = numbers(out, r"^evaluate: MSE ([\d.]+), accuracy ([\d.]+)%$")
    assert evaluated[0] == pytest.approx(table["NTK-KARE"][0], abs=2e-4)
    assert evaluated[1] == pytest.approx(table["NTK-KARE"][1], abs=0.11)  # printed to 0.1

    # Ten digits: chance is 10 %.
    assert "dual of the head, one column a digit: (600, 10)" in out
    (untrained,) = numbers(out, r"^kernel of the untrained net +([\d.]+)%$")
    (network,) = numbers(out, r"^ordinary network, ten outputs +([\d.]+)%$")
    (trained,) = numbers(out, r"^NTK-KARE +([\d.]+)%$")
    assert min(untrained, network, trained) > 75.0

    # Saved and exported machines answer the same.
    for way in ("reloaded", "exported"):
        (off,) = numbers(out, rf"^{way}: largest difference of predictions ([\d.e+-]+)$")
        assert off < 1e-4, way
    for name in ("*.png", "*.keras", "serving/saved_model.pb"):
        assert list(made.glob(f"mnist_tfds_*/{name}")), name

    # Early stopping.
    ran, most = numbers(out, r"^stopped after (\d+) of (\d+) epochs$")
    assert 0 < ran <= most == 36
    _, accuracy = numbers(out, r"^test MSE ([\d.]+), accuracy ([\d.]+)%$")
    assert accuracy > 90.0


def test_notebook_is_the_script_without_outputs() -> None:
    check_notebook("mnist_tfds.py")
