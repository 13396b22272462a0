"""The tutorial of text: its script runs, its facts hold, its notebook is its twin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPT, NOTEBOOK = TUTORIALS / "text_classifier.py", TUTORIALS / "text_classifier.ipynb"
OUR_WARNING = r"(keras_kare/(\w+/)*|text_classifier)\w*\.py:\d+: \w*Warning.*"


def test_script_runs_and_its_facts_hold(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={
            **os.environ,
            "KERAS_KARE_TUTORIAL_ROWS": "200",
            "KERAS_KARE_TUTORIAL_EPOCHS": "10",
            "PYTHONIOENCODING": "utf-8",
            "TMPDIR": str(tmp_path),
        },
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    out = run.stdout
    assert run.returncode == 0, out + run.stderr
    # So few rows are overfitted, and the user's line is told so.
    told = [found.group() for found in re.finditer(OUR_WARNING, run.stderr)]
    assert [line for line in told if "overfitted KARE" not in line] == [], run.stderr
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


def numbers(out: str, pattern: str) -> list[float]:
    """The numbers in the one line of the output that a pattern fits."""
    found = list(re.finditer(pattern, out, re.MULTILINE))
    assert len(found) == 1, f"{len(found)} lines fit {pattern!r} in:\n{out}"
    return [float(value) for value in found[0].groups()]


def test_notebook_has_exactly_the_cells_of_the_script() -> None:
    script, notebook = jupytext.read(SCRIPT), nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [[(c.cell_type, c.source) for c in n.cells] for n in (script, notebook)]
    assert cells[0] == cells[1], (
        "Run: jupytext --to notebook --update tutorials/text_classifier.py"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
