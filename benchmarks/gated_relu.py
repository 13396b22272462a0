"""Gated ReLU networks, trained to the optimum: ours, CVXPY with Clarabel, and pyscnn.

All solve the same group lasso, on the same gates, in float64. Objectives are computed from
the coefficients, by their definition, and compared with the least of them. CVXPY and pyscnn
are measured where they are installed, and named where they are not:

    pip install -r benchmarks/peers/gated_relu.txt && pip install --no-deps pyscnn==0.0.10
    OMP_NUM_THREADS=1 python benchmarks/gated_relu.py

pyscnn solves by R-FISTA, in steps of the gradient; `tol` bounds the squared norm of the
smallest subgradient, 1e-6 by default; it ends after 20,000 steps. CVXPY has its defaults.

A second table has the rules for the weights: KARE on the training rows, and what it should
estimate, the test error.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import measure
import numpy as np

import keras_kare as kk
from keras_kare.mkl.masks import open_rows

SIZES = ((50, 5, 50, 0.1), (100, 10, 100, 0.1), (200, 10, 200, 0.1), (200, 10, 200, 1e-3))
LARGE = ((500, 20, 1000, 0.1), (1000, 20, 500, 1.0))
"""Rows, columns, gates, and the regularisation; the large ones take the others long, so
that CVXPY and the smaller tolerance of pyscnn are left out, and the output says so."""

RULES = {
    "optimal": {"weights": "optimal"},
    "ntk": {"weights": "ntk"},
    "kare, three steps": {"weights": "kare", "max_iterations": 3},
    "kare": {"weights": "kare"},
}

Solved = tuple[np.ndarray, np.ndarray]
"""Gates and coefficients, each `(p, d)`: pyscnn puts them in an order of its own."""

Solver = Callable[[np.ndarray, np.ndarray, np.ndarray, float], Solved]
"""Of rows, targets `(n,)`, gates and the regularisation."""


def drawn(rows: int, columns: int, gates: int) -> tuple[np.ndarray, ...]:
    """Rows, noisy targets, and gates of different masks."""
    rng = np.random.default_rng(rows + gates)
    x = rng.normal(size=(rows, columns))
    y = np.sin(2.0 * x[:, 0]) + np.maximum(x[:, 1], 0.0) + 0.3 * rng.normal(size=rows)
    once = kk.mkl.GatedReLU(gates, weights="ntk", random_state=0).fit(x, y)
    return x, y, once.gates_


def objective(
    x: np.ndarray, y: np.ndarray, gates: np.ndarray, w: np.ndarray, beta: float
) -> float:
    """`½ |Σ_i D_i X w_i − y|² + β Σ_i |w_i|`."""
    values = np.sum((x @ w.T) * open_rows(x, gates).T, axis=1)
    return 0.5 * np.sum((values - y) ** 2) + beta * np.sum(np.linalg.norm(w, axis=1))


def ours(x: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float) -> Solved:
    return gates, kk.mkl.GatedReLU(gates, beta).fit(x, y).coefficients_


def the_ntk(x: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float) -> Solved:
    return gates, kk.mkl.GatedReLU(gates, beta, weights="ntk").fit(x, y).coefficients_


def by_cvxpy(x: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float) -> Solved:
    import cvxpy as cp

    columns = np.hstack([mask[:, None] * x for mask in open_rows(x, gates)])
    w = cp.Variable(gates.shape)
    error = 0.5 * cp.sum_squares(columns @ cp.vec(w, order="C") - y)
    penalty = beta * cp.sum(cp.norm(w, 2, axis=1))
    cp.Problem(cp.Minimize(error + penalty)).solve(cp.CLARABEL)
    return gates, np.asarray(w.value)


def by_pyscnn(tol: float) -> Solver:
    """Return R-FISTA of that tolerance; pyscnn divides the squared error by `n`."""

    def solve(x: np.ndarray, y: np.ndarray, gates: np.ndarray, beta: float) -> Solved:
        from scnn.metrics import Metrics
        from scnn.models import ConvexGatedReLU
        from scnn.optimize import optimize_model
        from scnn.regularizers import NeuronGL1
        from scnn.solvers import RFISTA

        model = ConvexGatedReLU(gates.T, c=1)
        solver = RFISTA(model, max_iters=20_000, tol=tol)
        solved, *_ = optimize_model(
            model,
            solver,
            Metrics(),
            x,
            y[:, None],
            regularizer=NeuronGL1(beta / len(x)),
            return_convex=True,
            unitize_data=False,
            dtype="float64",
        )
        return np.asarray(solved.G).T, np.asarray(solved.parameters[0])[0]

    return solve


def contenders(large: bool) -> Iterator[tuple[str, Solver]]:
    """Names and functions of those that can run."""
    yield "keras_kare", ours
    yield "the NTK's weights", the_ntk
    if not large and importlib.util.find_spec("cvxpy"):
        yield "CVXPY, Clarabel", by_cvxpy
    if importlib.util.find_spec("scnn"):
        yield "pyscnn, tol 1e-6", by_pyscnn(1e-6)
        if not large:
            yield "pyscnn, tol 1e-12", by_pyscnn(1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2, help="runs, the best counts")
    options = parser.parse_args()
    print(measure.machine())
    for module, name in (("cvxpy", "CVXPY"), ("scnn", "pyscnn")):
        if not importlib.util.find_spec(module):
            print(f"{name} is not installed here, and not measured")
    print("Of the large problems CVXPY, and pyscnn with tol 1e-12, are left out")
    print("\n| n, d, gates, β | | objective | above the least | seconds | times ours |")
    print("|---|---|---|---|---|---|")
    for size in (*SIZES, *LARGE):
        compare(size, options.repeats)
    print("\n| gates, of 400 rows | weights | KARE | test error |\n|---|---|---|---|")
    for gates in (400, 100, 40, 20):
        for name, rule in RULES.items():
            risk, error = np.mean([errors(gates, rule, seed) for seed in range(3)], axis=0)
            print(f"| {gates} | {name} | {risk:.4f} | {error:.4f} |", flush=True)


def errors(gates: int, rule: dict[str, Any], seed: int) -> tuple[float, float]:
    """KARE of the weights of a rule on 400 rows, and the mean squared error on 2,000."""
    rng, beta = np.random.default_rng(seed), 4.0
    x = rng.normal(size=(2400, 8))
    y = np.maximum(x[:, 0], 0.0) - x[:, 1] + 0.3 * rng.normal(size=2400)
    fitted = kk.mkl.GatedReLU(gates, beta, random_state=seed, **rule)
    fitted.fit(x[:400], y[:400])
    risk = kk.risk.kare(y[:400], fitted.gram(x[:400]), beta / 400)
    return float(risk), float(np.mean((fitted.predict(x[400:]) - y[400:]) ** 2))


def compare(size: tuple[int, int, int, float], repeats: int) -> None:
    """Print the lines of one problem."""
    rows, columns, count, beta = size
    x, y, gates = drawn(rows, columns, count)
    lines = []
    for name, solve in contenders(size in LARGE):
        best = np.inf
        for _ in range(repeats):
            begun = time.perf_counter()
            solved = solve(x, y, gates, beta)
            best = min(best, time.perf_counter() - begun)
        lines.append((name, objective(x, y, *solved, beta), best))
    least, seconds = min(line[1] for line in lines), lines[0][2]
    for name, value, took in lines:
        print(
            f"| {rows}, {columns}, {len(gates)}, {beta:g} | {name} | {value:.8f} | "
            f"{value / least - 1.0:.1e} | {took:.4f} | {took / seconds:.3g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
