"""Why KARE is fooled by what it trains, and what helps: KARE beside test errors.

KARE is generalised cross-validation: `(1/n)‖y - ŷ‖²/(1 - d/n)²`, where `d` is the trace of
`∂ŷ/∂y` for a kernel that did not see `y`. A kernel that was trained has seen it, so that
predictions follow the targets more closely than `d` says. The whole trace, of training and
machine, is the number of generalised degrees of freedom (Ye, "On measuring and correcting
the effects of data mining and model selection", JASA 1998); what it is above `d` is the
effective number of directions that training has fitted to the targets.

One factor is varied at a time: width, rows, ridge `z̃`, noise, and the kind of the kernel.
At some numbers of steps there are KARE, the test error that it estimates, and two estimates
that training should not fool: cross-fitted, and KARE with generalised degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from keras_kare import datasets
from keras_kare.experiments.fooled_kernels import RATES, Kind, Trained, trained
from keras_kare.experiments.learners import median_distance
from keras_kare.experiments.store import Job, Row
from keras_kare.recipes.cross_fitting import folds_of
from keras_kare.recipes.mixtures import Kernels, path
from keras_kare.recipes.recipe import RIDGES
from keras_kare.recipes.rough import eigenproblem

DATASETS = ("simulation", "mnist", "credit")
STEPS = (0, 1, 3, 10, 30, 100, 300)
"""Numbers of steps after which the kernel is looked at."""

BASE = {"kind": "ntk", "width": 64, "rows": 200, "ridge": 1.0, "noise": 0.0}
FACTORS: dict[str, tuple[Any, ...]] = {
    "width": (4, 16, 256),
    "rows": (50, 100, 400, 700),
    "ridge": (0.01, 0.1, 10.0, 100.0),
    "noise": (0.1, 0.3),
    "kind": tuple(kind for kind in RATES if kind != "ntk"),
}
"""What is tried beside `BASE`, one at a time. Noise: of the simulation its standard
deviation in units of the targets', else the share of rows whose class is another."""

KINDS = ("ntk", "diagonal")
"""Kernels on which remedies are tried."""

SEEDS = 3
TEST_ROWS = 1000
FOLDS = 4
PROBES = 2
"""Random directions of targets, on each side of them, in which trainings are repeated."""

SHIFT = 0.1
"""How far, in units of the targets' standard deviation."""

STARTS = 4
"""Kernels that are averaged, of other first weights."""


class Remedy(NamedTuple):
    """How training differs: `loss` to `targets` are those of `Kind`.

    Attributes:
        batches: In how many parts the rows are seen.
        starts: Whose kernels are averaged.
    """

    loss: str = "kare"
    shuffled: bool = False
    inputs: float = 0.0
    targets: float = 0.0
    batches: int = 1
    starts: int = 1


REMEDIES = {
    "none": Remedy(),
    "halves": Remedy(batches=2),
    "holdout": Remedy("holdout", shuffled=True),
    "inputs 0.3": Remedy(inputs=0.3),
    "inputs 1": Remedy(inputs=1.0),
    "targets 0.3": Remedy(targets=0.3),
    "targets 1": Remedy(targets=1.0),
    "holdout, inputs 1": Remedy("holdout", shuffled=True, inputs=1.0),
    "starts": Remedy(starts=STARTS),
}
"""None; KARE of random halves of the rows, one a step; `HoldoutKARE` of halves that are new
at each step; noise on inputs or targets, of so many standard deviations, and with halves;
the mean of kernels of several starts."""


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Return a job a data set, a setting, a remedy, and a seed."""
    settings = [(BASE, "none")]
    settings += [
        ({**BASE, name: value}, "none") for name in FACTORS for value in FACTORS[name]
    ]
    settings += [
        ({**BASE, "kind": kind}, remedy)
        for kind in KINDS
        for remedy in REMEDIES
        if remedy != "none" and (kind == "ntk" or remedy != "starts")
    ]
    return [
        {"dataset": name, **setting, "remedy": remedy, "seed": seed}
        for name in DATASETS
        for setting, remedy in settings
        for seed in seeds[:SEEDS]
    ]


def work(job: Job, steps: Sequence[int] = STEPS) -> list[Row]:
    """Train, and look at the kernel after some numbers of steps."""
    data = load(job)
    remedy, n = REMEDIES[job["remedy"]], len(data.x)
    station = trained(
        Kind(job["kind"], data.x.shape[1], job["width"], job["ridge"], *remedy[:4])
    )
    train = _Training(station, remedy, job["seed"], steps)
    found = [
        Machine(gram, n, data.y, job["ridge"])
        for gram in train.grams(data.x, data.y, data.x_test)
    ]
    rows: list[Row] = [
        {"steps": count, **each.errors(data.y_test)}
        for count, each in zip(steps, found, strict=False)
    ]
    for row, error in zip(rows, _held_out(train, data, job["ridge"]), strict=False):
        row["cross_fitted"] = error
    if job["remedy"] == "none":
        directions = _directions(train, data, job["ridge"], found)
        for row, each, count in zip(rows, found, directions, strict=False):
            left = max(1.0 - (each.freedom + count) / n, 0.0)
            row["directions"] = count
            row["corrected"] = each.train_error / left**2 if left else None
    return rows


def load(job: Job) -> datasets.Split:
    """Return rows of a job: mean and variance of targets are 0 and 1 without noise."""
    seed, n, noise = job["seed"], job["rows"], job["noise"]
    rng = np.random.default_rng([seed, 1])
    name = job["dataset"]
    if name == "simulation":
        share = n / (n + TEST_ROWS)
        data = datasets.simulation(
            n + TEST_ROWS, gamma=1.0, seed=seed, train_fraction=share + 1e-9
        )
        mean, scale = data.y_test.mean(), data.y_test.std()
        y, y_test = ((part - mean) / scale for part in (data.y, data.y_test))
        y, y_test = (part + noise * rng.normal(size=part.shape) for part in (y, y_test))
    else:
        digits = name == "mnist"
        data = (
            datasets.mnist(rows=n, test_rows=TEST_ROWS, seed=seed)
            if digits
            else _credit(n, seed)
        )
        y, y_test = (
            part * np.where(rng.random(part.shape) < noise, -1.0, 1.0)
            for part in (data.y, data.y_test)
        )
    x, x_test = data.x, data.x_test
    if job["kind"] != "ntk":
        unit = median_distance(euclidean_distances(x))
        x, x_test = x / unit, x_test / unit
    return datasets.Split(x, y, x_test, y_test)


def _credit(rows: int, seed: int) -> datasets.Split:
    """Return rows of `statlog-german-credit`, and all others to test; targets are ±1."""
    data = datasets.load_uci("statlog-german-credit")
    order = np.random.default_rng(seed).permutation(len(data.x))
    train, test = order[:rows], order[rows:]
    x, x_test = datasets.preprocess(data.x[train], data.x[test], len(data.x))
    y = np.where(data.labels == 1, 1.0, -1.0)[:, None]
    return datasets.Split(x, y[train], x_test, y[test])


class _Training(NamedTuple):
    """How kernels are trained: on any rows, from the same starts."""

    station: Trained
    remedy: Remedy
    seed: int
    steps: Sequence[int]

    def grams(self, x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> list[np.ndarray]:
        """Return `K` of all rows, the first ones first, after each number of steps.

        Fewer, where training diverges.
        """
        every, found = np.concatenate([x, x_test]), []
        for start in range(self.remedy.starts):
            found.append(list(self._path(x, y, every, self.seed + 1000 * start)))
        return [np.mean(parts, axis=0) for parts in zip(*found, strict=False)]

    def _path(
        self, x: np.ndarray, y: np.ndarray, every: np.ndarray, seed: int
    ) -> Iterator[np.ndarray]:
        self.station.start(seed)
        before = 0
        for count in self.steps:
            batches = self.remedy.batches
            if not self.station.train(x, y, count - before, batches, self.seed):
                return
            before = count
            yield self.station.gram(every)


class Machine:
    """A kernel machine at a relative ridge.

    Args:
        gram: `K` of training rows and others, `(n + m, n + m)`.
        n: How many train.
        y: Their targets, `(n, 1)`.
        ridge: `λ̃`, `λ = λ̃ tr(K)/n²`.
    """

    def __init__(self, gram: np.ndarray, n: int, y: np.ndarray, ridge: float):
        self._kernels = Kernels(gram[:n, :n], gram[n:, :n], np.diag(gram)[n:])
        self._spectral = eigenproblem(self._kernels.gram, y, None)
        self._y, self._ridge = y, ridge
        self._solution = self._spectral.solve(ridge * self._spectral.system.unit)
        self.freedom = float(self._solution.effective_dimension or 0.0)
        self.fitted = self.fit(y)
        self.train_error = float(np.mean((y - self.fitted) ** 2))

    def fit(self, y: np.ndarray) -> np.ndarray:
        """Return what the kernel's machine of other targets predicts of their rows."""
        values, vectors = self._spectral.eigenvalues, self._spectral.vectors
        kept = values / (values + self._solution.ridge)
        return np.asarray(vectors @ (vectors.T @ y * kept[:, None]))

    def predict(self) -> np.ndarray:
        """Return predictions of the rows that do not train, `(m, 1)`."""
        return self._predicted((self._ridge,))[0]

    def errors(self, y_test: np.ndarray) -> Row:
        """Return KARE and test errors: at the ridge, and the least of all ridges."""
        own, *others = (
            float(np.mean((predicted - y_test) ** 2))
            for predicted in (self.predict(), *self._predicted(RIDGES))
        )
        return {
            "kare": self._solution.kare,
            "test": own,
            "best_test": min(others),
            "freedom": self.freedom,
        }

    def _predicted(self, ridges: Sequence[float]) -> list[np.ndarray]:
        found = path(self._kernels, self._y, ridges, spectral=self._spectral)
        return [each.values for each in found.values()]


def _held_out(train: _Training, data: datasets.Split, ridge: float) -> list[float]:
    """Return the mean squared error of rows whose machine, and kernel, did not see them."""
    n = len(data.x)
    fold_of = folds_of(np.zeros(n, int), FOLDS, np.random.default_rng(train.seed))
    errors = []
    for fold in range(FOLDS):
        rest, held = fold_of != fold, fold_of == fold
        grams = train.grams(data.x[rest], data.y[rest], data.x[held])
        machines = (Machine(gram, rest.sum(), data.y[rest], ridge) for gram in grams)
        errors.append([np.sum((m.predict() - data.y[held]) ** 2) for m in machines])
    return [float(sum(parts)) / n for parts in zip(*errors, strict=False)]


def _directions(
    train: _Training, data: datasets.Split, ridge: float, found: Sequence[Machine]
) -> list[float]:
    """Return by how much the trace of `∂ŷ/∂y` is larger than that of the machine alone."""
    rng = np.random.default_rng([train.seed, 2])
    n, none = len(data.x), data.x[:0]
    shift = SHIFT * float(data.y.std())
    counts = []
    for _ in range(PROBES):
        probe = rng.choice([-1.0, 1.0], size=data.y.shape)
        up, down = (
            [Machine(gram, n, y, ridge).fitted for gram in train.grams(data.x, y, none)]
            for y in (data.y + shift * probe, data.y - shift * probe)
        )
        counts.append(
            [
                float(np.sum(probe * ((a - b) / (2.0 * shift) - machine.fit(probe))))
                for machine, a, b in zip(found, up, down, strict=False)
            ]
        )
    return [float(np.mean(parts)) for parts in zip(*counts, strict=False)]
