"""EigenPro: the same solution as the dense one, by batches, and honest where it is not."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from gaussian import Gaussian

from keras_kare.kernels import NTK
from keras_kare.kernels.operator import DenseOperator
from keras_kare.solvers import Spectral, System
from keras_kare.solvers.eigenpro import EigenPro
from keras_kare.solvers.eigenpro.feature_steps import FeatureIterate, add_images
from keras_kare.solvers.eigenpro.steps import MatrixIterate, Subspace

N = 200


def gaussian(x: np.ndarray, width: float) -> np.ndarray:
    squared = np.sum((x[:, None] - x[None]) ** 2, axis=2)
    return np.exp(-squared / (2.0 * width**2))


def matrix_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, 3))
    if name == "well conditioned":
        return gaussian(x, 0.4)
    if name == "badly conditioned":
        return gaussian(x, 2.0)
    if name == "rank-deficient":
        features = rng.normal(size=(N, 12))
        return features @ features.T
    return gaussian(x[np.arange(N) % 80], 1.0)  # duplicated rows


KERNELS = ["well conditioned", "badly conditioned", "rank-deficient", "duplicated rows"]


def targets(columns: int) -> np.ndarray:
    """Smooth functions and as much noise, so that every direction matters."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, 3))
    return np.sin(x @ rng.normal(size=(3, columns))) + rng.normal(size=(N, columns))


def relative_residual(gram: Any, y: np.ndarray, dual: np.ndarray, ridge: float) -> float:
    """The plain definition."""
    r = y - gram @ dual / len(gram) - ridge * dual
    return float(np.max(np.linalg.norm(r, axis=0) / np.linalg.norm(y, axis=0)))


class Slow(DenseOperator):
    """A matrix whose columns take time, or are interrupted after so many batches."""

    def __init__(self, gram: np.ndarray, seconds: float = 0.0, batches: int = 10**9):
        super().__init__(gram)
        self.seconds, self.batches = seconds, batches

    def columns(self, indices: np.ndarray, dtype: str = "float64") -> np.ndarray:
        time.sleep(self.seconds)
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return super().columns(indices, dtype)


@pytest.mark.parametrize("columns", [1, 3, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_agrees_with_spectral(name: str, columns: int) -> None:
    gram, y = matrix_of(name), targets(columns)
    system = System(DenseOperator(gram), y)
    exact = Spectral().prepare(system)
    prepared = EigenPro().prepare(system)
    for relative in (1e-2, 1.0, 1e2, 1e4):
        ridge = relative * system.unit
        solution = prepared.solve(ridge)
        wanted = exact.solve(ridge).dual
        assert solution.stopped == "tolerance"
        assert solution.converged
        assert 1 <= solution.iterations <= 100
        true = relative_residual(gram, y, solution.dual, ridge)
        assert solution.residual == pytest.approx(true, rel=1e-6, abs=1e-12)
        # |K/n (α − α*)| = |K/n A⁻¹ r| ≤ |r|
        off = np.linalg.norm(gram @ (solution.dual - wanted) / N, axis=0)
        assert np.all(off <= 1.0e-3 * np.linalg.norm(y, axis=0))


@pytest.mark.parametrize("name", KERNELS)
def test_batches_agree_with_spectral(name: str) -> None:
    """Few rows at a time, a subsample that is not all rows, a tight tolerance."""
    gram, y = matrix_of(name), targets(2)
    system = System(DenseOperator(gram), y)
    solver = EigenPro(tolerance=1e-9, batch_size=25, subsample=60, components=20)
    solution = solver.prepare(system).solve(system.unit)
    assert solution.stopped == "tolerance"
    wanted = Spectral().prepare(system).solve(system.unit).dual
    np.testing.assert_allclose(solution.dual, wanted, atol=1e-7 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["well conditioned", "badly conditioned"])
def test_tiny_ridges_say_that_they_did_not_converge(name: str) -> None:
    gram, y = matrix_of(name), targets(1)
    system = System(DenseOperator(gram), y)
    solver = EigenPro(max_epochs=12, batch_size=20, components=10)
    solution = solver.prepare(system).solve(1e-8 * system.unit)
    assert not solution.converged
    assert solution.stopped in ("iterations", "stalled")
    assert solution.iterations <= 12
    assert 1e-3 < solution.residual <= 1.0
    true = relative_residual(gram, y, solution.dual, 1e-8 * system.unit)
    assert solution.residual == pytest.approx(true, rel=1e-4)


def test_the_subspace_matters() -> None:
    """Without it, large batches of a badly conditioned kernel go nowhere."""
    gram, y = matrix_of("badly conditioned"), targets(1)
    system = System(DenseOperator(gram), y)

    def solve(components: int) -> Any:
        solver = EigenPro(batch_size=80, components=components, subsample=100)
        return solver.prepare(system).solve(0.01 * system.unit)

    corrected, plain = solve(25), solve(0)
    assert corrected.converged
    assert 3 * corrected.iterations <= plain.iterations


def test_no_step_raises_the_energy() -> None:
    gram, y = matrix_of("badly conditioned"), targets(3)
    ridge, rng = 1e-3 / N, np.random.default_rng(0)
    rows = np.sort(rng.choice(N, 50, replace=False))
    subspace = Subspace(rows, gram[np.ix_(rows, rows)], 15)
    iterate = MatrixIterate(DenseOperator(gram), subspace, 3, ridge)
    iterate.correct(y[rows])
    system = gram / N + ridge * np.eye(N)

    def energy() -> np.ndarray:
        alpha = iterate.dual
        return np.sum(alpha * (0.5 * system @ alpha - y), axis=0)

    before = energy()
    assert np.all(before < 0.0)
    for _ in range(60):
        numbers = np.sort(rng.choice(N, 30, replace=False))
        r = y[numbers] - (system @ iterate.dual)[numbers]
        squared = iterate.update(numbers, None, y[numbers])
        np.testing.assert_allclose(squared, np.sum(r**2, axis=0), rtol=1e-8)
        after = energy()
        assert np.all(after < before)
        before = after
    left = subspace.vectors.T @ (y - system @ iterate.dual)[rows]
    assert np.abs(left).max() < 1e-9 * np.abs(y).max()


def test_no_variance_at_the_optimum() -> None:
    """Steps that do not shrink converge to rounding, and then say that they stall."""
    gram, y = matrix_of("well conditioned"), targets(1)
    system = System(DenseOperator(gram), y)
    solver = EigenPro(tolerance=1e-18, batch_size=50)
    solution = solver.prepare(system).solve(system.unit)
    assert solution.residual < 1e-14
    assert solution.stopped == "stalled"
    assert not solution.converged
    assert solution.iterations < 100


def test_weighted_rows_are_repeated_rows() -> None:
    gram, y = matrix_of("well conditioned"), targets(2)
    weights = np.random.default_rng(3).integers(0, 4, size=N)
    system = System(DenseOperator(gram), y, weights)
    solver = EigenPro(tolerance=1e-10, batch_size=30, subsample=80)
    ridge = 2.0 * system.unit
    solution = solver.prepare(system).solve(ridge)
    assert solution.converged
    again = np.repeat(np.arange(N), weights)
    count = len(again)
    repeated = gram[np.ix_(again, again)] / count + ridge * np.eye(count)
    wanted = gram[:, again] @ np.linalg.solve(repeated, y[again]) / count
    found = gram @ system.predictor(solution) / N
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    assert np.all(solution.dual[weights == 0] == 0.0)


def network(*widths: int, c: int = 1) -> keras.Model:
    hidden = [keras.layers.Dense(width, "gelu") for width in widths]
    return keras.Sequential([keras.Input((3,)), *hidden, keras.layers.Dense(c)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("widths", "by_features", "held"),
    [((3,), True, True), ((3,), True, False), ((99, 99), False, False)],
)
def test_ntk_by_features_and_by_values(
    widths: tuple[int, ...],
    by_features: bool,
    held: bool,
    weighted: bool,
    rng: np.random.Generator,
) -> None:
    limit = None if held or not by_features else 50_000
    kernel = NTK(network(*widths), memory_limit=limit)
    x, y = rng.normal(size=(N, 3)), targets(2)
    weights = rng.uniform(0.0, 3.0, size=N) if weighted else None
    system = System(kernel.operator(x), y, weights)
    solver = EigenPro(tolerance=1e-6, batch_size=64, subsample=90, components=12)
    prepared = solver.prepare(system)
    assert prepared.reading.by_features == by_features
    assert (prepared._held is not None) == held
    ridge = system.unit
    solution = prepared.solve(ridge)
    assert solution.converged
    gram = kernel.gram(x, dtype="float64").numpy()
    root, total = np.ones(N), float(N)
    if weights is not None:
        root, total = np.sqrt(weights), float(np.sum(weights))
    matrix = gram * root * root[:, None] / total + ridge * np.eye(N)
    wanted = np.linalg.solve(matrix, root[:, None] * y)
    np.testing.assert_allclose(solution.dual, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.usefixtures("float64")
def test_ntk_of_several_outputs(rng: np.random.Generator) -> None:
    kernel = NTK(network(2, c=3), outputs="trace")
    x, y = rng.normal(size=(N, 3)), targets(3)
    system = System(kernel.operator(x), y)
    prepared = EigenPro(tolerance=1e-6, components=0, batch_size=80).prepare(system)
    assert prepared.reading.by_features
    solution = prepared.solve(system.unit)
    assert solution.converged
    gram = kernel.gram(x, dtype="float64").numpy()
    assert relative_residual(gram, y, solution.dual, system.unit) < 1.01e-6


def test_float32_networks_go_on_in_float64(rng: np.random.Generator) -> None:
    """Products in float32 do not reach small residuals at small ridges."""
    kernel = NTK(network(6))
    x, y = rng.normal(size=(N, 3)).astype("float32"), targets(2)
    system = System(kernel.operator(x), y)
    prepared = EigenPro(components=50, tolerance=1e-5).prepare(system)
    assert prepared.reading.by_features
    ridge = 1e-6 * system.unit
    assert prepared.iterate(ridge).dtype == "float32"
    solution = prepared.solve(ridge)
    assert solution.converged
    gram = system.operator.dense()
    assert gram.dtype == np.float64
    true = relative_residual(gram, y, solution.dual, ridge)
    assert solution.residual == pytest.approx(true, rel=0.05, abs=1e-6)


def test_kernels_without_features(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(N, 3)), targets(1)
    weights = rng.uniform(0.5, 2.0, size=N)
    system = System(Gaussian().operator(x), y, weights)
    solver = EigenPro(tolerance=1e-7, batch_size=32, subsample=50, components=20)
    ridge = 0.5 * system.unit
    solution = solver.prepare(system).solve(ridge)
    assert solution.converged
    root = np.sqrt(weights)
    gram = gaussian(x, np.sqrt(0.5)) * root * root[:, None] * (N / np.sum(weights))
    assert relative_residual(gram, root[:, None] * y, solution.dual, ridge) < 1.01e-7


@pytest.mark.usefixtures("float64")
def test_a_stream_can_drive_it(rng: np.random.Generator) -> None:
    """Batches of a dataset, and nothing but them and the subsample's rows."""
    kernel, c = NTK(network(4)), 2
    x, y = rng.normal(size=(N, 3)), targets(c)
    rows = np.sort(rng.choice(N, 40, replace=False))
    subspace = Subspace(rows, kernel.gram(x[rows]).numpy(), 20)
    operator = kernel.operator(x)
    add_images(subspace, operator)
    gram = kernel.gram(x).numpy()
    ridge = float(np.trace(gram)) / N**2
    iterate = FeatureIterate(operator, subspace, c, ridge)
    iterate.correct(y[rows])
    stream = tf.data.Dataset.from_tensor_slices((np.arange(N), x, y))
    for _ in range(12):
        for numbers, x_rows, y_rows in stream.shuffle(N, seed=0).batch(32):
            iterate.update(numbers.numpy(), x_rows, y_rows.numpy())
    assert relative_residual(gram, y, iterate.dual, ridge) < 1e-3
    left = (y - gram @ iterate.dual / N - ridge * iterate.dual)[rows]
    assert np.abs(subspace.vectors.T @ left).max() < 1e-9 * np.abs(y).max()

    def passes() -> Any:
        yield slice(0, 150), tf.constant(x[:150])
        yield slice(150, N), tf.constant(x[150:])

    np.testing.assert_allclose(iterate.values(passes), gram @ iterate.dual / N, atol=1e-9)


def test_time_budget() -> None:
    gram, y = matrix_of("well conditioned"), targets(1)
    system = System(Slow(gram, seconds=0.05), y)
    solver = EigenPro(tolerance=1e-12, batch_size=20, time_budget=0.3)
    begun = time.monotonic()
    solution = solver.prepare(system).solve(1e-3 * system.unit)
    assert time.monotonic() - begun < 10.0  # 100 epochs would take 50 s
    assert solution.stopped == "time"
    assert not solution.converged
    true = relative_residual(gram, y, solution.dual, 1e-3 * system.unit)
    assert solution.residual == pytest.approx(true, rel=1e-6)


def test_interruption_keeps_the_iterate() -> None:
    gram, y = matrix_of("well conditioned"), targets(1)
    system = System(Slow(gram, batches=25), y)
    solver = EigenPro(tolerance=1e-12, batch_size=20, components=20)
    solution = solver.prepare(system).solve(system.unit)
    assert solution.stopped == "interrupted"
    assert solution.iterations == 2
    assert not solution.converged
    true = relative_residual(gram, y, solution.dual, system.unit)
    assert solution.residual == pytest.approx(true, rel=1e-6)
    assert true < 0.1


def test_goes_on_from_another_solution() -> None:
    system = System(DenseOperator(matrix_of("well conditioned")), targets(1))
    prepared = EigenPro(batch_size=20, components=20).prepare(system)
    first = prepared.solve(system.unit)
    again = prepared.solve(system.unit, first)
    assert (again.iterations, again.stopped) == (0, "tolerance")
    np.testing.assert_array_equal(again.dual, first.dual)
    path = list(prepared.solve_grid([1e2 * system.unit, system.unit]))
    assert all(s.converged for s in path)
    rough = prepared.rough(0.1).solve(system.unit)
    assert rough.tolerance == 0.1
    assert rough.converged
    assert rough.iterations < first.iterations


def test_targets_of_zero() -> None:
    gram, y = matrix_of("well conditioned"), targets(2)
    y[:, 1] = 0.0
    system = System(DenseOperator(gram), y)
    solution = EigenPro(batch_size=20).prepare(system).solve(system.unit)
    assert solution.converged
    assert np.all(solution.dual[:, 1] == 0.0)
    nothing = EigenPro().prepare(System(DenseOperator(gram), 0.0 * y)).solve(1.0)
    assert nothing.converged
    assert not np.any(nothing.dual)


def test_result_is_reproducible() -> None:
    system = System(DenseOperator(matrix_of("well conditioned")), targets(1))
    solvers = [EigenPro(batch_size=20, subsample=50, seed=s) for s in (0, 0, 1)]
    first, second, other = (s.prepare(system).solve(system.unit).dual for s in solvers)
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_memory_is_checked_and_kept() -> None:
    operator = DenseOperator(matrix_of("well conditioned"))
    system = System(operator, targets(1))
    with pytest.raises(MemoryError, match='solver="eigenpro"'):
        EigenPro(memory_limit=10_000).prepare(system)
    # The same limit refuses a batch that the user names, and shrinks one that it may.
    many, limit = DenseOperator(np.eye(600)), 900_000
    with pytest.raises(MemoryError, match="`batch_size`"):
        EigenPro(memory_limit=limit, subsample=50, batch_size=600).prepare(
            System(many, np.ones((600, 1)))
        )
    solver = EigenPro(memory_limit=limit, subsample=50)
    assert 1 <= solver.reading(many, 1).batch_rows < 600
    assert solver.memory(many, 1) <= limit
    assert solver.prepare(System(many, np.ones((600, 1)))).solve(1.0).converged


def test_kernel_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel is zero"):
        EigenPro().prepare(System(DenseOperator(np.zeros((N, N))), targets(1)))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("tolerance", 0.0),
        ("tolerance", "small"),
        ("max_epochs", 0),
        ("batch_size", 0),
        ("batch_size", "large"),
        ("components", -1),
        ("components", 2001),
        ("subsample", 1),
        ("time_budget", -1.0),
        ("memory_limit", 0.5),
        ("seed", -1),
    ],
)
def test_bad_arguments_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}="):
        EigenPro(**{argument: value})


def test_bad_ridge_is_refused() -> None:
    operator = DenseOperator(matrix_of("well conditioned"))
    with pytest.raises(ValueError, match="`ridge`"):
        EigenPro().solve(operator, targets(1), ridge=0.0)


def test_config_round_trip() -> None:
    solver = EigenPro(
        tolerance=1e-4,
        max_epochs=7,
        batch_size=64,
        components=9,
        subsample=33,
        time_budget=5.0,
        memory_limit=10**9,
        seed=3,
    )
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(solver)
    )
    assert isinstance(again, EigenPro)
    assert again.get_config() == solver.get_config()
    assert EigenPro.from_config(EigenPro().get_config()).components == "auto"
