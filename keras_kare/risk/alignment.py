"""KARE, the kernel alignment risk estimator, which is GCV, and its gradient."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kare._linalg import square_of
from keras_kare._sentences import sentence
from keras_kare.risk.regression import OVERFLOW, Regression, in_closed_form, regress

_OVERFLOW = sentence(f"KARE {OVERFLOW}")

_TOO_LITTLE = sentence(
    "The weights sum to less than the degrees of freedom of the kernel machine, so that "
    "KARE is not defined: `sample_weight` says how often a row counts. Give larger "
    "weights, or a larger ridge. Received: (1/N) tr A⁻¹ ="
)


def kare(
    y: Any, gram: Any, ridge: Any, sample_weight: Any = None, intercept: bool = False
) -> tf.Tensor:
    """Return KARE, the kernel alignment risk estimator, of a kernel ridge regression.

    `KARE(y, K, z) = (1/n) yᵀ(K/n + zI)⁻²y / ((1/n) tr (K/n + zI)⁻¹)²`, averaged over
    the columns of `y`. It estimates the *test* mean squared error of the kernel
    machine from training rows alone, for a kernel that was not chosen with their
    help. It equals generalised cross-validation (GCV) of kernel ridge regression
    with ridge `n z`.

    Args:
        y: Targets, `(n,)` or `(n, c)`.
        gram: Symmetric positive semi-definite matrix, `(n, n)`.
        ridge: The ridge `z`, a positive scalar, in the units of `K/n`.
        sample_weight: How often each row counts, `(n,)`, non-negative. The result is
            that of repeating rows so often: `n` becomes the sum of the weights, so
            that their scale matters. Defaults to once each.
        intercept: Whether the machine has a constant beside it, which no ridge holds
            back. Then KARE does not depend on the mean of `y`. Defaults to `False`.

    Returns:
        A scalar tensor of the type of `gram` (float32 at least), in the units of `y²`.
        Its gradients with respect to `y`, `gram` and `ridge` are closed forms; there is
        no second derivative (asking for one raises an error). In float32 with a ridge below
        1e-5 of `tr(K)/n` the factorisation runs in float64.

    Raises:
        ValueError: If shapes do not fit, there is one row, the ridge is not positive,
            a weight is negative, or an argument holds NaN or Inf.
        tf.errors.InvalidArgumentError: If the weights sum to less than the degrees of
            freedom of the machine (as rows that count little may).

    Example:

    ```python
    import numpy as np
    import keras_kare as kk

    x = np.random.default_rng(0).normal(size=(20, 3))
    y = np.sin(x[:, :1])
    gram = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))
    kk.risk.kare(y, gram, ridge=0.01)
    ```

    References:
        - Schwab et al., arXiv:2505.11347, equation of KARE.
        - Jacot et al., "Kernel alignment risk estimator", arXiv:2006.09796.
    """
    risk = kare_of(regress(y, gram, ridge, sample_weight, intercept))
    return tf.debugging.check_numerics(risk, _OVERFLOW)


def kare_of(solved: Regression) -> tf.Tensor:
    """Return KARE of a factorised system, whose rows count `N` times together.

    `∂KARE/∂K = (1/n) [−(1/(N c t²)) Σ_k (a_k b_kᵀ + b_k a_kᵀ) + (2 s/(N t³)) A⁻²]`,
    `∂KARE/∂z` is n times its trace, and `2 s (N − n)/(N t³ z²)`;
    `∂KARE/∂y = 2 b/(N c t²)`.
    """
    (y, gram, total, _), ridge, a, b, inverse = solved
    rows = tf.cast(tf.shape(gram)[0], gram.dtype)
    count = rows if total is None else total
    c = tf.cast(tf.shape(y)[1], gram.dtype)
    s = tf.reduce_sum(tf.square(a)) / (count * c)
    t = tf.linalg.trace(inverse) / count
    if total is not None:
        t = _positive(t + (count - rows) / (count * ridge))

    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Factors go to the thin arrays: each pass over an n x n one takes its time.
        scale = upstream / (count * c * t**2)
        twice_ab = tf.matmul(
            tf.concat([a, b], axis=1) * (scale / rows),
            tf.concat([b, a], axis=1),
            transpose_b=True,
        )
        by_t = 2.0 * upstream * s / (count * t**3)
        by_gram = (by_t / rows) * square_of(inverse) - twice_ab
        by_ridge = rows * tf.linalg.trace(by_gram) + by_t * (count - rows) / ridge**2
        return 2.0 * scale * b, by_gram, by_ridge

    return in_closed_form(s / t**2, gradients, y, gram, ridge)


def _positive(t: tf.Tensor) -> tf.Tensor:
    """Refuse weights under which the machine has more freedom than rows count for."""
    check = tf.debugging.Assert(t > 0, [_TOO_LITTLE, tf.strings.as_string(t)])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(t)
