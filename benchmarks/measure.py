"""What the benchmarks share: interleaved best-of timing, memory of a fresh process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf


def best_of(repeats: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """Least seconds of each function, run in turns so that noise meets all alike."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        finish(function())  # traced and warm
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            finish(function())
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


def finish(result: Any) -> None:
    """Wait until all results are there."""
    tf.nest.map_structure(lambda t: np.asarray(t).ravel()[:1], result)


def in_fresh_process(file: str, *arguments: object) -> dict[str, float]:
    """Run this file with arguments, and read the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, file, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_megabytes() -> float:
    """Most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; `ru_maxrss` would start at the parent's
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """Processor, cores, and versions, for the head of a table."""
    devices = [d.device_type for d in tf.config.list_physical_devices()]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, devices {'+'.join(devices)}, "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}"
    )
