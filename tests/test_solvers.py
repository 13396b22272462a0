"""Every solver against a dense solve in float64, over kernels, ridges and targets."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import test_operator
from threadpoolctl import threadpool_info, threadpool_limits

import keras_kare as kk
from keras_kare import _linalg, solvers
from keras_kare.kernels import DenseOperator
from keras_kare.solvers import CG, Cholesky, Nystrom, Primal, Spectral, System

N = 150


def gaussian(x, gamma):
    return np.exp(-gamma * np.sum((x[:, None] - x[None]) ** 2, axis=-1))


def kernels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3))
    return {
        "well conditioned": gaussian(x, 5.0) + np.eye(N),
        "badly conditioned": gaussian(x, 0.01),
        "rank-deficient": x @ x.T,
        "duplicated rows": gaussian(np.repeat(x[: N // 3], 3, axis=0), 0.5),
        "scaled": 1e6 * gaussian(x, 0.5),
    }


KERNELS = kernels()
RIDGES = 10.0 ** np.arange(-8, 5, 2)


def features_of(gram):
    """Rows whose linear kernel is this matrix."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def operator_for(solver, gram):
    """An operator, and its matrix: a solver of features has a little less of it."""
    if isinstance(solver, Primal):
        rows = features_of(gram)
        return test_operator.Linear().operator(rows), rows @ rows.T
    return DenseOperator(gram), gram


def exact(gram, y, ridge):
    """Predictions of the rows, by the eigenvalues."""
    values, vectors = np.linalg.eigh(gram / len(y))
    values = np.maximum(values, 0.0)
    return vectors @ ((values / (values + ridge))[:, None] * (vectors.T @ y))


@pytest.mark.parametrize("columns", [1, 3, 100])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("solver", [Spectral(), Cholesky(), Primal(), CG(), CG(rank=0)])
@pytest.mark.filterwarnings("ignore:A Cholesky factorisation")
def test_solvers_agree_with_a_dense_solve(solver, kernel, columns):
    operator, gram = operator_for(solver, KERNELS[kernel])
    y = np.random.default_rng(1).normal(size=(N, columns))
    prepared = solver.prepare(System(operator, y))
    unit, converged = np.trace(gram) / N**2, 0
    assert prepared.unit == pytest.approx(unit, rel=1e-9)
    for relative in RIDGES:
        solution = prepared.checked(prepared.solve(relative * unit))
        assert solution.residual is not None
        if not solution.converged:  # said, and only where rounding is to blame
            assert relative <= 1e-6 or (isinstance(solver, CG) and solver.rank == 0)
            continue
        converged += 1
        predicted = gram @ solution.dual / N
        error = np.linalg.norm(predicted - exact(gram, y, relative * unit), axis=0)
        # The eigenvalues themselves are off by rounding.
        slack = 1e-14 * N / relative
        allowed = 1.01 * solution.tolerance + slack
        assert np.max(error / np.linalg.norm(y, axis=0)) <= allowed
        residual = y - predicted - relative * unit * solution.dual
        assert np.max(
            np.linalg.norm(residual, axis=0) / np.linalg.norm(y, axis=0)
        ) == pytest.approx(solution.residual, rel=0.5, abs=1e-9 + slack)
    assert converged >= (3 if solver.get_config().get("rank") == 0 else 5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("columns", [1, 3, 100])
def test_nystrom_on_all_rows_is_the_machine(kernel, columns):
    gram, y = KERNELS[kernel], np.random.default_rng(1).normal(size=(N, columns))
    prepared = Nystrom(centres=10**6).prepare(System(DenseOperator(gram), y))
    for relative in (1e-2, 1.0, 1e4):
        ridge = relative * prepared.unit
        solution = prepared.solve(ridge)
        assert solution.converged
        assert abs(solution.kernel_error) < 1e-9
        centres, found = solution.centres, solution.dual / len(solution.dual)
        predicted = gram[:, centres] @ found
        expected = exact(gram, y, ridge)
        assert np.max(np.abs(predicted - expected)) <= 1e-6 * np.max(np.abs(expected))


def test_nystrom_minimises_over_its_centres():
    gram, y = KERNELS["well conditioned"], np.random.default_rng(1).normal(size=(N, 2))
    ridge = 0.1 * np.trace(gram) / N**2
    solution = Nystrom(centres=20).solve(DenseOperator(gram), y, ridge)
    part, inner = (
        gram[:, solution.centres],
        gram[np.ix_(solution.centres, solution.centres)],
    )
    beta = np.linalg.solve(part.T @ part / N + ridge * inner, part.T @ y / N)
    np.testing.assert_allclose(solution.dual / 20, beta, rtol=1e-6)
    spanned = np.trace(part @ np.linalg.solve(inner, part.T))
    assert solution.kernel_error == pytest.approx(1.0 - spanned / np.trace(gram))
    assert solution.kernel_error > 0.1


@pytest.mark.parametrize("solver", [Spectral(), Cholesky(), Primal()])
@pytest.mark.parametrize("weighted", [False, True])
def test_direct_solvers_know_every_risk(solver, weighted):
    rng = np.random.default_rng(2)
    gram, y = KERNELS["badly conditioned"], rng.normal(size=(N, 2))
    weights = rng.uniform(0.5, 2.0, size=N) if weighted else None
    operator, gram = operator_for(solver, gram)
    system = System(operator, y, weights)
    prepared = solver.prepare(system)
    for relative in (1e-2, 1.0):
        ridge = relative * prepared.unit
        solution = prepared.solve(ridge)
        loo = np.asarray(kk.risk.leave_one_out(y, gram, ridge, weights))
        squared = np.mean((y - loo) ** 2, axis=1)
        expected = np.average(squared, weights=weights)
        kare = float(kk.risk.kare(y, gram, ridge, weights))
        assert solution.leave_one_out_mse == pytest.approx(expected, rel=1e-6)
        assert solution.kare == pytest.approx(kare, rel=1e-6)
        (of_grid,) = prepared.solve_grid([ridge])
        assert of_grid.leave_one_out_mse == pytest.approx(expected, rel=1e-6)
        assert of_grid.kare == pytest.approx(kare, rel=1e-6)
        assert of_grid.effective_dimension == pytest.approx(solution.effective_dimension)


@pytest.mark.parametrize("solver", [Spectral(), Primal(), CG(tolerance=1e-9), Nystrom()])
def test_rows_that_count_twice_are_two_rows(solver):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
    counts = rng.integers(1, 4, size=40)
    xx, yy = np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0)
    test, kernel = rng.normal(size=(6, 5)), test_operator.Linear()

    def predictions(rows, targets, weights):
        prepared = solver.prepare(System(kernel.operator(rows), targets, weights))
        solution = prepared.solve(0.3 * prepared.unit)
        dual, anchors = prepared.predictor(solution), prepared.anchors_of(solution)
        found = kernel.cross(test, anchors).numpy() @ dual / len(dual)
        if solution.weights is not None:
            np.testing.assert_allclose(
                test @ prepared.predictor_weights(solution), found, rtol=1e-6
            )
        return prepared.unit, found

    unit, weighted = predictions(x, y, counts)
    other, repeated = predictions(xx, yy, None)
    assert unit == pytest.approx(other)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


class TestCG:
    def system(self, columns=1):
        gram = KERNELS["badly conditioned"] + 1e-3 * KERNELS["well conditioned"]
        y = np.random.default_rng(1).normal(size=(N, columns))
        return System(DenseOperator(gram), y), 1e-4 * np.trace(gram) / N**2

    def test_the_preconditioner_saves_iterations(self):
        system, ridge = self.system()
        plain = CG(rank=0).prepare(system).solve(ridge)
        better = CG(rank=60).prepare(system).solve(ridge)
        assert better.converged
        assert better.iterations < plain.iterations / 2

    def test_iterations_end_and_say_so(self):
        system, ridge = self.system()
        solution = CG(rank=0, max_iterations=2).prepare(system).solve(ridge)
        assert solution.stopped == "iterations"
        assert solution.iterations == 2
        assert not solution.converged
        assert solution.residual == pytest.approx(
            float(np.max(system.residual(solution.dual, ridge)))
        )

    def test_time_ends_and_says_so(self):
        system, ridge = self.system()
        solution = CG(rank=0, time_budget=1e-9).prepare(system).solve(ridge)
        assert solution.stopped == "time"
        assert solution.residual == pytest.approx(1.0)

    def test_ctrl_c_keeps_the_best_iterate(self, monkeypatch):
        system, ridge = self.system()
        real, calls = System.matmul, []

        def interrupted(self, *arguments, **named):
            calls.append(1)
            if len(calls) == 12:
                raise KeyboardInterrupt
            return real(self, *arguments, **named)

        monkeypatch.setattr(System, "matmul", interrupted)
        solution = CG(rank=60, tolerance=1e-9).prepare(system).solve(ridge)
        monkeypatch.undo()
        assert solution.stopped == "interrupted"
        assert solution.residual < 1.0
        assert solution.residual == pytest.approx(
            float(np.max(system.residual(solution.dual, ridge)))
        )

    def test_columns_that_converge_are_dropped(self, monkeypatch):
        system, ridge = self.system(columns=2)
        _, vectors = np.linalg.eigh(system.gram)
        easy = vectors[:, -1:]  # an eigenvector: one iteration
        system = System(system.operator, np.hstack([easy, system.y[:, :1]]))
        widths, real = [], System.matmul

        def counted(self, v, *arguments):
            widths.append(v.shape[1])
            return real(self, v, *arguments)

        monkeypatch.setattr(System, "matmul", counted)
        solution = CG(rank=0).prepare(system).solve(ridge)
        assert solution.converged
        assert widths.count(1) > widths.count(2)

    def test_more_columns_are_drawn_when_they_pay(self, rng):
        x = rng.normal(size=(1500, 3))
        gram = gaussian(x, 1.0)
        y = rng.normal(size=(1500, 50))
        prepared = CG().prepare(System(DenseOperator(gram), y))
        before = prepared.preconditioner.rank
        assert prepared.solve(1e-6 * prepared.unit).converged
        assert prepared.preconditioner.rank > before

    def test_a_better_start_takes_fewer_iterations(self):
        system, ridge = self.system()
        prepared = CG(rank=10, tolerance=1e-8).prepare(system)
        first = prepared.solve(2.0 * ridge)
        assert prepared.solve(ridge, first).iterations < prepared.solve(ridge).iterations

    def test_targets_of_zero(self):
        system, ridge = self.system()
        solution = CG().prepare(System(system.operator, np.zeros((N, 2)))).solve(ridge)
        assert solution.converged
        assert not np.any(solution.dual)


class TestDecisions:
    def decide(self, n, network, columns=1, ridges=1, limit=2**33):
        x = np.zeros((n, networks.D), "float32")
        operator = kk.kernels.NTK(network).operator(x)
        return solvers.decide(operator, columns, ridges, limit)

    @pytest.mark.parametrize(
        ("n", "width", "ridges", "limit", "solver"),
        [
            (300, 7, 1, 2**33, "cholesky"),
            (300, 7, 49, 2**33, "spectral"),
            (4000, 300, 1, 2**33, "cholesky"),
            (4000, 7, 49, 2**33, "primal"),
            (20_000, 7, 1, 2**33, "primal"),
            (20_000, 7, 49, 2**33, "primal"),
            (20_000, 300, 1, 2**33, "cg"),
            (1500, 7, 1, 2**24, "primal"),
        ],
    )
    def test_by_size_and_memory(self, n, width, ridges, limit, solver):
        decision = self.decide(n, networks.mlp(width=width), ridges=ridges, limit=limit)
        assert decision.solver.name == solver
        assert str(n) in decision.why

    def test_approximations_are_never_chosen(self):
        decision = self.decide(50_000, networks.mlp(width=300), columns=3, limit=2**27)
        assert decision.solver.name == "cg"


class TestArguments:
    @pytest.mark.parametrize("name", solvers.auto.SOLVERS)
    def test_by_name_by_object_and_saved(self, name):
        solver = solvers.get(name)
        assert solver.name == name
        assert solvers.get(solver) is solver
        again = type(solver).from_config(solver.get_config())
        assert vars(again) == vars(solver)

    @pytest.mark.parametrize("solver", ["lu", 3, None])
    def test_unknown(self, solver):
        with pytest.raises(ValueError, match=r"`solver` must be .* Received: solver="):
            solvers.get(solver)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: CG(tolerance=0.0), "`tolerance`"),
            (lambda: CG(max_iterations=0), "`max_iterations`"),
            (lambda: CG(rank=-1), "`rank`"),
            (lambda: CG(time_budget=-1.0), "`time_budget`"),
            (lambda: CG(memory_limit=0.5), "`memory_limit`"),
            (lambda: Nystrom(centres=0), "`centres`"),
            (lambda: Cholesky().solve(DenseOperator(np.eye(2)), np.ones(2), 0), "`ridge`"),
            (lambda: System(DenseOperator(np.eye(2)), np.ones(3)), "`y`"),
            (lambda: System(DenseOperator(np.eye(2)), np.array([1, np.nan])), "`y`"),
            (lambda: System(DenseOperator(np.eye(2)), np.ones(2), [-1, 1]), "`weights`"),
        ],
    )
    def test_bad(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize("name", [*solvers.auto.SOLVERS])
    def test_memory_is_checked_before_the_work(self, name, rng):
        solver = type(solvers.get(name))(memory_limit=1000)
        operator = test_operator.Linear().operator(rng.normal(size=(50, 4)))
        with pytest.raises(MemoryError, match=f'solver="{name}"` takes'):
            solver.prepare(System(operator, np.ones((50, 1))))

    def test_primal_needs_features(self):
        with pytest.raises(ValueError, match="finite feature map"):
            Primal().prepare(System(DenseOperator(np.eye(3)), np.ones((3, 1))))

    def test_zero_kernels_are_refused(self):
        system = System(DenseOperator(np.zeros((3, 3))), np.ones((3, 1)))
        with pytest.raises(ValueError, match="kernel is zero"):
            _ = system.unit


@pytest.mark.parametrize(
    "solver",
    [
        solvers.Spectral,
        solvers.Cholesky,
        solvers.Primal,
        solvers.CG,
        solvers.Nystrom,
        solvers.EigenPro,
    ],
)
def test_bad_settings_are_named(solver):
    for value in (0.0, -1.0, float("nan"), "a", True):
        with pytest.raises(ValueError, match="`tolerance`"):
            solver(tolerance=value)
    for value in (0, -1, "2GB", 1.5):
        with pytest.raises(ValueError, match="`memory_limit`"):
            solver(memory_limit=value)
    if "seed" in solver().get_config():
        for value in (-1, 1.5, "a"):
            with pytest.raises(ValueError, match="`seed`"):
                solver(seed=value)


def of_blas():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(("rows", "threads"), [(5, 1), (1001, 2)])
def test_small_eigenproblems_have_one_thread(rows, threads, monkeypatch):
    """More wait for each other, and for all other work of the machine."""
    found = []
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (found.append(of_blas()), matrix))
    with threadpool_limits(2, user_api="blas"):
        _linalg.eigh(np.eye(rows))
        assert of_blas() == {2}
    assert found == [{threads}]


def test_threads_of_blas_come_back_after_the_last_that_limited_them():
    """Limits that overlap, as those of two threads do, end in any order."""
    with threadpool_limits(2, user_api="blas"):
        one, other = _linalg.threads_for(5), _linalg.threads_for(6)
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert of_blas() == {1}
        other.__exit__(None, None, None)
        assert of_blas() == {2}
