"""Probabilities from scores: temperature scaling.

One number is fitted, by which scores are multiplied before a sigmoid (two classes) or a
softmax, so that the most likely class stays the same (Guo, Pleiss, Sun, Weinberger, "On
calibration of modern neural networks", arXiv:1706.04599). Labels are smoothed as by
Platt ("Probabilistic outputs for support vector machines", 1999), which keeps the number
finite where scores separate the classes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

LOG_RANGE = (-5.0, 5.0)
"""Natural logarithms of the smallest and the largest inverse temperature."""


def inverse_temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """Return the factor with the least cross-entropy.

    Args:
        scores: Of rows that did not train, `(m, 1)` for two classes, else `(m, c)`.
        codes: Their classes, `(m,)`, from 0.
    """
    targets = smoothed(codes, max(2, scores.shape[1]))

    def cross_entropy(log_factor: float) -> float:
        log_p = _log_probabilities(np.exp(log_factor) * scores)
        return -float(np.sum(targets * log_p))

    found = minimize_scalar(cross_entropy, bounds=LOG_RANGE, method="bounded")
    return float(np.exp(found.x))


def smoothed(codes: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities `(m, c)`: `(N_k + 1) / (N_k + c)` for a row's class `k`."""
    counts = np.bincount(codes, minlength=classes)[codes][:, None]
    own = np.arange(classes) == codes[:, None]
    return (counts * own + 1.0) / (counts + classes)


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Return `(m, 2)` for scores `(m, 1)`, else `(m, c)`; rows sum to one."""
    if scores.shape[1] == 1:
        return np.hstack([expit(-scores), expit(scores)])
    return np.asarray(softmax(scores, axis=1))


def _log_probabilities(scores: np.ndarray) -> np.ndarray:
    if scores.shape[1] == 1:
        return np.hstack([log_expit(-scores), log_expit(scores)])
    return np.asarray(log_softmax(scores, axis=1))
