"""How often rows count: weights are counts, and equal rows are one row that counts more."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_kare import _validation


def check_sample_weight(sample_weight: Any, rows: int) -> np.ndarray | None:
    """Return how often rows count, `(n,)`; `None` where each counts once.

    Raises:
        ValueError: If they are not numbers, finite and not negative, one a row, or less
            than two are positive, or they sum to a row or less.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight)
    if weights.ndim == 0:
        weights = np.full(rows, weights)
    if weights.dtype.kind not in "fiub" or weights.shape != (rows,):
        raise ValueError(
            "`sample_weight` must be one number a row, how often the row counts; for "
            f"{rows} rows. Received: sample_weight of shape {weights.shape} and type "
            f"{weights.dtype}"
        )
    weights = weights.astype("float64")
    if not np.all(np.isfinite(weights)) or weights.min() < 0.0:
        raise ValueError(
            "`sample_weight` must be finite, and not negative. Received: sample_weight "
            f"from {weights.min()} to {weights.max()}"
        )
    if np.count_nonzero(weights) < 2:
        raise ValueError(
            "`sample_weight` must be positive for at least two rows. Received: "
            f"sample_weight that is zero but for {np.count_nonzero(weights)} of {rows} rows"
        )
    _validation.check_counts_a_row("sample_weight", weights)
    return None if np.all(weights == 1.0) else weights


def merged(
    table: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Merge rows that are equal, with equal targets, into one that counts as often.

    Then a row that counts twice and two equal rows are the same, to the bit, and no row is
    predicted by machines that have seen its copy. Where nothing is to be merged or
    weighted, rows stay in their order; else the order does not depend on that of the rows.

    Args:
        table: `(n, d)`, numbers or objects.
        y: Numbers, `(n, c)`.
        weights: How often each row counts, `(n,)`, or `None` for once.

    Returns:
        Numbers of the rows that stay, `(m,)`, and how often each counts, or `None`.
    """
    rows = np.arange(len(table)) if weights is None else np.flatnonzero(weights)
    keys = np.hstack([_numbers(table)[rows], np.asarray(y, "float64")[rows]]) + 0.0
    keys[np.isnan(keys)] = np.nan  # there are many NaNs
    keys = np.ascontiguousarray(keys)
    whole = keys.view(np.dtype((np.void, keys.itemsize * keys.shape[1])))[:, 0]
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    counts = None if weights is None else weights[rows]
    if counts is not None and np.all(counts == 1.0):
        counts = None
    alone = len(first) == len(rows)
    if len(first) < 2 or (alone and counts is None):
        return rows, counts
    return rows[first], np.bincount(np.ravel(group), weights=counts).astype("float64")


def _numbers(table: np.ndarray) -> np.ndarray:
    """Return numbers in place of objects: equal ones for equal objects of a column."""
    if table.dtype != object:
        return np.asarray(table, "float64")
    codes = np.empty(table.shape)
    for i, column in enumerate(table.T):
        text = np.array([f"{type(value).__name__} {value!r}" for value in column])
        codes[:, i] = np.unique(text, return_inverse=True)[1]
    return codes


def weights_of_classes(
    class_weight: Any, classes: np.ndarray, codes: np.ndarray, weights: np.ndarray | None
) -> np.ndarray | None:
    """Return how often rows count once their classes' weights multiply, `(n,)`.

    Args:
        class_weight: `None`, `"balanced"`, or a dict from labels to weights.
        classes: The labels, `(c,)`.
        codes: Classes of the rows, `(n,)`, from 0.
        weights: How often each row counts, `(n,)`, or `None` for once.

    Raises:
        ValueError: If it is something else, or its weights are no finite numbers, at
            least 0, or all rows count for one, or less.
    """
    if class_weight is None:
        return weights
    counts = np.ones(len(codes)) if weights is None else weights
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = np.bincount(codes, weights=counts, minlength=len(classes))
        factors = np.sum(counts) / (len(classes) * totals)
    else:
        check_class_weight(class_weight)
        factors = np.array([class_weight.get(label, 1.0) for label in classes.tolist()])
        unknown = [label for label in class_weight if label not in classes.tolist()]
        if unknown:
            raise ValueError(
                "`class_weight` must name labels of `y`. Received: "
                f"class_weight for {unknown}, labels {classes.tolist()}"
            )
    counts = np.asarray(counts * factors[codes], "float64")
    _validation.check_counts_a_row("class_weight", counts)
    return counts


def check_class_weight(class_weight: Any) -> None:
    """Refuse what is neither `None`, `"balanced"`, nor a dict of weights.

    Raises:
        ValueError: Then.
    """
    known = class_weight is None or class_weight == "balanced"
    if not known and isinstance(class_weight, dict):
        try:
            values = np.array(list(class_weight.values()), "float64")
        except (TypeError, ValueError):
            values = np.array([np.nan])
        known = bool(np.all(np.isfinite(values)) and np.all(values >= 0.0))
    if not known:
        raise ValueError(
            '`class_weight` must be None, "balanced", or a dict from labels to weights of '
            f"at least 0. Received: class_weight={class_weight!r}"
        )
