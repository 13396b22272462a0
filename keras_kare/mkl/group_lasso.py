"""The group lasso of masked rows, solved for the weights of its kernels.

With `Σ_i |w_i| = min over η >= 0 of ½ Σ_i (|w_i|²/η_i + η_i)`, the best `w` for given
weights `η` is a kernel ridge regression, `w_i = η_i (D_i X)ᵀ α`, and what is left is smooth
and convex in `η`. For `K = Σ_i η_i K_i`, `K_i = D_i X Xᵀ D_i`:

    α = (K + βI)⁻¹ y,   F(η) = (β/2) (tr yᵀα + Σ_i η_i),
    ∂F/∂η_i = (β/2) (1 − |(D_i X)ᵀα|²),
    ∂²F/∂η_i ∂η_j = β tr (K_i α)ᵀ (K + βI)⁻¹ (K_j α).

Iterative reweighting, `η_i ← |w_i| = η_i |(D_i X)ᵀα|`, comes near and then slows down:
weights that should be zero never are. Projected Newton steps (Bertsekas, "Projected Newton
methods for optimization problems with simple constraints", 1982), damped as Levenberg did,
go on from there. The residual is `βα`; scaled to be feasible for the dual program, it tells
how far the objective may still be from its minimum.

What no `D_i X` reaches of `y` is in every residual. Where `β` is small it is taken out of
the system: as a part of `α` it would be divided by `β`, and its rounding drown the slopes
`(D_i X)ᵀα`, which it has no part in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lu_factor, lu_solve

from keras_kare.mkl.masks import MaskedRows

REWEIGHTED = 10
"""Steps of iterative reweighting before those of Newton."""

DAMPING = 1e-2
"""What is added to the first Hessian, as a share of its mean diagonal."""

LEAST_DAMPING, MOST_DAMPING = 1e-12, 1e12

IDLE = 5
"""Newton steps in a row that gain no more than rounding, after which to stop."""

SMALL = 1e-6
"""Share of the mean diagonal of `Σ_i K_i` below which `β` is small."""

LEAST_OUTSIDE = 1e-8
"""Share of `y` that must be out of reach to be taken out."""

ARMIJO = 1e-4
ROUNDING = 1e-14


@dataclass(frozen=True)
class Certificate:
    """What coefficients reach, and how far from the minimum that may be.

    Args:
        objective: `½ |Σ_i D_i X w_i − y|² + β Σ_i |w_i|`.
        gap: By how much the objective exceeds that of a feasible dual point.
        active: How many `w_i` are not zero.
    """

    objective: float
    gap: float
    active: int

    @property
    def relative_gap(self) -> float:
        """The gap as a share of the objective."""
        return self.gap / self.objective if self.objective > 0.0 else 0.0


@dataclass(frozen=True)
class Point:
    """Weights, and the kernel ridge regression that they lead to.

    Args:
        weights: `η`, `(p,)`.
        dual: `α`, `(n, c)`.
        slopes: `(D_i X)ᵀα`, `(p, d, c)`.
        norms: Their norms, `(p,)`.
        value: `F(η)`, less the constant of what is out of reach.
        system: `K + βI`, `(n, n)`.
    """

    weights: np.ndarray
    dual: np.ndarray
    slopes: np.ndarray
    norms: np.ndarray
    value: float
    system: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        """`w_i = η_i (D_i X)ᵀα`, `(p, d, c)`."""
        return self.weights[:, None, None] * self.slopes


@dataclass(frozen=True)
class GroupLasso:
    """Minimise `½ |Σ_i D_i X w_i − y|² + β Σ_i |w_i|`.

    Args:
        rows: `X` and the masks `D_i`.
        y: `(n, c)`.
        regularization: `β`, positive.
    """

    rows: MaskedRows
    y: np.ndarray
    regularization: float

    @functools.cached_property
    def outside(self) -> np.ndarray:
        """What is taken out of `y`, orthogonal to all `D_i X`, `(n, c)`; often zero."""
        nothing = np.zeros_like(self.y)
        kernel = self.rows.kernel(np.ones(len(self.rows.masks)))
        if self.regularization >= SMALL * np.mean(np.diag(kernel)):
            return nothing
        values, vectors = np.linalg.eigh(kernel)
        rounding = len(values) * np.finfo(float).eps * values[-1]
        beyond = vectors[:, values <= rounding]
        found = beyond @ (beyond.T @ self.y)
        enough = np.linalg.norm(found) > LEAST_OUTSIDE * np.linalg.norm(self.y)
        return found if enough and self._leak(found) < self.regularization else nothing

    def _leak(self, outside: np.ndarray) -> float:
        """Return the largest `|(D_i X)ᵀv|` of what should have none."""
        return float(np.linalg.norm(self.rows.slopes(outside), axis=(1, 2)).max())

    def certify(self, point: Point) -> Certificate:
        """Return the objective at a point, and the gap to its dual, scaled for the best.

        The dual program is `max tr yᵀθ − ½ |θ|²` over `|(D_i X)ᵀθ| <= β`; `θ` is what is
        out of reach, and `α` times a scale.
        """
        beta, coefficients, dual = self.regularization, point.coefficients, point.dual
        norms = np.linalg.norm(coefficients, axis=(1, 2))
        residual = self.y - self.rows.values(coefficients)
        objective = float(0.5 * np.sum(residual**2) + beta * np.sum(norms))
        along, square = np.sum((self.y - self.outside) * dual), np.sum(dual**2)
        scale = along / square if square else 0.0
        allowed = beta - self._leak(self.outside)
        scale = min(scale, allowed / max(point.norms.max(), np.finfo(float).tiny))
        theta = self.outside + scale * dual
        gap = max(objective - float(np.sum(self.y * theta) - 0.5 * np.sum(theta**2)), 0.0)
        return Certificate(objective, gap, int(np.count_nonzero(norms)))

    def at(self, weights: np.ndarray) -> Point:
        """Return the kernel ridge regression of weights, `(p,)`."""
        beta = self.regularization
        system = self.rows.kernel(weights)
        system[np.diag_indices_from(system)] += beta
        inside = self.y - self.outside
        factors = lu_factor(system)
        dual = lu_solve(factors, inside)
        dual += lu_solve(factors, inside - system @ dual)  # else `value` loses digits
        slopes = self.rows.slopes(dual)
        norms = np.linalg.norm(slopes, axis=(1, 2))
        value = 0.5 * beta * float(np.sum(inside * dual) + np.sum(weights))
        return Point(weights, dual, slopes, norms, value, system)

    def minimise(
        self, start: np.ndarray, tolerance: float, max_iterations: int
    ) -> tuple[Point, Certificate, int]:
        """Return the best weights, what they reach, and how many steps that took.

        Args:
            start: Positive weights, `(p,)`.
            tolerance: Relative duality gap that is small enough.
            max_iterations: Steps after which to stop.
        """
        zero = self.at(np.zeros_like(start))
        if (found := self.certify(zero)).relative_gap <= tolerance:
            return zero, found, 0
        best = point = self.at(start)
        found, damping, step, idle = self.certify(point), DAMPING, 0, 0
        while found.relative_gap > tolerance and step < max_iterations and idle < IDLE:
            step += 1
            if step <= REWEIGHTED:
                point = self.at(point.weights * point.norms)
            elif (moved := self._newton(point, damping)) is not None:
                gained = point.value - moved.value > ROUNDING * point.value
                idle = 0 if gained else idle + 1
                point, damping = moved, max(0.1 * damping, LEAST_DAMPING)
            elif damping < MOST_DAMPING:
                damping *= 10.0
                continue
            else:  # rounding is all that is left
                break
            if (reached := self.certify(point)).gap < found.gap:
                best, found = point, reached
        return best, found, step

    def _newton(self, point: Point, damping: float) -> Point | None:
        """Return the point after a projected Newton step; `None` if it is not lower.

        Args:
            point: Where it starts.
            damping: What is added to the Hessian, as a share of its mean diagonal.
        """
        gradient = 0.5 * self.regularization * (1.0 - point.norms**2)
        free = (point.weights > 0.0) | (gradient < 0.0)
        weights = point.weights.copy()
        weights[free] -= self._solved(point, free, gradient[free], damping)
        moved = self.at(np.maximum(weights, 0.0))
        descent = np.sum(gradient * (point.weights - moved.weights))
        allowed = ROUNDING * point.value - ARMIJO * descent
        return moved if moved.value <= point.value + allowed else None

    def _solved(
        self, point: Point, free: np.ndarray, gradient: np.ndarray, damping: float
    ) -> np.ndarray:
        """Return the damped Hessian's inverse times the gradient, of the free weights."""
        parts = self.rows.each(point.slopes, free)  # K_i α, (n, c, free)
        flat = parts.reshape(len(parts), -1)
        solved = np.linalg.solve(point.system, flat).reshape(parts.shape)
        hessian = self.regularization * np.tensordot(parts, solved, axes=((0, 1), (0, 1)))
        size = np.mean(np.diag(hessian))
        hessian[np.diag_indices_from(hessian)] += damping * size
        return np.linalg.solve(hessian, gradient)
