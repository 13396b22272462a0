"""Rows under masks: which rows each gate opens, and the kernels of the masked rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MaskedRows:
    """Rows `X`, and masks `D_i` that keep some of them and set the others to zero.

    Args:
        x: `X`, `(n, d)`.
        masks: The diagonals of `D_i`, zeros and ones, `(p, n)`.
    """

    x: np.ndarray
    masks: np.ndarray

    @functools.cached_property
    def products(self) -> np.ndarray:
        """`X Xᵀ`, `(n, n)`."""
        return self.x @ self.x.T

    def kernel(self, weights: np.ndarray) -> np.ndarray:
        """Return `Σ_i η_i D_i X Xᵀ D_i`, `(n, n)`, of weights `(p,)`.

        The masks are diagonal, so that it is `X Xᵀ` times `Σ_i η_i m_i m_iᵀ`, entry by
        entry: no kernel of a single mask is ever formed.
        """
        kept = weights > 0.0
        masks = self.masks[kept]
        return self.products * ((masks.T * weights[kept]) @ masks)

    def slopes(self, values: np.ndarray) -> np.ndarray:
        """Return `(D_i X)ᵀ v` of each mask, `(p, d, c)`, of values `(n, c)`."""
        columns = [(self.masks * column) @ self.x for column in values.T]
        return np.stack(columns, axis=-1)

    def values(self, coefficients: np.ndarray) -> np.ndarray:
        """Return `Σ_i D_i X w_i`, `(n, c)`, of coefficients `(p, d, c)`."""
        kept = np.any(coefficients != 0.0, axis=(1, 2))
        return masked_sum(self.x, self.masks[kept], coefficients[kept])

    def each(self, coefficients: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Return `D_i X w_i` of the masks that are kept, `(n, c, number of them)`."""
        parts = np.tensordot(self.x, coefficients[kept], axes=(1, 1))  # (n, kept, c)
        parts *= self.masks[kept].T[:, :, None]
        return np.swapaxes(parts, 1, 2)


def masked_sum(x: np.ndarray, masks: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return `Σ_i D_i X w_i`, `(n, c)`: what a gated network computes.

    Args:
        x: `X`, `(n, d)`.
        masks: The diagonals of `D_i`, `(p, n)`.
        coefficients: `w_i`, `(p, d, c)`.
    """
    columns = [
        np.sum((x @ coefficients[:, :, c].T) * masks.T, axis=1)
        for c in range(coefficients.shape[2])
    ]
    return np.stack(columns, axis=1)


def open_rows(x: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Return the diagonals of the masks of gates, `1{x·g >= 0}`, `(p, n)` of floats."""
    return (gates @ x.T >= 0.0).astype("float64")


def different(x: np.ndarray, gates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first gate of each mask on these rows, and how many gates have it.

    Gates that open on none of the rows are left out: their kernels are zero.

    Args:
        x: `(n, d)`.
        gates: `(p, d)`.

    Returns:
        Gates, `(q, d)`, in the order in which they were given, and counts, `(q,)`.
    """
    masks = gates @ x.T >= 0.0
    given = np.flatnonzero(np.any(masks & np.any(x != 0.0, axis=1), axis=1))
    packed = np.packbits(masks[given], axis=1)
    _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return gates[given[first[order]]], counts[order]
