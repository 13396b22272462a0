"""KARE of all rows and its gradient: checks, and the choice of the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.kernel import Kernel
from keras_kare.kernels.operator import KernelOperator
from keras_kare.risk.stochastic.estimate import Estimate
from keras_kare.risk.stochastic.exact import Exact, fits
from keras_kare.risk.stochastic.probes import Probed
from keras_kare.solvers import CG, Solver, System

METHODS = ("auto", "primal", "stochastic")

MOST_FEATURES = 4096
"""By default, the `F x F` matrix of the primal form is not larger than that."""


@dataclass(frozen=True)
class Way:
    """The way in which KARE of all rows is found; `kare` explains the arguments.

    Raises:
        ValueError: If an argument is out of its range.
    """

    probes: int = 16
    seed: int = 0
    method: str = "auto"
    solver: Solver | None = None

    def __post_init__(self) -> None:
        _validation.check_whole("probes", self.probes, 2)
        _validation.check_whole("seed", self.seed, 0)
        _validation.check_option("method", self.method, METHODS)
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise ValueError(
                "`solver` must be a solver of `keras_kare.solvers`, or None. "
                f"Received: solver={self.solver!r}"
            )

    def go(self, system: System, ridge: float) -> Exact | Probed:
        """Solve for KARE, exactly or by probes.

        Raises:
            ValueError: If the kernel has no small feature map for `"primal"`.
        """
        operator = system.operator
        if self.method == "primal" and not fits(operator, operator.rows):
            raise ValueError(
                '`method="primal"` needs a kernel whose feature map has at most as many '
                'numbers as there are rows; use `method="stochastic"`. Received: '
                f"{operator.features} features, {operator.rows} rows"
            )
        small = self.method == "auto" and fits(operator, MOST_FEATURES)
        if small or self.method == "primal":
            return Exact(system, ridge)
        return Probed(system, ridge, self.probes, self.seed, self.solver or CG())


def kare(
    operator: KernelOperator | System,
    y: Any,
    ridge: float,
    probes: int = 16,
    seed: int = 0,
    method: str = "auto",
    solver: Solver | None = None,
    intercept: bool = False,
) -> Estimate:
    """Return KARE of all rows of an operator; no Gram matrix is formed.

    Args:
        operator: `K`, `(n, n)`, by its products: `kernel.operator(x)`. Or a
            `kk.solvers.System`, which brings its targets, and whose rows may have weights.
        y: Targets, `(n,)` or `(n, c)`; `None` with a `System`.
        ridge: The ridge `z`, a positive number, in the units of `K/n`.
        probes: `p`, at least 2. The standard error falls as `1/√p`: it is at most about
            `2 √(2 d/p)/(n − d)` of the value, for `d` degrees of freedom. Each probe costs
            as much as a column of targets. Defaults to `16`.
        seed: Of the probes. Defaults to `0`.
        method: `"stochastic"`, `"primal"` (exact; for a feature map of at most `n`
            numbers), or `"auto"`: primal where it has at most 4,096, too. Defaults to
            `"auto"`.
        solver: Of the block system; `"primal"` needs none. Defaults to
            `kk.solvers.CG()`.
        intercept: Whether the machine has a constant, as in `kk.risk.kare`; a `System`
            says so itself. Defaults to `False`.

    Returns:
        An `Estimate`. Its error has a random part, of which `standard_error` tells; a
        bias of order `1/p²`, mostly far smaller (see `probes.py`); and a part of the
        solver's: relative to KARE, at most about `2 residual |y|/(z |a|)`.

    Raises:
        ValueError: If shapes do not fit, there is one row, the ridge is not positive,
            `y` holds NaN or Inf, or the kernel has no small feature map for `"primal"`.
        MemoryError: Before the work, if it does not fit.

    Example:

    ```python
    import keras, numpy as np
    import keras_kare as kk

    x = np.random.default_rng(0).normal(size=(500, 4)).astype("float32")
    y = np.sin(x[:, :1])
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(256, "gelu"), keras.layers.Dense(1)]
    )
    found = kk.stochastic.kare(kk.kernels.NTK(network).operator(x), y, ridge=0.1)
    found.value, found.standard_error
    ```

    References:
        - Hutchinson, "A stochastic estimator of the trace of the influence matrix for
          Laplacian smoothing splines".
        - Girard, "A fast 'Monte-Carlo cross-validation' procedure for large least
          squares problems with noisy data".
    """
    _validation.check_positive("ridge", ridge)
    way = Way(probes, seed, method, solver)
    solved = way.go(_system(operator, y, intercept), float(ridge))
    return solved.estimate.require_finite().warn_if_rough()


def kare_and_gradient(
    kernel: Kernel,
    x: Any,
    y: Any,
    ridge: float,
    probes: int = 16,
    seed: int = 0,
    method: str = "auto",
    solver: Solver | None = None,
    relative: bool = False,
    intercept: bool = False,
) -> tuple[Estimate, list[tf.Tensor]]:
    """Return KARE of all rows, and its gradient by the kernel's trainable variables.

    The gradient is that of exactly this estimate, with these probes. Its mean over seeds
    is the gradient of the estimate's mean: that of KARE, up to order `1/p²`. One gradient
    is noisier than its value: with `p` probes it was about `1.1/√p` of its length off,
    wherever that was measured, whatever `n`.

    Args:
        kernel: A kernel with a finite feature map, such as `kk.kernels.NTK`.
        x: Rows, `(n, ...)`.
        y: Targets, `(n,)` or `(n, c)`.
        ridge: The ridge `z`; or, where `relative`, `z` in units of `tr(K)/n²`.
        probes, seed, method, solver: Those of `kare`. The gradient takes a second solution,
            for `c` columns, with the preconditioner of the first.
        relative: Whether `z = ridge * tr(K)/n²`, whose dependence on the kernel then is
            part of the gradient. Defaults to `False`.
        intercept: Whether the machine has a constant. Defaults to `False`.

    Returns:
        An `Estimate`, and one tensor a trainable variable of the kernel.

    Raises:
        TypeError: If `kernel` is no kernel.
        ValueError: If `kare` refuses the same, or the kernel has no finite feature map.
        MemoryError: Before the work, if it does not fit.

    Example:

    ```python
    kernel = kk.kernels.NTK(network)
    found, gradients = kk.stochastic.kare_and_gradient(kernel, x, y, ridge=0.1)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply_gradients(zip(gradients, kernel.trainable_variables))
    ```
    """
    way = Way(probes, seed, method, solver)
    found, gradients = found_with_gradient(kernel, x, y, ridge, way, relative, intercept)
    return found.warn_if_rough(), gradients


def found_with_gradient(
    kernel: Kernel,
    x: Any,
    y: Any,
    ridge: float,
    way: Way,
    relative: bool = False,
    intercept: bool = False,
) -> tuple[Estimate, list[tf.Tensor]]:
    """Return what `kare_and_gradient` does, to those who warn themselves."""
    _validation.check_positive("ridge", ridge)
    if not isinstance(kernel, Kernel):
        raise TypeError(
            "`kernel` must be a kernel of `keras_kare.kernels`. "
            f"Received: kernel={kernel!r} of type {type(kernel).__name__}"
        )
    if not kernel.has_features:
        raise ValueError(
            "`kernel` must have a finite feature map, by which the gradient is formed "
            '(an `NTK` with `outputs="sum"` or `outputs="trace"` has one). '
            f"Received: kernel of type {type(kernel).__name__}"
        )
    system = _system(kernel.operator(x), y, intercept)
    z, slope = float(ridge), 0.0
    if relative:
        z, slope = float(ridge) * system.unit, float(ridge) / system.rows**2
    solved = way.go(system, z)
    solved.estimate.require_finite()
    gradients = solved.gradients(kernel, slope)
    return solved.estimate, gradients


def _system(operator: Any, y: Any, intercept: bool) -> System:
    """Return the system to be solved, of a kernel that is neither zero nor infinite."""
    if isinstance(operator, System):
        if y is not None:
            raise ValueError(
                "`y` must be None with a `System`, which brings its targets. "
                f"Received: y of type {type(y).__name__}"
            )
        if intercept and not operator.intercept:
            raise ValueError(
                "`intercept` must be said to the `System`. Received: intercept=True, with "
                "a `System` without an intercept"
            )
        system = operator
    elif isinstance(operator, KernelOperator):
        system = System(operator, y, intercept=intercept)
    else:
        raise ValueError(
            "`operator` must be `kernel.operator(x)` or a `kk.solvers.System`. "
            f"Received: operator of type {type(operator).__name__}"
        )
    if system.rows < 2:
        raise ValueError(
            "KARE needs at least two rows: one row says nothing about others. "
            f"Received: {system.rows} row"
        )
    _ = system.unit
    return system
