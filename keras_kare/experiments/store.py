"""Results on disk: one small file a job, so that a run can be killed and goes on."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""A line of a tidy table."""

Job = Mapping[str, Any]
"""What to compute, by names; JSON."""

LIBRARIES = (
    "keras_kare",
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "scikit-learn",
    "xrfm",
    "lightgbm",
    "catboost",
)
"""Whose versions go with the results."""


class Store:
    """The folder of one experiment.

    `jobs/*.json` hold what is done, each with its job, rows, seconds and versions.
    They are written whole or not at all. `collect` makes the tidy table of them.

    Args:
        folder: Made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs = folder / "jobs"
        self.jobs.mkdir(parents=True, exist_ok=True)

    def path(self, job: Job) -> Path:
        """Return where a job's results are; the order of its names does not matter."""
        text = json.dumps(job, sort_keys=True)
        words = "-".join(v for _, v in sorted(job.items()) if isinstance(v, str))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.jobs / f"{words[:60].replace('/', '_')}-{digest}.json"

    def done(self, job: Job) -> bool:
        """Tell whether results are there."""
        return self.path(job).exists()

    def write(self, job: Job, rows: list[Row], seconds: float) -> None:
        """Keep a job's results."""
        result = {
            "job": dict(job),
            "seconds": round(seconds, 3),
            "versions": versions(),
            "rows": rows,
        }
        write_whole(self.path(job), json.dumps(result, indent=1))

    def collect(
        self, name: str, keep: Callable[[Job], bool] = lambda job: True
    ) -> list[Row]:
        """Return the rows of all jobs that are done; write `NAME.csv` and `NAME.json`.

        The table's lines are the jobs' names and values, and their rows', without seconds:
        a second run with the same seeds writes the same table. The other file says how
        many jobs that are, how many core-hours they took, and with which versions.

        Args:
            name: What the files are called.
            keep: Which jobs count. Defaults to all.
        """
        results = [json.loads(path.read_text()) for path in self.jobs.glob("*.json")]
        results = [result for result in results if keep(result["job"])]
        results.sort(key=lambda result: json.dumps(result["job"], sort_keys=True))
        lines = [
            {**result["job"], **{k: v for k, v in row.items() if k != "seconds"}}
            for result in results
            for row in result["rows"]
        ]
        write_table(self.folder / f"{name}.csv", lines)
        seen = {json.dumps(result["versions"], sort_keys=True) for result in results}
        summary = {
            "jobs": len(results),
            "core_hours": round(sum(r["seconds"] for r in results) / 3600, 3),
            "versions": [json.loads(text) for text in sorted(seen)],
        }
        write_whole(self.folder / f"{name}.json", json.dumps(summary, indent=1) + "\n")
        return lines


def versions() -> dict[str, str]:
    """Return versions of Python and the libraries that matter, and the processor's kind."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_table(path: Path, rows: list[Row]) -> None:
    """Write a CSV file with the columns of all rows, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, newline="", suffix=".part"
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
