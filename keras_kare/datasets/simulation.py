"""The simulated regression of the paper's first figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_kare._validation import check_whole, is_number
from keras_kare.datasets._arguments import check_fraction, check_seed
from keras_kare.datasets.split import Split


def simulation(
    rows: int = 1000,
    features: int = 10,
    gamma: float = 1.0,
    sigma: float = 0.0,
    seed: int = 0,
    train_fraction: float = 0.8,
) -> Split:
    """Make the simulated data of the paper, row for row.

    With standard normal `x`, `w` and `e`, and `u = gamma x·w`, a target is

        y = cos(u) / (1 + exp(u)) + sigma e.

    The draws come from NumPy's legacy `RandomState`, in the authors' order (all `x`, then
    `w`, then all `e`): it alone reproduces the published rows, and NumPy has frozen what
    it draws.

    Args:
        rows: Rows in all, at least 2. Defaults to `1000`.
        features: Columns of `x`. Defaults to `10`.
        gamma: How fast the target varies along `w`. Defaults to `1.0`.
        sigma: Standard deviation of the noise, in training and test rows alike.
            Defaults to `0.0`.
        seed: Of the generator. Defaults to `0`.
        train_fraction: The first `int(train_fraction * rows)` rows are the training
            rows, the others the test rows. Defaults to `0.8`.

    Returns:
        A `Split` in float64: `x` of shape `(n, features)`, `y` of shape `(n, 1)`, and
        the same of the test rows.

    Raises:
        ValueError: If an argument is out of its range, leaves no training or no test
            row, or if `gamma` is so large that `u` overflows.

    Example:

    ```python
    from keras_kare.datasets import simulation

    data = simulation(rows=100, sigma=0.1, seed=3)
    assert data.x.shape == (80, 10) and data.y_test.shape == (20, 1)
    ```

    References:
        arXiv:2505.11347, Figure 1.
    """
    check_whole("rows", rows, 2)
    check_whole("features", features, 1)
    _check_finite_number("gamma", gamma)
    _check_finite_number("sigma", sigma)
    if sigma < 0:
        raise ValueError(f"`sigma` must not be negative. Received: sigma={sigma!r}")
    check_seed(seed)
    check_fraction("train_fraction", train_fraction)
    n = int(train_fraction * rows)
    if n == 0:
        raise ValueError(
            "`train_fraction` must leave at least one training row: take it, or `rows`, "
            f"larger. Received: train_fraction={train_fraction!r}, rows={rows!r}"
        )

    r = np.random.RandomState(seed)
    X = r.randn(rows, features)
    w = r.randn(features, 1)
    # Where exp(u) overflows, the quotient is the right 0; elsewhere every bit stays that
    # of the plain formula.
    with np.errstate(over="ignore", invalid="ignore"):
        noise = r.randn(rows, 1) * sigma
        u = gamma * X @ w
        y = np.cos(u) / (1.0 + np.exp(u)) + noise
    if not np.all(np.isfinite(y)):
        raise ValueError(
            "`gamma` or `sigma` is too large for float64. Received: "
            f"gamma={gamma!r}, sigma={sigma!r}"
        )
    return Split(X[:n], y[:n], X[n:], y[n:])


def _check_finite_number(name: str, value: Any) -> None:
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number. Received: {name}={value!r}")
