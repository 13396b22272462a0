"""Running the scripts of tutorials as a user does, and reading what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"


def run(script: str, cwd: Path, **environment: object) -> tuple[str, str]:
    """Run a tutorial to its end: what it printed, and what it said besides.

    Args:
        script: Name of its file.
        cwd: Where it runs.
        **environment: Variables of the environment besides those there are.
    """
    done = subprocess.run(
        [sys.executable, str(TUTORIALS / script)],
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            **{name: str(value) for name, value in environment.items()},
        },
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def numbers(out: str, pattern: str) -> list[float]:
    """The numbers in the one line of the output that a pattern fits."""
    found = list(re.finditer(pattern, out, re.MULTILINE))
    assert len(found) == 1, f"{len(found)} lines fit {pattern!r} in:\n{out}"
    return [float(value) for value in found[0].groups()]


def told(script: str, err: str) -> list[str]:
    """Warnings of ours, or on a line of the script, in what was said."""
    name = Path(script).stem
    ours = rf"(keras_kare/(\w+/)*|{name})\w*\.py:\d+: \w*Warning.*"
    return [found.group() for found in re.finditer(ours, err)]


def check_notebook(script: str) -> None:
    """Fail where the notebook has other cells than the script, or outputs."""
    notebook = nbformat.read((TUTORIALS / script).with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cells = [
        [(cell.cell_type, cell.source) for cell in n.cells]
        for n in (jupytext.read(TUTORIALS / script), notebook)
    ]
    assert cells[0] == cells[1], f"Run: jupytext --to notebook --update tutorials/{script}"
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
