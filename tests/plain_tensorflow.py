"""Runs exported models in a Python that has neither keras nor keras_kare.

    python plain_tensorflow.py FOLDER [python]

Each folder in FOLDER holds `served` and `inputs.npz`. Writes what all signatures give,
called from Python and, unless told that Python will do, from `saved_model_cli run`, to
`plain.npz`, and what `saved_model_cli show` says to `show.txt`.
"""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

for name in ("keras", "keras_kare"):
    sys.modules[name] = None  # what Python raises ImportError for

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

(ENTRY,) = entry_points(group="console_scripts", name="saved_model_cli")


def command_line(*arguments: Any) -> None:
    """`saved_model_cli` with these arguments."""
    sys.argv = ["saved_model_cli", *map(str, arguments)]
    with contextlib.suppress(SystemExit):  # its way of returning; errors raise others
        ENTRY.load()()


def array(value: Any) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(bytes) if value.dtype == object else value


def from_python(loaded: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All signatures, on all rows and on the first alone."""
    found = {}
    for name, signature in loaded.signatures.items():
        for suffix, end in (("", None), (" of one row", 1)):
            rows = {key: tf.constant(value[:end]) for key, value in inputs.items()}
            for key, value in signature(**rows).items():
                found[f"{name} {key}{suffix}"] = array(value)
    return found


def from_the_command_line(
    folder: Path, names: set[str], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    found, out = {}, folder / "out"
    given = ";".join(f"{key}={folder / 'inputs.npz'}[{key}]" for key in inputs)
    for name in names:
        where = ["--dir", folder / "served", "--tag_set", "serve", "--signature_def", name]
        with contextlib.redirect_stdout(None):
            command_line("run", *where, "--inputs", given, "--outdir", out)
        for file in out.iterdir():
            found[f"cli {name} {file.stem}"] = array(np.load(file, allow_pickle=True))
            file.unlink()
    return found


def main(root: str, only: str = "") -> None:
    for folder in sorted(Path(root).iterdir()):
        loaded = tf.saved_model.load(str(folder / "served"))
        inputs = dict(np.load(folder / "inputs.npz"))
        with open(folder / "show.txt", "w") as file, contextlib.redirect_stdout(file):
            command_line("show", "--dir", folder / "served", "--all")
        found = from_python(loaded, inputs)
        if only != "python":
            names = set(loaded.signatures) - {"serve"}
            found |= from_the_command_line(folder, names, inputs)
        np.savez(folder / "plain.npz", **found)
    assert not any(m.startswith(("keras.", "keras_kare.")) for m in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
