"""Gated ReLU networks of two layers, trained to the optimum as kernel machines."""

from __future__ import annotations

import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare.mkl import intake
from keras_kare.mkl.group_lasso import GroupLasso
from keras_kare.mkl.masks import MaskedRows, different, masked_sum, open_rows
from keras_kare.mkl.network import gated_network
from keras_kare.mkl.rules import RULES, Weighed


class GatedReLU:
    """A gated ReLU network of two layers, as a kernel machine with learned weights.

    The network computes `f(x) = Σ_i 1{x·g_i >= 0} x·w_i` with gates `g_i` that stay as they
    are. On the training rows `X` each gate is a mask, a diagonal `D_i` of zeros and ones.
    With weight decay, training is a convex program, the group lasso

        minimise  ½ |Σ_i D_i X w_i − y|² + β Σ_i |w_i|,

    and that is kernel ridge regression with the kernel `K = Σ_i η_i K_i`,
    `K_i = D_i X Xᵀ D_i`, and ridge `β`, at the best weights `η`. `weights` says which are
    taken:

    - `"optimal"`: those of the group lasso, to the relative duality gap `tolerance`. Many
      are zero.
    - `"ntk"`: those of the neural tangent kernel of the network, whose gates all count
      alike: the share of gates that have the mask. They know nothing of `y`.
    - `"kare"`: positive ones that have a low KARE, at the ridge `z = β/n`, found by
      gradient descent on their logarithms from those of the NTK. KARE is not convex in
      them. Of weights that it has chosen it no longer estimates the test error: with as
      many gates as rows it falls to nearly nothing, and the test error rises. Take few
      gates (a tenth of the rows), or few steps (`max_iterations=3`).

    There is no constant in the network: add a column of ones to `x` for one.

    Args:
        gates: How many random gates to draw, each from N(0, I), or gates, `(p, d)`. Of
            gates that open on the same training rows the first is kept, and those that open
            on none are left out. Defaults to `100`.
        regularization: `β`, a positive number. Defaults to `0.01`.
        weights: `"optimal"`, `"ntk"` or `"kare"`. Defaults to `"optimal"`.
        tolerance: Duality gap, as a share of the objective, that is small enough; for
            `"optimal"` only. Defaults to `1e-8`.
        max_iterations: Steps after which to stop; with a warning, if that leaves a wider
            gap than `tolerance`. Defaults to `500`.
        random_state: Seed of the random gates, or a `np.random.Generator`. Defaults to
            `None`.

    Attributes:
        gates_: Gates that were kept, `(q, d)`.
        weights_: `η`, `(q,)`.
        coefficients_: `w_i`, `(q, d, c)`; `(q, d)` for `y` of one dimension.
        report: Of the fit: `objective`, that of the group lasso, whatever the rule; `gap`,
            by how much at most it exceeds the minimum; `relative_gap`, as a share of it;
            `active`, how many `w_i` are not zero; `iterations`, `seconds` and `converged`.
            For `"kare"` also `kare`, and `kare_of_ntk`, from which it came.

    Everything is computed in float64, with `n x n` matrices: for up to some thousand rows.
    Fitting with `"optimal"` takes a few tens of steps, each a solve of `n x n` and a solve
    of as many equations as there are weights above zero.

    `to_keras` makes a Keras model of it, to save as a `.keras` file and to serve; with its
    report and its kernel it is kept by pickle.

    Raises:
        ValueError: If an argument is out of range; in `fit` and `predict`, if arrays do not
            fit, or hold NaN or Inf; in `fit`, if no gate opens on any row.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = np.maximum(x[:, 0], 0.0) - x[:, 1]
    machine = kk.mkl.GatedReLU(gates=50, regularization=0.1, random_state=0).fit(x, y)
    machine.predict(x)  # (60,)
    machine.report["relative_gap"]  # below 1e-8
    network = machine.to_keras()  # to save, to export, to train further
    ```

    References:
        - Dwaraknath, Ergen, Pilanci, "Fixing the NTK: From neural network linearizations to
          exact convex programs", arXiv:2309.15096.
        - Mishkin, Sahiner, Pilanci, "Fast convex optimization for two-layer ReLU networks",
          arXiv:2202.01331.
    """

    gates_: np.ndarray
    weights_: np.ndarray
    coefficients_: np.ndarray
    report: dict[str, Any]

    def __init__(
        self,
        gates: Any = 100,
        regularization: float = 1e-2,
        weights: str = "optimal",
        tolerance: float = 1e-8,
        max_iterations: int = 500,
        random_state: Any = None,
    ):
        intake.check_gates(gates)
        _validation.check_positive("regularization", regularization)
        _validation.check_option("weights", weights, tuple(RULES))
        _validation.check_positive("tolerance", tolerance)
        _validation.check_whole("max_iterations", max_iterations, 1)
        intake.check_random_state(random_state)
        self.gates, self.regularization, self.weights = gates, regularization, weights
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.random_state = random_state

    def fit(self, x: Any, y: Any) -> GatedReLU:
        """Find the weights and the coefficients of training rows.

        Args:
            x: `(n, d)`.
            y: Targets, `(n,)` or `(n, c)`. Several share their weights: `|w_i|` is the norm
                of all entries of `w_i`, `(d, c)`.

        Returns:
            Itself.
        """
        began = time.perf_counter()
        x = intake.rows("x", x)
        y, flat = intake.targets("y", y, len(x))
        intake.check_size("x", x)
        intake.check_size("y", y)
        if self.weights == "kare" and len(x) < 2:
            raise ValueError(
                f"KARE needs at least two rows. Received: x of shape {x.shape}"
            )
        gates, counts = different(x, self._gates_for(x.shape[1]))
        if not len(gates):
            raise ValueError(
                "No gate opens on a row of `x` that is not zero: pass other gates. "
                f"Received: gates={self.gates!r}, x of shape {x.shape}"
            )
        problem = GroupLasso(MaskedRows(x, open_rows(x, gates)), y, self.regularization)
        found = self._found(problem, counts / counts.sum())
        coefficients = found.point.coefficients
        self.gates_, self.weights_ = gates, found.point.weights
        self.coefficients_ = coefficients[:, :, 0] if flat else coefficients
        self.report = _report(found, time.perf_counter() - began)
        if found.missed:
            warnings.warn(
                f"GatedReLU stopped after {found.iterations} iterations: "
                f"{found.missed}. Raise `max_iterations`, or `tolerance`; where "
                "rounding is the reason, a larger `regularization` helps.",
                RuntimeWarning,
                stacklevel=2,
            )
        return self

    def predict(self, x: Any) -> np.ndarray:
        """Return what the network computes, `(n,)` or `(n, c)` as `y` was.

        Args:
            x: `(n, d)`.
        """
        x = self._fitted_rows(x)
        gates, coefficients = self._network()
        values = masked_sum(x, open_rows(x, gates), coefficients)
        return values[:, 0] if self.coefficients_.ndim == 2 else values

    def to_keras(self, dtype: str | None = None) -> keras.Model:
        """Return the network as a Keras model, `(n, d)` to `(n, c)`.

        It has layers of Keras alone, `gates`, which do not train, and `coefficients`, of
        the gates whose weights are not zero: files of it, and SavedModels that it exports,
        need no keras_kare.

        Args:
            dtype: What it computes in, `"float32"` or `"float64"`. In float32 a gate may
                open on a row that it nearly touches, or close, and outputs jump where
                gates do. In float64 `network(x)` is `predict(x)` to rounding, and
                `network.predict` feeds rows in Keras' `floatx`, whatever the network
                computes in. Defaults to `floatx`.
        """
        dtype = dtype or keras.config.floatx()
        _validation.check_option("dtype", dtype, ("float32", "float64"))
        self._check_fitted()
        return gated_network(*self._network(), dtype)

    def gram(self, x: Any) -> np.ndarray:
        """Return the weighted kernel `Σ_i η_i D_i X Xᵀ D_i` of rows, `(n, n)`.

        Args:
            x: `(n, d)`, the training rows or others.
        """
        x = self._fitted_rows(x)
        return MaskedRows(x, open_rows(x, self.gates_)).kernel(self.weights_)

    def _found(self, problem: GroupLasso, ntk: np.ndarray) -> Weighed:
        """Return what the rule finds, of numbers.

        Raises:
            ValueError: If rounding or overflow leaves none.
        """
        error: Exception | None = None
        try:
            with np.errstate(all="ignore"):
                found = RULES[self.weights](
                    problem, ntk, self.tolerance, self.max_iterations
                )
            certificate = found.certificate
            numbers = (certificate.objective, certificate.gap, found.point.coefficients)
            if all(np.all(np.isfinite(each)) for each in numbers):
                return found
        except (ValueError, np.linalg.LinAlgError, tf.errors.InvalidArgumentError) as fault:
            error = fault
        x, y = (np.max(np.abs(part)) for part in (problem.rows.x, problem.y))
        raise ValueError(
            "`regularization` is too small, or too large, for the sizes of `x` and `y`: "
            "float64 holds no weights for it. Scale `x` and `y` to about one, and take one "
            f"near 0.01. Received: regularization={self.regularization!r}, x with an entry "
            f"of size {x:.3g}, y with one of size {y:.3g}"
        ) from error

    def _gates_for(self, columns: int) -> np.ndarray:
        """Return the gates, `(p, columns)`."""
        if _validation.is_whole(self.gates):
            rng = np.random.default_rng(self.random_state)
            return rng.normal(size=(int(self.gates), columns))
        gates = np.asarray(self.gates, "float64")
        if gates.shape[1] != columns:
            raise ValueError(
                "`gates` must have the columns of `x`. Received: gates of shape "
                f"{gates.shape}, x of {columns} columns"
            )
        return gates

    def _network(self) -> tuple[np.ndarray, np.ndarray]:
        """Return gates, `(q, d)`, and coefficients, `(q, d, c)`, of weights above zero.

        Where there are none, the first gate stands for all, with coefficients of zero.
        """
        coefficients = self.coefficients_.reshape(*self.gates_.shape, -1)
        kept = self.weights_ > 0.0
        kept[0] |= not np.any(kept)
        return self.gates_[kept], coefficients[kept]

    def _check_fitted(self) -> None:
        if not hasattr(self, "gates_"):
            raise ValueError("This GatedReLU is not fitted yet: call `fit(x, y)` first.")

    def _fitted_rows(self, x: Any) -> np.ndarray:
        """Return rows of as many columns as those of the fit."""
        self._check_fitted()
        x = intake.rows("x", x)
        if x.shape[1] != self.gates_.shape[1]:
            raise ValueError(
                f"`x` must have {self.gates_.shape[1]} columns, as in `fit`. "
                f"Received: x of shape {x.shape}"
            )
        return x


def _report(found: Weighed, seconds: float) -> dict[str, Any]:
    """Return what a rule found, as lines of the report."""
    certificate = found.certificate
    return {
        "objective": certificate.objective,
        "gap": certificate.gap,
        "relative_gap": certificate.relative_gap,
        "active": certificate.active,
        "iterations": found.iterations,
        "converged": found.converged,
        "seconds": seconds,
        **found.more,
    }
