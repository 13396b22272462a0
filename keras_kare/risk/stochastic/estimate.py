"""What an estimate of KARE tells."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """KARE, and how it was found.

    Attributes:
        value: KARE, in the units of `y²`.
        standard_error: Of `value`, by the randomness of the probes, to first order;
            0 for `"primal"`.
        method: `"primal"`, exact, or `"stochastic"`.
        probes: `p`; 0 for `"primal"`.
        ridge: `z`.
        residual: The largest of `|y − A a|/|y|` over the columns of `y` and the probes,
            and, after a gradient, of `|a − A b|/|a|`.
        tolerance: What the residual should be at most.
        iterations: Of the solver, in all; 0 for direct ones.
        dual: `a`, `(n, c)`: `y − z a` are the predictions of the training rows.
    """

    value: float
    standard_error: float
    method: str
    probes: int
    ridge: float
    residual: float
    tolerance: float
    iterations: int
    dual: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def converged(self) -> bool:
        """Whether the residual is as small as it should be."""
        return self.residual <= self.tolerance

    def require_finite(self) -> Estimate:
        """Return the estimate itself, or refuse one that is not finite.

        Raises:
            ValueError: If it is not finite.
        """
        if np.isfinite(self.value):
            return self
        raise ValueError(
            "KARE overflows: `y`, the kernel or 1/`ridge` is too large. Scale targets and "
            f"kernel to about one. Received: KARE of {self.value}"
        )

    def warn_if_rough(self) -> Estimate:
        """Return the estimate itself, after a warning if the solution has not converged."""
        if not self.converged:
            warnings.warn(
                f"The solution behind KARE has a residual of {self.residual:.1e} after "
                f"{self.iterations} iterations, not {self.tolerance:.1e}: the estimate may "
                "be off by more than its standard error. Take a larger ridge, a larger "
                "tolerance, or a solver with more iterations.",
                RuntimeWarning,
                stacklevel=3,
            )
        return self
