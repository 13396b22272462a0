"""From a kernel and rows to the arrays of a kernel machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare.kernels.jacobian import outputs_of
from keras_kare.kernels.kernel import Kernel
from keras_kare.solvers import Solution, Spectral, cholesky

CHUNK = 4096
"""Rows at a time in sums over rows."""


class System:
    """`(K/n + λI) α = y` for some rows, to be solved for any `λ`.

    Rows may count `w_i` times, `N = Σ w` in all: then `W½ K W½/N` and `W½ y` stand in
    for `K/n` and `y` (see `keras_kare.risk`).

    Args:
        gram: `K`, `(n, n)` float64.
        y: `(n, c)` float64.
        weights: `(n,)`, or `None` where each row counts once.

    Attributes:
        gram: `n` times what stands in for `K/n`.
        y: What stands in for `y`.
        count: `N`; `n` where each row counts once.
        root: `w½`, `(n,)`.
        unit: That of a relative ridge, `tr(K)/n²`: with weights, `Σ w_i K_ii/N²`.
    """

    def __init__(self, gram: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None):
        self.gram, self.y, rows = gram, y, len(gram)
        self.count, self.root = float(rows), np.ones(rows)
        if weights is not None:
            self.count = float(np.sum(weights, dtype="float64"))
            self.root = np.sqrt(np.asarray(weights, "float64"))
            self.y = self.root[:, None] * y
            self.gram = gram * self.root * self.root[:, None] * (rows / self.count)
        self.unit = float(np.trace(self.gram)) / (rows * self.count)

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        x: Any,
        y: np.ndarray,
        residual: bool = False,
        weights: np.ndarray | None = None,
    ) -> System:
        """That of the rows `x`; with `residual`, for what the network leaves of `y`.

        Raises:
            ValueError: If the kernel is zero or not finite on `x`, or `residual` does
                not fit.
        """
        targets = machine_targets(kernel, x, y, residual)
        return cls(gram_of(kernel, x), targets, weights)

    @functools.cached_property
    def spectral(self) -> Spectral:
        """The eigendecomposition of `gram`."""
        return Spectral(self.gram)

    def solve(self, ridge: float) -> Solution:
        """At one ridge `λ`."""
        solution = cholesky(self.gram, self.y, ridge)
        return dataclasses.replace(solution, count=self.count)

    def solve_grid(self, ridges: np.ndarray) -> list[Solution]:
        """At several ridges `λ`, from one eigendecomposition."""
        solutions = self.spectral.solve_grid(self.y, ridges)
        return [dataclasses.replace(s, count=self.count) for s in solutions]

    def dual(self, solution: Solution) -> np.ndarray:
        """`α`, `(n, c)`, of the predictor `(1/n) K(x, X) α`."""
        return solution.dual * self.root[:, None] * (len(self.gram) / self.count)


def gram_of(kernel: Kernel, x: Any) -> np.ndarray:
    """The Gram matrix in float64, `(n, n)`, finite and not zero."""
    gram = kernel.gram(x, dtype="float64").numpy()
    if gram.ndim != 2:
        raise ValueError(
            'A head needs a kernel with one value a pair of rows, and `outputs="full"` '
            'has a block. Use `outputs="sum"` or `outputs="trace"`.'
        )
    if not np.all(np.isfinite(gram)):
        raise ValueError(
            "The Gram matrix overflows: the network's gradients on `x` are too "
            "large. Scale the inputs or the weights down."
        )
    if not np.trace(gram) > 0.0:
        raise ValueError(
            "The kernel is zero on all rows of `x`: the network's outputs do not "
            "react to its weights there (dead or saturated units)."
        )
    return gram


def machine_targets(kernel: Kernel, x: Any, y: np.ndarray, residual: bool) -> np.ndarray:
    """What the kernel machine fits: `y`, or what the network leaves of it."""
    y = np.asarray(y, "float64")
    if not residual:
        return y
    f = np.asarray(network_outputs(kernel, x), "float64")
    if f.shape != y.shape:
        raise ValueError(
            "`residual=True` needs as many targets as the network has outputs. "
            f"Received: targets of shape {y.shape}, outputs of shape {f.shape}"
        )
    return y - f


def network_outputs(kernel: Kernel, x: Any) -> tf.Tensor:
    """The outputs of the network that the kernel belongs to, `(n, c)`."""
    network = getattr(kernel, "network", None)
    if network is None:
        raise ValueError(
            "`residual=True` corrects a network, and this kernel has none. Received: "
            f"kernel of type {type(kernel).__name__}"
        )
    return outputs_of(network, x)


def chunks(x: Any) -> Iterator[Any]:
    """A few rows at a time, in order."""
    for begin in range(0, int(keras.tree.flatten(x)[0].shape[0]), CHUNK):
        rows = slice(begin, begin + CHUNK)
        yield keras.tree.map_structure(lambda t, rows=rows: t[rows], x)


def primal_weights(kernel: Kernel, x: Any, dual: np.ndarray) -> list[tf.Tensor]:
    """`w = (1/n) J(X)ᵀ α`, summed in float64 over chunks of rows."""
    n, total = len(dual), None
    for i, part in enumerate(chunks(x)):
        rows = slice(i * CHUNK, (i + 1) * CHUNK)
        w = kernel.vjp(part, dual[rows] / n, dtype="float64")
        total = w if total is None else [a + b for a, b in zip(total, w, strict=True)]
    assert total is not None
    return [
        tf.cast(w, v.dtype) for w, v in zip(total, kernel.trainable_variables, strict=True)
    ]
