"""Every solver against a dense solve in float64, over kernels, ridges and targets.

`solver_cases.CASES` lists the solvers; each gets every test of `TestEverySolver` that
applies to it.
"""

from __future__ import annotations

import json

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from kernel_cases import Linear
from solver_cases import CASES
from threadpoolctl import threadpool_info, threadpool_limits

import keras_kare as kk
from keras_kare import _linalg, solvers
from keras_kare.kernels import DenseOperator
from keras_kare.solvers import CG, Cholesky, Nystrom, Primal, StreamSystem, System
from keras_kare.solvers.stream import Stream

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


def exact(gram, y, ridge):
    """Predictions of the rows, by the eigenvalues."""
    values, vectors = np.linalg.eigh(gram / len(y))
    values = np.maximum(values, 0.0)
    return vectors @ ((values / (values + ridge))[:, None] * (vectors.T @ y))


def anchored(prepared, solution, gram):
    """Predictions of the rows, by the anchors."""
    rows = slice(None) if solution.centres is None else solution.centres
    dual = prepared.predictor(solution)
    return gram[:, rows] @ dual / len(dual)


def predicted(kernel, prepared, solution, x):
    """Predictions of other rows, by `α` or by weights: where both are known, they agree."""
    anchors, found = prepared.anchors_of(solution), None
    if anchors is not None:
        dual = prepared.predictor(solution)
        found = kernel.cross(x, anchors).numpy() @ dual / len(dual)
    if solution.weights is not None:
        by_weights = x @ prepared.predictor_weights(solution)
        np.testing.assert_allclose(by_weights, by_weights if found is None else found, 1e-6)
        found = by_weights
    return found if solution.constant is None else found + solution.constant


class Interrupted(DenseOperator):
    """A matrix whose products are interrupted once, after so many."""

    left = 10**9

    def count(self):
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt

    def matmul(self, v, dtype="float64"):
        self.count()
        return super().matmul(v, dtype)

    def columns(self, indices, dtype="float64"):
        self.count()
        return super().columns(indices, dtype)


@pytest.mark.parametrize("name", CASES)
class TestEverySolver:
    @pytest.mark.parametrize("columns", [1, 3, 100])
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.filterwarnings("ignore:A Cholesky factorisation")
    def test_agrees_with_a_dense_solve(self, name, kernel, columns):
        case = CASES[name]
        operator, gram = case.operator(KERNELS[kernel])
        y = np.random.default_rng(1).normal(size=(N, columns))
        prepared = case.solver.prepare(System(operator, y))
        unit = np.trace(gram) / N**2
        assert prepared.unit == pytest.approx(unit, rel=1e-9)
        for relative in RIDGES:
            solution = prepared.checked(prepared.solve(relative * unit))
            assert solution.residual is not None
            assert solution.dual.dtype == np.float64
            if not solution.converged:  # said, and only where rounding is to blame
                assert relative < case.least
                continue
            fitted = anchored(prepared, solution, gram)
            expected = exact(gram, y, relative * unit)
            if prepared.centred:  # whose residual is of the system of their features
                off = np.max(np.abs(fitted - expected))
                assert relative < case.least or off <= 1e-6 * np.max(np.abs(expected))
                assert abs(solution.kernel_error) < 1e-9
                continue
            error = np.linalg.norm(fitted - expected, axis=0)
            # The eigenvalues themselves are off by rounding.
            slack = 1e-14 * N / relative
            allowed = 1.01 * solution.tolerance + slack
            assert np.max(error / np.linalg.norm(y, axis=0)) <= allowed
            residual = y - fitted - relative * unit * solution.dual
            assert np.max(
                np.linalg.norm(residual, axis=0) / np.linalg.norm(y, axis=0)
            ) == pytest.approx(solution.residual, rel=0.5, abs=1e-9 + slack)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_direct_ones_know_every_risk(self, name, weighted):
        rng, case = np.random.default_rng(2), CASES[name]
        y = rng.normal(size=(N, 2))
        weights = rng.uniform(0.5, 2.0, size=N) if weighted else None
        operator, gram = case.operator(KERNELS["badly conditioned"])
        prepared = case.solver.prepare(System(operator, y, weights))
        for relative in (1e-2, 1.0):
            ridge = relative * prepared.unit
            solution = prepared.solve(ridge)
            if not prepared.exact_leave_one_out:
                assert solution.leave_one_out_mse is None
                continue
            loo = np.asarray(kk.risk.leave_one_out(y, gram, ridge, weights))
            squared = np.mean((y - loo) ** 2, axis=1)
            expected = np.average(squared, weights=weights)
            kare = float(kk.risk.kare(y, gram, ridge, weights))
            assert solution.leave_one_out_mse == pytest.approx(expected, rel=1e-6)
            assert solution.kare == pytest.approx(kare, rel=1e-6)
            (of_grid,) = prepared.solve_grid([ridge])
            assert of_grid.leave_one_out_mse == pytest.approx(expected, rel=1e-6)
            assert of_grid.kare == pytest.approx(kare, rel=1e-6)
            dimension = solution.effective_dimension
            assert of_grid.effective_dimension == pytest.approx(dimension)

    @pytest.mark.parametrize("intercept", [False, True])
    def test_rows_that_count_twice_are_two_rows(self, name, intercept):
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=(40, 5)), 2.0 + rng.normal(size=(40, 2))
        counts = rng.integers(1, 4, size=40)
        xx, yy = np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0)
        test, kernel = rng.normal(size=(6, 5)), Linear()

        def predictions(rows, targets, weights):
            system = System(kernel.operator(rows), targets, weights, intercept)
            prepared = CASES[name].tight.prepare(system)
            solution = prepared.solve(0.3 * prepared.unit)
            found = predicted(kernel, prepared, solution, test)
            return prepared.unit, prepared.scales, found

        for one, other in zip(
            predictions(x, y, counts), predictions(xx, yy, None), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_intercepts_are_those_of_the_bordered_system(self, name, weighted):
        rng = np.random.default_rng(4)
        x, y = rng.normal(size=(40, 5)), 7.0 + rng.normal(size=(40, 2))
        weights = rng.integers(1, 4, size=40) if weighted else None
        kernel, root = Linear(), np.ones(40)
        if weighted:
            root = np.sqrt(weights)
        system = System(kernel.operator(x), y, weights, intercept=True)
        prepared = CASES[name].tight.prepare(system)
        ridge, count = 0.3 * prepared.unit, np.sum(root**2)
        matrix = np.zeros((41, 41))
        matrix[:40, :40] = (x @ x.T) * root * root[:, None] / count + ridge * np.eye(40)
        matrix[:40, 40] = matrix[40, :40] = root
        right = np.vstack([root[:, None] * y, np.zeros((1, 2))])
        alpha = np.linalg.solve(matrix, right)
        solution = prepared.solve(ridge)
        np.testing.assert_allclose(solution.constant, alpha[40], rtol=1e-6)
        expected = x @ (x.T @ (root[:, None] * alpha[:40])) / count + alpha[40]
        found = predicted(kernel, prepared, solution, x)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_networks_in_float32_are_solved_in_float64(self, name):
        keras.utils.set_random_seed(0)
        rng, case = np.random.default_rng(5), CASES[name]
        x = rng.normal(size=(40, networks.D)).astype("float32")
        y = rng.normal(size=(40, 2))
        operator = kk.kernels.NTK(networks.mlp()).operator(x)
        prepared = case.tight.prepare(System(operator, y))
        solution = prepared.solve(prepared.unit)
        fitted = anchored(prepared, solution, operator.dense())
        expected = exact(operator.dense(), y, prepared.unit)
        np.testing.assert_allclose(fitted, expected, atol=1e-6)
        solutions = []
        for solver in (CASES[name].tight, solvers.Spectral()):
            prepared = solver.prepare(System(operator, 5.0 + y, intercept=True))
            solutions.append(prepared.solve(prepared.unit))
        assert solutions[0].converged
        one, other = (solution.constant for solution in solutions)
        np.testing.assert_allclose(one, other, rtol=1e-6)

    def test_grids_and_rough_solutions(self, name):
        case = CASES[name]
        operator, gram = case.operator(KERNELS["well conditioned"])
        y = np.random.default_rng(1).normal(size=(N, 2))
        prepared = case.tight.prepare(System(operator, y))
        ridges = prepared.unit * np.array([10.0, 1.0])
        for ridge, solution in zip(ridges, prepared.solve_grid(ridges), strict=True):
            assert solution.ridge == ridge
            if solution.dual is None:  # in a grid, weights are enough
                fitted = operator.x @ prepared.predictor_weights(solution)
            else:
                fitted = anchored(prepared, solution, gram)
            np.testing.assert_allclose(fitted, exact(gram, y, ridge), atol=1e-8)
        rough = prepared.rough(0.1).solve(ridges[1])
        assert rough.converged
        assert rough.tolerance == (0.1 if case.iterates else prepared.solver.tolerance)
        assert rough.iterations <= prepared.solve(ridges[1]).iterations

    def test_other_targets(self, name):
        case = CASES[name]
        operator, gram = case.operator(KERNELS["well conditioned"])
        y = np.random.default_rng(1).normal(size=(N, 5))
        prepared = case.tight.prepare(System(operator, y[:, :3])).for_targets(y[:, 3:])
        solution = prepared.solve(prepared.unit)
        fitted = anchored(prepared, solution, gram)
        expected = exact(gram, y[:, 3:], prepared.unit)
        np.testing.assert_allclose(fitted, expected, atol=1e-8)

    def test_ctrl_c_keeps_the_best_iterate(self, name):
        case = CASES[name]
        if not case.iterates:
            pytest.skip("does not iterate")
        operator = Interrupted(KERNELS["well conditioned"])
        system = System(operator, np.random.default_rng(1).normal(size=(N, 2)))
        prepared = case.with_settings(tolerance=1e-14).prepare(system)
        operator.left = 1
        solution = prepared.solve(1e-3 * system.unit)
        assert operator.left < -1
        assert solution.stopped == "interrupted"
        assert not solution.converged
        true = np.max(system.residual(solution.dual, solution.ridge))
        assert solution.residual == pytest.approx(float(true), rel=1e-6)
        assert true < 1.0

    def test_memory_is_checked_before_the_work(self, name, rng):
        solver = CASES[name].with_settings(memory_limit=1000)
        operator = Linear().operator(rng.normal(size=(50, 4)))
        with pytest.raises(MemoryError, match=f'solver="{solver.name}"` takes'):
            solver.prepare(System(operator, np.ones((50, 1))))

    def test_heads_keep_its_settings(self, name):
        solver = CASES[name].with_settings(tolerance=0.25, memory_limit=10**9)
        head = kk.NTKRidgeHead(solver=solver)
        again = kk.NTKRidgeHead.from_config(json.loads(json.dumps(head.get_config())))
        assert type(again.solver) is type(solver)
        assert again.solver.get_config() == solver.get_config()

    @pytest.mark.parametrize("intercept", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_streams_are_systems(self, name, weighted, intercept):
        rng, case, kernel = np.random.default_rng(6), CASES[name], Linear()
        x, y = rng.normal(size=(60, 5)), 1.0 + rng.normal(size=(60, 2))
        weights = rng.integers(0, 4, size=60).astype("float64") if weighted else None

        def read():
            for begin in range(0, 60, 13):
                rows = slice(begin, begin + 13)
                given = None if weights is None else weights[rows]
                yield tf.constant(x[rows]), y[rows] - 1.0, given

        rows = Stream(read).with_intercept(intercept)
        system = StreamSystem(kernel, rows.with_targets(lambda x, y: y + 1.0))
        if not case.streams:
            with pytest.raises(ValueError, match="needs all rows in memory"):
                case.solver.prepare(system)
            return
        prepared = case.tight.prepare(system)
        given = System(kernel.operator(x), y, weights, intercept)
        expected = case.tight.prepare(given)
        for fact in ("unit", "scales"):
            found = getattr(prepared, fact)
            np.testing.assert_allclose(found, getattr(expected, fact), rtol=1e-9)
        solutions = [p.solve(0.3 * prepared.unit) for p in (prepared, expected)]
        for fact in ("rows", "columns", "count", "ridge", "converged"):
            assert getattr(solutions[0], fact) == getattr(solutions[1], fact)
        anchors = prepared.anchors_of(solutions[0])
        assert prepared.centred == (anchors is not None)
        if anchors is not None:
            np.testing.assert_array_equal(anchors, x[solutions[0].centres])
        test = rng.normal(size=(6, 5))
        one, other = (
            predicted(kernel, p, s, test)
            for p, s in zip((prepared, expected), solutions, strict=True)
        )
        np.testing.assert_allclose(one, other, atol=1e-6)

    def test_zero_targets_have_a_machine_of_zeros(self, name):
        operator, _ = CASES[name].operator(KERNELS["well conditioned"])
        prepared = CASES[name].solver.prepare(System(operator, np.zeros((N, 2))))
        solution = prepared.checked(prepared.solve(prepared.unit))
        assert solution.converged
        assert not np.any(solution.dual)

    def test_bad_settings_are_named(self, name):
        make = CASES[name].with_settings
        for value in (0.0, -1.0, float("nan"), "a", True):
            with pytest.raises(ValueError, match="`tolerance`"):
                make(tolerance=value)
        for value in (0, -1, "2GB", 1.5):
            with pytest.raises(ValueError, match="`memory_limit`"):
                make(memory_limit=value)
        if "seed" in make().get_config():
            for value in (-1, 1.5, "a"):
                with pytest.raises(ValueError, match="`seed`"):
                    make(seed=value)


def test_every_solver_has_a_case():
    solved_with = {type(case.solver) for case in CASES.values()}
    assert solved_with == set(solvers.auto.SOLVERS.values())


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
        first = prepared.solve(1.1 * ridge)  # of 2.0, rounding on some processors decides
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

    def test_primal_needs_features(self):
        with pytest.raises(ValueError, match="finite feature map"):
            Primal().prepare(System(DenseOperator(np.eye(3)), np.ones((3, 1))))

    def test_zero_kernels_are_refused(self):
        system = System(DenseOperator(np.zeros((3, 3))), np.ones((3, 1)))
        with pytest.raises(ValueError, match="kernel is zero"):
            _ = system.unit


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
