"""Inputs and targets of the UCI sets as learners take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_kare._validation import check_whole
from keras_kare.datasets._arguments import extra

SMALL = 100
"""Data sets of fewer rows are scaled by quartiles alone."""


def preprocess(
    x: np.ndarray, x_test: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scale inputs as in the paper, by what training rows alone say.

    Of a data set of 100 rows or more, each column is clipped to the 5th and 95th
    percentile of its training rows, then has their mean subtracted and is divided by
    their standard deviation (both after clipping). A column that is constant then
    becomes 0 in training and in test rows. The authors divide it by 1e-8: the same for
    training rows, but huge for a test row of another value.

    Of a smaller data set, each column has the median of its training rows subtracted and
    is divided by their interquartile range (by 1 where that is 0): scikit-learn's
    `RobustScaler`.

    Args:
        x: Training inputs, `(n, d)`.
        x_test: Test inputs, `(m, d)`.
        rows: Rows of the whole data set, which decide between the two. Defaults to
            `None`: `n + m`.

    Returns:
        Both in float64, of their own shapes.

    Raises:
        ValueError: If an input is not a finite matrix with rows, or the two have other
            columns.
        ImportError: If scikit-learn is not installed, below 100 rows.

    Example:

    ```python
    import numpy as np
    from keras_kare.datasets import preprocess

    x = np.random.default_rng(0).normal(5.0, 2.0, (150, 3))
    x, x_test = preprocess(x[:100], x[100:])
    assert abs(x.mean()) < 1e-12 and abs(x.std() - 1.0) < 1e-12
    ```

    References:
        arXiv:2505.11347.
    """
    x, x_test = matrices(x, x_test)
    check_whole("rows", rows, 1, optional=True)
    if (len(x) + len(x_test) if rows is None else rows) < SMALL:
        sklearn = extra("sklearn.preprocessing", "scikit-learn", "sklearn", "preprocess")
        scaler = sklearn.RobustScaler().fit(x)
        return scaler.transform(x), scaler.transform(x_test)
    low, high = np.percentile(x, [5.0, 95.0], axis=0)
    x, x_test = np.clip(x, low, high), np.clip(x_test, low, high)
    # Told by the bounds: the computed deviation of equal numbers may be a rounding error.
    return standardized(x, x_test, constant=low == high)


def standardized(
    x: np.ndarray, x_test: np.ndarray, constant: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both with zero mean and unit variance in the training rows.

    Args:
        x: Training inputs, `(n, d)`.
        x_test: Test inputs, `(m, d)`.
        constant: Which columns are constant, `(d,)`: they become 0 in both.
    """
    mean, deviation = x.mean(axis=0), np.where(constant, 1.0, x.std(axis=0))
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    x[:, constant], x_test[:, constant] = 0.0, 0.0
    return x, x_test


def signed_one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return targets in {-1, 1} for a squared loss.

    Args:
        labels: Classes, whole numbers from 0, `(n,)`.
        classes: How many classes there are, at least 2.

    Returns:
        Float64, `(n, 1)` of two classes: 1 for class 1, -1 for class 0. Otherwise
        `(n, classes)`: 1 in the column of the row's class, -1 elsewhere.

    Raises:
        ValueError: If `labels` are not whole numbers in one dimension, or out of range.

    Example:

    ```python
    from keras_kare.datasets import signed_one_hot

    assert signed_one_hot([0, 1], 2).tolist() == [[-1.0], [1.0]]
    assert signed_one_hot([1], 3).tolist() == [[-1.0, 1.0, -1.0]]
    ```
    """
    labels = checked_labels(labels, classes)
    if classes == 2:
        return np.where(labels == 1, 1.0, -1.0)[:, None]
    return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)


def matrices(x: Any, x_test: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two finite matrices of the same columns in float64, or refuse them."""
    x, x_test = _matrix("x", x), _matrix("x_test", x_test)
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(
            "`x` and `x_test` must have the same columns. Received: x of shape "
            f"{x.shape}, x_test of shape {x_test.shape}"
        )
    return x, x_test


def checked_labels(labels: Any, classes: int) -> np.ndarray:
    """Return whole numbers from 0 to `classes - 1`, `(n,)`, or refuse them."""
    check_whole("classes", classes, 2)
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be whole numbers in one dimension. Received: labels of shape "
            f"{labels.shape} and dtype {labels.dtype}"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"`labels` must be from 0 to {classes - 1}, for classes={classes}. Received: "
            f"labels from {labels.min()} to {labels.max()}"
        )
    return labels


def _matrix(name: str, value: Any) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim != 2 or 0 in value.shape or value.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must be a matrix of numbers, one row an example. Received: {name} "
            f"of shape {value.shape} and dtype {value.dtype}"
        )
    value = value.astype("float64")
    if not np.all(np.isfinite(value)):
        raise ValueError(
            f"`{name}` holds NaN or Inf. Remove or impute those entries. Received: {name} "
            f"of shape {value.shape}"
        )
    return value
