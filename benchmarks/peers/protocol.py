"""What a contender says and hears: lines of JSON over its standard streams.

A contender is a class. `Contender(options, n)` sets up and compiles one task, `run()`
does it once and returns when the result is there, `result()` returns arrays of the last
run to compare with others', `versions()` names what it runs on. `serve` does the rest:

    says   {"ready": true, "versions": {...}}
    hears  {"verb": "go"}                 says  {"seconds": 0.01, "peak_mb": 40.0}
    hears  {"verb": "save", "path": ...}  says  {"saved": true}
    says   {"error": "..."} in place of any of these, and ends

Only the standard library here: each contender brings its own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

WHATS = ("gram", "step")


def options() -> argparse.Namespace:
    """Which task this process is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--what", choices=WHATS, required=True)
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    return parser.parse_args()


def serve(contender_class: Any) -> None:
    """Set up a contender, and do as told until the input ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not for the channel

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    try:
        _serve(contender_class, options(), say)
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}"[:2000])


def _serve(contender_class: Any, asked: argparse.Namespace, say: Any) -> None:
    contender_class(asked, 4).run()  # libraries, threads and kernels are loaded
    contender = contender_class(asked, asked.n)
    forget_peak()
    held = peak_megabytes()
    say(ready=True, versions=contender.versions())
    for line in sys.stdin:
        message = json.loads(line)
        if message["verb"] == "go":
            begun = time.perf_counter()
            contender.run()
            seconds = time.perf_counter() - begun
            say(seconds=seconds, peak_mb=peak_megabytes() - held)
        else:
            import numpy as np

            np.savez(message["path"], **contender.result())
            say(saved=True)


def forget_peak() -> None:
    """Let the peak begin again at what is held now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak of the set-up stays in
        return


def peak_megabytes() -> float:
    """Most memory that this process has held since the peak was forgotten."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
