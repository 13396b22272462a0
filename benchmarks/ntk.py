"""The exact empirical NTK: keras_kare against torch.func and neural-tangents.

    python benchmarks/ntk.py                        # all cases
    python benchmarks/ntk.py --check                # do all compute the same?
    python benchmarks/ntk.py --cases mlp --n 500
    python benchmarks/ntk.py --plot time_over_rows.png

Every contender has the same networks, weights and rows (`peers/problems.py`), in
float32, and a process of its own, in its own environment. In each case all stand ready
and run once in turn, until each has had its runs; best times are compared. `gram` is the
Gram matrix alone; `step` is the Gram matrix, KARE, its gradient by all weights, and an
update by SGD. Peaks are above what a process held before its first run, compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.update(CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")

import measure
import numpy as np
from peers import problems
from peers.process import ROOT, GaveUpError, Limits, Process
from peers.report import Measurement, fastest_peer, plot, table

SECONDS_EACH = 10.0  # of runs, after which a slow contender has no more turns
REST = 0.3  # seconds, in which the threads of the one before fall asleep
# Relative to the largest entry. KARE solves a float32 system, which costs digits.
TOLERANCES = {"gram": 1e-4, "kare": 1e-3, "updates": 1e-3}
SLOWEST_PLOTTED = 20.0  # seconds: who takes longer is not tried with more rows


class Contender(NamedTuple):
    """Who competes: its name in tables, script, environment, and variant."""

    label: str
    script: str
    environment: str
    implementation: str

    @property
    def python(self) -> Path:
        if self.environment == ".venv":  # this one
            return Path(sys.executable)
        return ROOT / self.environment / "bin" / "python"


KERAS = ("keras_contender.py", ".venv")
JAX = ("jax_contender.py", ".venv-neural-tangents")
CONTENDERS = {
    "structured": Contender("keras_kare, structured", *KERAS, "structured"),
    "jacobian": Contender("keras_kare, jacobian", *KERAS, "jacobian"),
    "torch": Contender(
        "torch.func, vmap of grad", "torch_contender.py", ".venv-torch", "grad"
    ),
    "nt-structured": Contender(
        "neural-tangents, structured derivatives", *JAX, "structured"
    ),
    "nt-vector-products": Contender(
        "neural-tangents, NTK-vector products", *JAX, "vector-products"
    ),
    "nt-jacobian": Contender("neural-tangents, Jacobian contraction", *JAX, "jacobian"),
}


class Runner:
    """One contender in one task: its turns, and what they gave."""

    def __init__(self, contender: Contender, task: tuple[str, int, str], limits: Limits):
        self.contender, self.task, self.limits = contender, task, limits
        self.seconds: list[float] = []
        self.peak_mb = 0.0
        self.turns = 0
        self.failure: str | None = None
        self.process: Process | None = None
        self.versions: dict[str, str] = {}

    def start(self, repeats: int, learning_rate: float = problems.LEARNING_RATE) -> None:
        """Set up and run once to warm up, which tells how many turns there will be."""
        case, n, what = self.task
        arguments = {
            "case": case,
            "n": n,
            "what": what,
            "implementation": self.contender.implementation,
            "learning-rate": learning_rate,
        }
        given = [f"--{name}={value}" for name, value in arguments.items()]
        try:
            self.process = Process(
                self.contender.python, self.contender.script, given, self.limits
            )
            self.versions = self.process.versions
            warm, self.peak_mb = self.process.run()
        except GaveUpError as error:
            self.failure = str(error)
            return
        self.turns = max(1, min(repeats, round(SECONDS_EACH / warm)))

    def take_turn(self) -> None:
        if self.process is None or self.failure or len(self.seconds) >= self.turns:
            return
        time.sleep(REST)
        try:
            seconds, self.peak_mb = self.process.run()
            self.seconds.append(seconds)
        except GaveUpError as error:
            self.failure = str(error)

    def end(self) -> Measurement:
        if self.process is not None:
            self.process.end()
        if self.failure or not self.seconds:
            return Measurement(self.contender.label, *self.task, failure=self.failure)
        best = min(self.seconds)
        return Measurement(
            self.contender.label, *self.task, best, self.peak_mb, len(self.seconds)
        )


def compete(
    contenders: list[Contender], task: tuple[str, int, str], repeats: int, limits: Limits
) -> tuple[list[Measurement], dict[str, str]]:
    """All contenders in one task, in turns; and the versions of what they ran on."""
    runners = [Runner(contender, task, limits) for contender in contenders]
    try:
        for runner in runners:
            runner.start(repeats)
        for _ in range(repeats):
            for runner in runners:
                runner.take_turn()
    finally:
        measured = [runner.end() for runner in runners]
    versions = {k: v for runner in runners for k, v in runner.versions.items()}
    return measured, versions


def present(names: list[str]) -> list[Contender]:
    """The contenders whose environment is there; of the others, how to build it."""
    contenders = []
    for name in names:
        contender = CONTENDERS[name]
        if contender.python.exists():
            contenders.append(contender)
        else:
            print(
                f"{contender.label}: left out. Build its environment with "
                f"`make {contender.environment}/.installed`.\n"
            )
    return contenders


def benchmark(options: argparse.Namespace) -> None:
    limits = Limits(options.memory_limit, options.time_limit)
    contenders = present(options.contenders)
    measurements: list[Measurement] = []
    versions: dict[str, str] = {}
    print(f"{measure.machine()}\n")
    if (load := os.getloadavg()[0]) > 0.5:
        print(
            f"Others are at work here (load {load:.1f}). Do not rely on these ratios, "
            "least of all on torch's, whose threads wait for each other.\n"
        )
    for case in options.cases:
        for n in sizes(case, options):
            here: list[Measurement] = []
            for what in options.whats:
                able = [c for c in contenders if not slower(measurements, c, case, what)]
                measured, found = compete(able, (case, n, what), options.repeats, limits)
                here += measured
                versions |= found
            told = problems.CASES[case].told
            print(f"### {case}: {told}; {problems.count(case):,} weights, n = {n}\n")
            print(f"{table(here)}\n\n{fastest_peer(here)}\n", flush=True)
            measurements += here
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if options.json:
        record = {
            "machine": measure.machine(),
            "load": load,
            "versions": versions,
            "measurements": [m._asdict() for m in measurements],
        }
        Path(options.json).write_text(json.dumps(record, indent=1))
    if options.plot:
        plot(measurements, Path(options.plot))


def slower(before: list[Measurement], contender: Contender, case: str, what: str) -> bool:
    """Whether fewer rows were already too much, or nearly so."""
    return any(
        (m.contender, m.case, m.what) == (contender.label, case, what)
        and (m.failure or (m.seconds or 0) > SLOWEST_PLOTTED)
        for m in before
    )


def sizes(case: str, options: argparse.Namespace) -> list[int]:
    """Rows of a case: as asked for, or the default; for a plot, two octaves and more."""
    n = options.n or problems.CASES[case].rows // (8 if options.quick else 1)
    return [n // 8, n // 4, n // 2, n, 2 * n] if options.plot else [n]


def check(options: argparse.Namespace) -> bool:
    """Whether all compute the same Gram matrix, KARE, and update of each weight."""
    limits = Limits(options.memory_limit, options.time_limit)
    contenders, agreed = present(options.contenders), True
    for case in options.cases:
        for what in options.whats:
            task = (case, options.n or 12, what)
            reference: dict[str, np.ndarray] | None = None
            print(f"{case}, {what}, n = {task[1]}")
            for contender in contenders:
                result = result_of(contender, task, limits)
                if isinstance(result, str):
                    print(f"  {contender.label:42}{result}")
                    continue
                reference = reference or result
                errors = {k: relative_error(v, reference[k]) for k, v in result.items()}
                ok = all(error < TOLERANCES[name] for name, error in errors.items())
                agreed = agreed and ok
                told = ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
                print(
                    f"  {contender.label:42}{told}{'' if ok else '  DIFFERS'}", flush=True
                )
    return agreed


def result_of(
    contender: Contender, task: tuple[str, int, str], limits: Limits
) -> dict[str, np.ndarray] | str:
    """What a contender computes in its first run, or why it does not."""
    runner = Runner(contender, task, limits)
    runner.start(1, learning_rate=1.0)
    try:
        if runner.failure:
            return runner.failure
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.npz"
            runner.process.save(path)
            with np.load(path) as arrays:
                return {name: arrays[name] for name in arrays.files}
    finally:
        runner.end()


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=problems.CASES)
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)
    )
    parser.add_argument(
        "--whats", nargs="+", choices=["gram", "step"], default=["gram", "step"]
    )
    parser.add_argument("--n", type=int, help="rows; by default those of each case")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each, at most")
    parser.add_argument("--quick", action="store_true", help="few rows, few turns")
    parser.add_argument("--check", action="store_true", help="compare values, not times")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="GB of a process")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of a run")
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--plot", help="image of time over rows, of mlp and cnn")
    options = parser.parse_args()
    options.cases = options.cases or (["mlp", "cnn"] if options.plot else problems.CASES)
    if options.quick:
        options.repeats = min(options.repeats, 3)
    if options.check:
        sys.exit(0 if check(options) else "The contenders do not compute the same.")
    benchmark(options)


if __name__ == "__main__":
    main()
