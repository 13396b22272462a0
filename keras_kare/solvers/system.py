"""The system `(K/n + λI) α = y`: what every solver is given."""

from __future__ import annotations

import abc
import functools
from typing import Any

import numpy as np

from keras_kare import _validation
from keras_kare.kernels.operator import KernelOperator
from keras_kare.solvers.centred import CentredOperator
from keras_kare.solvers.solution import Solution


class AbstractSystem(abc.ABC):
    """What is known of a system, whether its rows are in memory or in a stream.

    Attributes:
        rows: `n`.
        columns: `c`, the number of targets.
        count: `N`; `n` where each row counts once.
        intercept: Whether there is a constant beside the machine.
        centre: What was subtracted from the targets, `(c,)`.
    """

    rows: int
    columns: int
    count: float
    intercept: bool
    centre: np.ndarray

    @property
    @abc.abstractmethod
    def unit(self) -> float:
        """The unit of a relative ridge, `tr(K)/n²`: with weights, `Σ w_i K_ii/N²`.

        Raises:
            ValueError: If the kernel is zero, or not finite.
        """

    @property
    @abc.abstractmethod
    def scales(self) -> np.ndarray:
        """The mean square of each target, `(c,)`; about its mean with an intercept.

        It is what a target is measured in: errors divided by it have no unit.
        """

    @abc.abstractmethod
    def predictor(self, solution: Solution) -> np.ndarray:
        """Return `α`, `(n, c)`, of the predictor `(1/n) K(x, X) α`.

        Where a solution has centres, it is theirs.
        """

    @abc.abstractmethod
    def predictor_weights(self, solution: Solution) -> np.ndarray:
        """Return `w`, `(F, c)`, of the predictor `J(x) w`."""

    @abc.abstractmethod
    def anchors_of(self, solution: Solution) -> Any:
        """Return the rows that `α` belongs to; `None` where none are kept."""


class System(AbstractSystem):
    """`(K/n + λI) α = y`, to be solved for any `λ`.

    Rows may count `w_i` times, `N = Σ w` in all: then `W½ K W½/N` and `W½ y` stand in
    for `K/n` and `y` (see `keras_kare.risk`). With an intercept, features and targets
    are those less their means (see `keras_kare.solvers.centred`), and the constant is
    read off the solution.

    Args:
        operator: `K`, by its products: `kernel.operator(x)`, or
            `kernels.DenseOperator(gram)`.
        y: `(n, c)`.
        weights: How often each row counts, `(n,)`. Defaults to once.
        intercept: Whether there is a constant beside the machine. Defaults to `False`.

    Attributes:
        operator: `n` times what stands in for `K/n`.
        unscaled: `K` itself.
        y: What stands in for `y`, float64.
        scaled: `operator` before its mean was taken out.
        root: `w½`, `(n,)`.
        centre: What was subtracted from the targets, `(c,)`: their means with an
            intercept, else zeros. (`AbstractSystem` has the others.)

    Raises:
        ValueError: If shapes do not fit, or `y` or the weights hold NaN or Inf.
    """

    def __init__(
        self,
        operator: KernelOperator,
        y: np.ndarray,
        weights: np.ndarray | None = None,
        intercept: bool = False,
    ):
        rows = operator.rows
        y = np.asarray(_validation.check_targets("y", y, rows), "float64")
        self.unscaled = self.operator = operator
        self.rows, self.columns, self.intercept = rows, y.shape[1], intercept
        self.count, self.root = float(rows), np.ones(rows)
        self._given = y, None if weights is None else np.asarray(weights)
        if weights is not None:
            weights = _validation.check_weights("weights", weights, rows, min(rows, 2))
            self.count = float(np.sum(weights, dtype="float64"))
            self.root = np.sqrt(np.asarray(weights, "float64"))
            self.operator = operator.scaled(self.root * np.sqrt(rows / self.count))
        self.scaled = self.operator
        self.centre = np.zeros(y.shape[1])
        if intercept:
            self.centre = self.root**2 @ y / self.count
            y = y - self.centre
            self.operator = CentredOperator(self.operator, self.root)
        self.y = y if weights is None else self.root[:, None] * y

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """The matrix of `operator`, written out, `(n, n)` float64."""
        gram = self.operator.dense()
        total = float(np.sum(np.abs(gram)))
        if self.intercept:  # without its mean, a kernel that is not zero may be
            total += self.scaled.trace
        check_trace(total)
        return gram

    @functools.cached_property
    def unit(self) -> float:
        formed = "gram" in self.__dict__ and not self.intercept
        trace = float(np.trace(self.gram)) if formed else self.scaled.trace
        check_trace(trace)
        return trace / (self.rows * self.count)

    @functools.cached_property
    def scales(self) -> np.ndarray:
        y, weights = self._given
        squares = np.average(np.square(y - self.centre), axis=0, weights=weights)
        return above_rounding(squares, self.centre)

    def matmul(self, v: np.ndarray, ridge: float, dtype: str = "float64") -> np.ndarray:
        """Return `(K/n + λI) v`."""
        return self.operator.matmul(v, dtype) / self.rows + ridge * v

    def residual(self, dual: np.ndarray, ridge: float) -> np.ndarray:
        """Return `|y − (K/n + λI) α| / |y|`, `(c,)`; 0 for targets of zero."""
        if "gram" in self.__dict__:
            return relative(self.y - self.gram @ dual / self.rows - ridge * dual, self.y)
        return relative(self.y - self.matmul(dual, ridge), self.y)

    def predictor(self, solution: Solution) -> np.ndarray:
        assert solution.dual is not None  # of rows that are scaled by how often they count
        root = self.root if solution.centres is None else self.root[solution.centres]
        return solution.dual * root[:, None] * (self.rows / self.count)

    def predictor_weights(self, solution: Solution) -> np.ndarray:
        assert solution.weights is not None
        return solution.weights * np.sqrt(self.rows / self.count)

    def anchors_of(self, solution: Solution) -> Any:
        operator, centres = self.operator, solution.centres
        return operator.x if centres is None else operator.rows_of(centres)

    def project(self, v: np.ndarray) -> np.ndarray:
        """Return `C v`, `(n, m)`; `v` itself without an intercept."""
        operator = self.operator
        return operator.project(v) if isinstance(operator, CentredOperator) else v

    def finished(self, dual: np.ndarray) -> dict[str, Any]:
        """Return `dual` and `constant` of a `Solution`, from what was found as `α`.

        With an intercept, `ρᵀα = 0` is made to hold, which iterations come near to only.
        """
        operator, dual = self.operator, self.project(dual)
        if not isinstance(operator, CentredOperator):
            return {"dual": dual}
        values = operator.product @ dual / self.rows
        return {"dual": dual, "constant": self.centre - values / np.sqrt(self.count)}

    def constant_of(self, weights: np.ndarray) -> np.ndarray | None:
        """Return `b`, `(c,)`, for `w`, `(F, c)`; `None` without an intercept."""
        operator = self.operator
        if not isinstance(operator, CentredOperator):
            return None
        return self.centre - operator.flat_mean @ weights / np.sqrt(self.count)

    def less_constant(self, diagonal: np.ndarray, ridge: float) -> np.ndarray:
        """Return the diagonal of the `P` that stands in for `A⁻¹`, `(n,)`."""
        operator = self.operator
        if not isinstance(operator, CentredOperator):
            return diagonal
        return diagonal - operator.unit**2 / ridge


def above_rounding(squares: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return mean squares about `centre`, `(c,)`; zero where they are mere rounding."""
    return np.where(squares > (1e-12 * centre) ** 2, squares, 0.0)


def check_trace(trace: float) -> None:
    """Refuse kernels that are zero, or not finite, on all rows."""
    if not np.isfinite(trace):
        raise ValueError(
            "The Gram matrix overflows: the network's gradients on `x` are too "
            "large. Scale the inputs or the weights down."
        )
    if not trace > 0.0:
        raise ValueError(
            "The kernel is zero on all rows of `x`: the network's outputs do not "
            "react to its weights there (dead or saturated units)."
        )


def relative(values: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Divide the norms of columns, `|values| / |to|`, `(c,)`; 0 where `to` is zero."""
    norms = np.linalg.norm(to, axis=0)
    found = np.linalg.norm(values, axis=0)
    return np.divide(found, norms, out=np.zeros_like(found), where=norms > 0.0)
