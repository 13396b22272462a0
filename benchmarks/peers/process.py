"""A contender in a process of its own: started, asked, watched, and ended."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Limits(NamedTuple):
    """When a contender is given up: memory in GB, and seconds of one run."""

    memory: float = 12.0
    seconds: float = 60.0

    @property
    def setup_seconds(self) -> float:
        """Imports and compilation take long where runs are short."""
        return 300 + self.seconds


class GaveUpError(Exception):
    """Why a contender has no figure, in words fit for a table."""


class Process:
    """One contender, with one task set up, from `protocol.serve`.

    Args:
        python: Interpreter of the contender's environment.
        script: File in this folder.
        arguments: As `protocol.options` reads them.
        limits: When it is given up. Memory is watched on Linux only.

    Raises:
        GaveUpError: If it cannot be set up.
    """

    def __init__(self, python: Path, script: str, arguments: list[str], limits: Limits):
        self.limits = limits
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._child = subprocess.Popen(
            [python, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            bufsize=1,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.versions = self._answer(limits.setup_seconds, "set-up")["versions"]

    def run(self) -> tuple[float, float]:
        """Seconds of one run, and the peak so far in MB above the set-up."""
        answer = self._ask({"verb": "go"})
        return answer["seconds"], answer["peak_mb"]

    def save(self, path: Path) -> None:
        """Have the last run's result written to an `.npz` file."""
        self._ask({"verb": "save", "path": str(path)})

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._stderr.close()

    def _read(self) -> None:
        for line in self._child.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _ask(self, message: dict[str, str]) -> Any:
        with contextlib.suppress(OSError):  # it has ended: its last words tell why
            self._child.stdin.write(json.dumps(message) + "\n")
        return self._answer(self.limits.seconds, "a run")

    def _answer(self, seconds: float, doing: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=0.1)
                break
            except queue.Empty:
                if (held := resident_gigabytes(self._child.pid)) > self.limits.memory:
                    self._give_up(f"out of memory (> {self.limits.memory:g} GB)")
                if held and available_gigabytes() < 1:
                    self._give_up(f"out of memory (at {held:.0f} GB, on this machine)")
                if time.monotonic() > deadline:
                    self._give_up(f"{doing} takes over {seconds:g} s")
        if line is None:
            self._give_up(self._last_words())
        message = json.loads(line)
        if "error" in message:
            self._give_up(told(message["error"]))
        return message

    def _give_up(self, reason: str) -> None:
        self.end()
        raise GaveUpError(reason)

    def _last_words(self) -> str:
        self._child.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        if self._child.returncode < 0:
            return f"failed: ended by signal {-self._child.returncode}"
        return f"failed: {lines[-1][:80] if lines else self._child.returncode}"


def told(error: str) -> str:
    """An exception in a few words; one of memory by how much was asked for."""
    memory = r"out of memory|MemoryError|can't allocate|OOM when"
    if re.search(memory, error, re.IGNORECASE):
        asked = re.search(r"\d{9,}", error)
        gigabytes = f" (asked for {int(asked[0]) / 1e9:.0f} GB)" if asked else ""
        return f"out of memory{gigabytes}"
    return f"failed: {error.splitlines()[0][:80]}"


def resident_gigabytes(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or ended
        return 0.0
    held = re.search(r"VmRSS:\s+(\d+)", status)
    return int(held[1]) * 2**10 / 1e9 if held else 0.0


def available_gigabytes() -> float:
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) * 2**10 / 1e9 if found else float("inf")
