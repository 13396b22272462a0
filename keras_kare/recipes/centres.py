"""Machines on a few rows as centres: the Nyström approximation, for every ridge at once.

With the centres `Z` of `m` rows and `K_ZZ = U diag(u) Uᵀ`, the features
`φ(x) = k(x, Z) U u^(-½)` span what the centres do. `G = Φᵀ W Φ/N` of the rows has the
eigenvalues `g`, and in its eigenvectors' coordinates each ridge costs a division:
`w = (Φᵀ W y/N)/(g + λ)`, `ŷ(x) = φ(x) w`. Of a Gaussian process of the same kernel
that is the mean, when what the centres do not span is counted as unknown. Its variance is
`K(x, x) − |φ|² + λ Σ φ²/(g + λ)`, and that of noise `Nλ` (the "deterministic training
conditional").

References:
    - Williams, Seeger, "Using the Nyström method to speed up kernel machines".
    - Rudi, Carratino, Rosasco, "FALKON: an optimal large scale kernel method",
      arXiv:1705.10958.
    - Quiñonero-Candela, Rasmussen, "A unifying view of sparse approximate Gaussian process
      regression", JMLR 2005, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_kare import _linalg, _rows
from keras_kare.recipes.ensemble import CHUNK_VALUES, NO_GRAM, Ensemble
from keras_kare.recipes.mixtures import Kernels
from keras_kare.recipes.workbench import Workbench

NEGLIGIBLE = 1e-9
"""Eigenvalues of `K_ZZ` below this share of the largest are rounding, in float32."""

BLOCK = 512
"""Columns of a sum that are added to at a time: only half of it is computed."""


class Sums:
    """Sums over rows of what machines on centres are solved from, in float64.

    Args:
        centres: Number `m`.
        columns: Number `c` of targets.

    Attributes:
        gram: `K_ZX W K_XZ`, `(m, m)`; of its upper triangle nothing is known.
        right: `K_ZX W y`, `(m, c)`.
        trace: `Σ w_i K(x_i, x_i)`.
        count: `N = Σ w`.
    """

    def __init__(self, centres: int, columns: int):
        self.gram = np.zeros((centres, centres))
        self.right = np.zeros((centres, columns))
        self.trace = self.count = 0.0

    def add(
        self,
        cross: np.ndarray,
        y: np.ndarray,
        weights: np.ndarray | None,
        prior: np.ndarray,
    ) -> None:
        """Add rows: `K(x, Z)`, `(k, m)`; targets, `(k, c)`; counts; `K(x, x)`, `(k,)`."""
        weights = np.ones(len(y)) if weights is None else np.asarray(weights, "float64")
        root = np.sqrt(weights)[:, None]
        cross = root * np.asarray(cross, "float64")
        for begin in range(0, len(self.gram), BLOCK):
            part = slice(begin, begin + BLOCK)
            self.gram[begin:, part] += cross[:, begin:].T @ cross[:, part]
        self.right += cross.T @ (root * y)
        self.trace += float(weights @ prior)
        self.count += float(np.sum(weights))


@dataclass(frozen=True)
class Whitened:
    """What one machine is solved from, at any ridge.

    Attributes:
        transform: From `k(x, Z)` to features in which `G` is diagonal, `(m, q)`.
        eigenvalues: `g`, `(q,)`.
        right: `Φᵀ W y/N`, `(q, c)`.
        unit: The unit of relative ridges, `tr(W K)/N²`.
        count: `N`.
        kernel_error: The share of `tr(W K)` that the centres do not span.
    """

    transform: np.ndarray
    eigenvalues: np.ndarray
    right: np.ndarray
    unit: float
    count: float
    kernel_error: float

    def coefficients(self, ridge: float) -> np.ndarray:
        """Return `w`, `(q, c)`, of the predictor `φ(x) w`, at a relative ridge."""
        return self.right / (self.eigenvalues + ridge * self.unit)[:, None]

    def dual(self, ridge: float) -> np.ndarray:
        """Return `α`, `(m, c)`, of the predictor `(1/m) k(x, Z) α`."""
        return len(self.transform) * (self.transform @ self.coefficients(ridge))

    def variance(self, phi: np.ndarray, prior: np.ndarray, ridge: float) -> np.ndarray:
        """Return variances with noise in units of `s²`, `(k,)`, of `φ` and `K(x, x)`."""
        absolute = ridge * self.unit
        squares = phi**2
        unspanned = np.maximum(prior - np.sum(squares, axis=1), 0.0)
        known = squares @ (absolute / (self.eigenvalues + absolute))
        return np.asarray(unspanned + known + self.count * absolute)


def whitened(gram: np.ndarray, sums: Sums) -> Whitened:
    """Return what a machine is solved from.

    Args:
        gram: `K_ZZ`, `(m, m)`.
        sums: Over the rows.
    """
    values, vectors = _linalg.eigh(0.5 * (gram + gram.T))
    kept = values > NEGLIGIBLE * values[-1]
    transform = vectors[:, kept] / np.sqrt(values[kept])
    lower = np.tril(sums.gram)
    full = lower + np.tril(lower, -1).T
    inner = transform.T @ (full @ transform) / sums.count
    eigenvalues, rotation = _linalg.eigh(0.5 * (inner + inner.T))
    eigenvalues = np.maximum(eigenvalues, 0.0)
    transform = transform @ rotation
    return Whitened(
        transform=transform,
        eigenvalues=eigenvalues,
        right=transform.T @ sums.right / sums.count,
        unit=sums.trace / sums.count**2,
        count=sums.count,
        kernel_error=max(0.0, 1.0 - float(np.sum(eigenvalues)) * sums.count / sums.trace),
    )


class CentredEnsemble(Ensemble):
    """Kernel machines on the same centres, whose predictions are averaged.

    Args:
        anchors: The centres, `(m, d)`.
        rough, states, machines, weights: As for `Ensemble`.

    Attributes:
        solved: What each machine was solved from.
    """

    solved: list[Whitened]

    @property
    def chunk(self) -> int:
        """How many rows are looked at a time."""
        return max(64, CHUNK_VALUES // (4 * len(self.anchors)))

    def unit_variance(self, bench: Workbench, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        parts = []
        for rows in _rows.slices(x, self.chunk):
            found = self.kernels(bench, rows, self.keys)
            each = []
            for solved, key in zip(self.solved, self.keys, strict=True):
                _, cross, prior = found[key]
                each.append(solved.variance(cross @ solved.transform, prior, key.ridge))
            parts.append(np.mean(each, axis=0))
        return np.concatenate(parts)

    def _smooth(self, bench: Workbench, steps: int, x: np.ndarray) -> Kernels:
        networks = self.states[steps]
        cross, prior = np.zeros((len(x), len(self.anchors))), np.zeros(len(x))
        for weights, unit in networks:
            bench.network.set_weights(weights)
            cross += bench.narrow_cross(x, self.anchors) / (unit * len(networks))
            prior += bench.diag(x) / (unit * len(networks))
        return Kernels(NO_GRAM, cross, prior)
