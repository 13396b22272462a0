"""Every solver as tests solve with it: a new solver is one line in `CASES`."""

from __future__ import annotations

import dataclasses

import numpy as np
from kernel_cases import Linear

from keras_kare.kernels import DenseOperator
from keras_kare.solvers import CG, Cholesky, EigenPro, Nystrom, Primal, Solver, Spectral
from keras_kare.solvers.iterative import Iterative


@dataclasses.dataclass(frozen=True)
class Case:
    """A solver, and from which ridge on it must converge.

    Attributes:
        solver: One that finds the machine of all rows.
        least: The smallest relative ridge at which it converges on every kernel.
    """

    solver: Solver
    least: float = 1e-4

    @property
    def iterates(self):
        return isinstance(self.solver, Iterative)

    @property
    def needs_features(self):
        try:
            self.solver.memory(DenseOperator(np.eye(2)), 1)
        except ValueError:
            return True
        return False

    @property
    def streams(self):
        return self.solver.streams(Linear())

    def with_settings(self, **settings):
        return type(self.solver).from_config({**self.solver.get_config(), **settings})

    @property
    def tight(self):
        """A solver as good as a direct one."""
        return self.with_settings(tolerance=1e-10) if self.iterates else self.solver

    def operator(self, gram):
        """An operator, and its matrix: a solver of features has a little less of it."""
        if not self.needs_features:
            return DenseOperator(gram), gram
        values, vectors = np.linalg.eigh(gram)
        kept = values > 1e-12 * values[-1]
        rows = vectors[:, kept] * np.sqrt(values[kept])  # whose linear kernel it is
        return Linear().operator(rows), rows @ rows.T


CASES = {
    "spectral": Case(Spectral()),
    "cholesky": Case(Cholesky()),
    "primal": Case(Primal()),
    "cg": Case(CG()),
    "cg, not preconditioned": Case(CG(rank=0), least=1.0),
    "nystrom": Case(Nystrom(centres=1000), least=1e-2),
    "eigenpro": Case(EigenPro(), least=1e-2),
}
