"""The tutorial of text: its script runs, its facts hold, its notebook is its twin."""

from __future__ import annotations

import re
from pathlib import Path

from tutorial_scripts import check_notebook, numbers, run, told


def test_script_runs_and_its_facts_hold(tmp_path: Path) -> None:
    out, err = run(
        "text_classifier.py",
        tmp_path,
        KERAS_KARE_TUTORIAL_ROWS=200,
        KERAS_KARE_TUTORIAL_EPOCHS=10,
        TMPDIR=tmp_path,
    )
    # So few rows are overfitted, and the user's line is told so.
    said = told("text_classifier.py", err)
    assert [line for line in said if "overfitted KARE" not in line] == [], err
    assert "200 training, 100 validation and 200 test sentences, 10 epochs" in out
    (plan,) = re.findall(r"^sequential/embedding/embeddings .*$", out, re.MULTILINE)
    assert "lookup" in plan

    first, last = numbers(out, r"^KARE ([\d.]+) in the first epoch, ([\d.]+) in the last$")
    assert 0.0 < last < first
    for name in ("NTK-KARE", "ordinary network", "after-NTK of that network", "TF-IDF, .*"):
        (right,) = numbers(out, rf"^{name} +([\d.]+)% of 200 test sentences right$")
        assert right > 65.0, name  # chance is 50 %

    for way in ("reloaded", "exported"):
        (off,) = numbers(out, rf"^{way}: largest difference of predictions ([\d.e+-]+)$")
        assert off < 1e-4, way
    scores = numbers(out, r"^served scores .*'matplotlib': ([\d.-]+), .*: ([\d.-]+)}$")
    assert abs(sum(scores) - 1.0) < 0.02
    (made,) = tmp_path.glob("text_classifier_*")
    assert (made / "serving" / "saved_model.pb").is_file()


def test_notebook_is_the_script_without_outputs() -> None:
    check_notebook("text_classifier.py")
