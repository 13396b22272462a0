"""KARE by random probes: one block solve, and no kernel value is kept.

One block solve gives `A⁻¹[y, z_1 … z_p] = [a, u_1 … u_p]`, where the entries of the
probes `z_i` are 1 or -1 at random. Each `q_i = z_iᵀu_i/n` has the mean `t` (Hutchinson).
With their mean `t̂` and `v̂ = Σ_i (q_i − t̂)²/(p (p − 1))`, which estimates the variance of
`t̂`,

    KARE ≈ s/(t̂² + 3 v̂).

To first order `s/t̂²` would be too large by the factor `1 + 3 var(t̂)/t²`, which `3 v̂`
takes away. What remains is of order `1/p²`: the factor `1 − 6 (var(t̂)/t²)²` for `q_i` of
a normal distribution, and a skewed one adds `6 E(t̂ − t)³/t³`.

The gradient is that of this very estimate, by implicit differentiation, never through the
iterations of the solver: with `b = A⁻¹a`,

    ∂s = −(2/(n c)) Σ_k b_kᵀ ∂A a_k,    ∂q_i = −(1/n) u_iᵀ ∂A u_i,
    uᵀ ∂K v = uᵀ ∂J (Jᵀv) + vᵀ ∂J (Jᵀu).

With an intercept, probes are those less their means, and `A` that of features less
theirs: `A⁻¹C z = P z` (see `keras_kare.solvers.centred`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_kare.kernels.kernel import Kernel
from keras_kare.risk.stochastic.estimate import Estimate
from keras_kare.risk.stochastic.row_gradients import bilinear_gradients
from keras_kare.solvers import Prepared, Solution, Solver, System


class Probed:
    """The block solution of targets and probes, and the estimate of KARE that it gives.

    Args:
        system: The system.
        ridge: `z`.
        probes: `p`, at least 2.
        seed: Of the probes.
        solver: Of the block system.

    Attributes:
        estimate: The `Estimate`.
    """

    def __init__(
        self, system: System, ridge: float, probes: int, seed: int, solver: Solver
    ):
        self._system, self._ridge, self._solver = system, ridge, solver
        n, c = system.y.shape
        z = 2.0 * np.random.default_rng(seed).integers(0, 2, (n, probes)) - 1.0
        z = system.project(z)
        targets = np.concatenate([system.y, z], axis=1)
        self._prepared = solver.prepare(System(system.operator, targets))
        dual, solution = self._solved(self._prepared)
        self._a, self._u = dual[:, :c], dual[:, c:]
        # Rows may count more than once: see `keras_kare.risk`.
        count = system.count
        self._q = (np.sum(z * self._u, axis=0) + (count - n) / ridge) / count
        self._t = float(np.mean(self._q))
        if not self._t > 0.0:
            raise ValueError(
                "KARE cannot be estimated: the solver found nothing better than zero. Take "
                "a larger ridge, or a solver with more iterations. Received: a residual "
                f"of {solution.residual:.1e} after {solution.iterations} iterations"
            )
        variance = float(np.var(self._q, ddof=1)) / probes
        with np.errstate(over="ignore"):  # the estimate is checked
            self._s = float(np.sum(self._a**2)) / (count * c)
        self._t_squared = self._t**2 + 3.0 * variance
        self.estimate = Estimate(
            value=self._s / self._t_squared,
            standard_error=2.0 * self._s * variance**0.5 / self._t**3,
            method="stochastic",
            probes=probes,
            ridge=ridge,
            residual=solution.residual or 0.0,
            tolerance=solution.tolerance,
            iterations=solution.iterations,
            dual=self._a,
        )

    def gradients(self, kernel: Kernel, slope: float) -> list[tf.Tensor]:
        """Differentiate the estimate, which then knows the residual of this solution, too.

        Args:
            kernel: The kernel; its rows count once each.
            slope: The derivative of `z` by `tr(K)`.
        """
        (n, c), p = self._a.shape, len(self._q)
        b = self._solve_for(self._a)
        by_q = 2.0 * self._t / p + 6.0 * (self._q - self._t) / (p * (p - 1))
        by_q *= -self._s / self._t_squared**2
        # In all: the sum of bᵀ ∂A a and of uᵀ ∂A u, where b and one u have factors.
        b *= -2.0 / (n * c * self._t_squared)
        u = self._u * (-by_q / n)
        by_ridge = float(np.sum(b * self._a) + np.sum(u * self._u))
        left = np.concatenate([b, self._a, 2.0 * u], axis=1) / n
        right = np.concatenate([self._a, b, self._u], axis=1)
        return bilinear_gradients(
            kernel, self._system.operator, left, right, slope * by_ridge
        )

    def _solve_for(self, targets: np.ndarray) -> np.ndarray:
        """Return `A⁻¹` of other targets, with the preconditioner of the first ones."""
        dual, solution = self._solved(self._prepared.for_targets(targets))
        self.estimate = dataclasses.replace(
            self.estimate,
            residual=max(self.estimate.residual, solution.residual or 0.0),
            iterations=self.estimate.iterations + solution.iterations,
        )
        return dual

    def _solved(self, prepared: Prepared) -> tuple[np.ndarray, Solution]:
        """Return `A⁻¹` of the targets, and how that went, its residual included."""
        solution = prepared.checked(prepared.solve(self._ridge))
        if solution.dual is None or solution.centres is not None:
            raise ValueError(
                "`solver` must solve for the dual of all rows, as `kk.solvers.CG()` does. "
                f"Received: solver={self._solver.name!r}"
            )
        return self._system.project(solution.dual), solution
