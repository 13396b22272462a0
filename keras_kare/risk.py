"""What is minimised: KARE, and leave-one-out, with closed-form gradients.

Notation of the formulas, for a Gram matrix `K` of `n` rows, targets `y` of `c`
columns, and a ridge `z`:

    A = K/n + zI,   a = A⁻¹y,   b = A⁻¹a,   t = tr(A⁻¹)/n,   s = |a|²/(n c).

Rows may count `w_i` times each, `N = Σ w` in all. With `E` the `N x n` matrix that
repeats rows, `E K Eᵀ/N + zI` has the eigenvalues of `W½ K W½/N + zI` and `z` another
`N − n` times, and repeated targets live in the range of `E`. So the same formulas hold
with `W½ K W½`, `W½ y`, `A = W½ K W½/N + zI` and

    t = (tr(A⁻¹) + (N − n)/z)/N,   s = |a|²/(N c),

for any `w >= 0`, whole numbers or not, at the cost of `n` rows.

An intercept is a constant `b` beside the machine that no ridge holds back:
`A α + ρ b = W½ y`, `ρᵀα = 0`, with `ρ = w½` (ones without weights). With `u = A⁻¹ρ`,

    P = A⁻¹ − u uᵀ/(ρᵀu)

then stands in for `A⁻¹` in every formula: `α = P W½ y`, and `∂P = −P ∂A P` as
`∂A⁻¹ = −A⁻¹ ∂A A⁻¹`. KARE is GCV still, with the constant as one more degree of freedom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_kare import _validation
from keras_kare._linalg import (
    NO_BLOCKS,
    by_halves,
    climbed,
    inverse_of,
    plain_factor,
    square_of,
    succeeded,
)
from keras_kare._traced_once import Rescued

FLOAT64_BELOW = 1e-5
"""Below this fraction of `tr(K)/n`, a float32 ridge is factorised in float64."""


_OVERFLOW = (
    "overflows: `y`, `gram` or 1/`ridge` is too large for its type. Scale targets and "
    "kernel to about one, or use float64. Its value"
)


class Regression(NamedTuple):
    """The factorised system `A = K/n + zI`, from which every risk is read off.

    Attributes:
        a: `A⁻¹y`, `(n, c)`.
        b: `A⁻¹A⁻¹y`, `(n, c)`.
        inverse: `A⁻¹`, `(n, n)`; with an intercept, `P`, here and above.
    """

    a: tf.Tensor
    b: tf.Tensor
    inverse: tf.Tensor


def kare(
    y: Any, gram: Any, ridge: Any, sample_weight: Any = None, intercept: bool = False
) -> tf.Tensor:
    """KARE, the kernel alignment risk estimator, of a kernel ridge regression.

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
    y, gram, ridge = checked(y, gram, ridge)
    system = counted(y, gram, sample_weight)
    y, gram, count, _ = system
    solved = regress(y, gram, ridge, system.constant if intercept else None)
    risk = kare_of(y, gram, ridge, solved, count)
    return tf.debugging.check_numerics(risk, f"KARE {_OVERFLOW}")


def leave_one_out(
    y: Any, gram: Any, ridge: Any, sample_weight: Any = None, intercept: bool = False
) -> tf.Tensor:
    """For each row, the prediction of the kernel machine fitted without that row.

    The ridge `n z` of the system `K + n z I` is held fixed when a row is left out.
    The residual of row `i` is `a_i / (A⁻¹)_ii`.

    Args:
        y: Targets, `(n,)` or `(n, c)`.
        gram: Symmetric positive semi-definite matrix, `(n, n)`.
        ridge: The ridge `z`, a positive scalar, in the units of `K/n`.
        sample_weight: As in `kare`. A row is left out with all that it counts for.
        intercept: As in `kare`. Defaults to `False`.

    Returns:
        Predictions, `(n, c)`, of the type of `gram`, differentiable in closed form.

    Raises:
        ValueError: As `kare`.

    Example:

    ```python
    gram = kk.kernels.NTK(network).gram(x)
    error = y - kk.risk.leave_one_out(y, gram, ridge=0.01)
    ```
    """
    y, gram, ridge = checked(y, gram, ridge)
    system = counted(y, gram, sample_weight)
    y, gram, _, root = system
    solved = regress(y, gram, ridge, system.constant if intercept else None)
    predictions = leave_one_out_of(y, gram, ridge, solved) / root
    return tf.debugging.check_numerics(predictions, f"Leave-one-out {_OVERFLOW}")


def regress(
    y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, constant: tf.Tensor | None = None
) -> Regression:
    """Factorise once: one Cholesky, one triangular inverse, one product.

    The result is a constant to automatic differentiation; `kare_of` and
    `leave_one_out_of` supply the gradients.

    Args:
        y: `(n, c)`.
        gram: `(n, n)`.
        ridge: `z`.
        constant: `ρ`, `(n, 1)`, for an intercept.
    """
    y, gram, ridge = (tf.stop_gradient(t) for t in (y, gram, ridge))
    given = (y, gram, ridge) if constant is None else (y, gram, ridge, constant)
    known = gram.shape[0]
    small = known is not None and known <= NO_BLOCKS
    a, b, inverse = (_small_regression if small else _regression)(*given)
    if not tf.executing_eagerly():
        a.set_shape(y.shape)
        b.set_shape(y.shape)
        inverse.set_shape(gram.shape)
    return Regression(a, b, inverse)


def _in_own_type(factor: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., Any]:
    def regression(
        y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, constant: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        """`a`, `b` and `A⁻¹`; not where the ridge is too small for float32."""
        lower = factor(_system(gram, ridge))
        fine = succeeded(lower) & ~_needs_float64(gram, ridge)
        return fine, *_solved(lower, y, constant)

    return regression


def _in_float64(
    y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, constant: tf.Tensor | None = None
) -> list[tf.Tensor]:
    """The same, with jitter where rounding has made the matrix indefinite."""
    given = (y, gram, ridge) if constant is None else (y, gram, ridge, constant)
    y, wide, ridge, *rest = (tf.cast(t, tf.float64) for t in given)
    rounded = tf.float64 if _needs_float64(gram, given[2]) else gram.dtype
    lower, _ = climbed(_system(wide, ridge), first=0, of=rounded)
    return [tf.cast(t, gram.dtype) for t in _solved(lower, y, *rest)]


_regression = Rescued(_in_own_type(by_halves), _in_float64)
_small_regression = Rescued(_in_own_type(plain_factor), _in_float64)


def _needs_float64(gram: tf.Tensor, ridge: tf.Tensor) -> tf.Tensor:
    if gram.dtype == tf.float64:
        return tf.constant(False)
    return ridge < FLOAT64_BELOW * tf.reduce_mean(tf.linalg.diag_part(gram))


def _system(gram: tf.Tensor, ridge: tf.Tensor) -> tf.Tensor:
    system = gram / tf.cast(tf.shape(gram)[0], gram.dtype)
    return tf.linalg.set_diag(system, tf.linalg.diag_part(system) + ridge)


def _solved(
    lower: tf.Tensor, y: tf.Tensor, constant: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`a`, `b` and `A⁻¹` of the inverse factor of `A`."""
    inverse = inverse_of(lower)
    if constant is not None:
        y = y - constant * mean_of(y, constant)  # P y is the same, with less rounding
        inverse = _less_constant(inverse, constant)
    a = tf.matmul(inverse, y)
    return a, tf.matmul(inverse, a), inverse


def mean_of(y: tf.Tensor, constant: tf.Tensor) -> tf.Tensor:
    """The mean of each target, `(1, c)`: of `y/ρ`, where rows count `ρ²` times."""
    total = tf.matmul(constant, y, transpose_a=True)
    return total / tf.reduce_sum(tf.square(constant))


def _less_constant(inverse: tf.Tensor, constant: tf.Tensor) -> tf.Tensor:
    """`P = A⁻¹ − u uᵀ/(ρᵀu)`, `u = A⁻¹ρ`."""
    u = tf.matmul(inverse, constant)
    return inverse - tf.matmul(u / tf.reduce_sum(constant * u), u, transpose_b=True)


def kare_of(
    y: tf.Tensor,
    gram: tf.Tensor,
    ridge: tf.Tensor,
    solved: Regression,
    count: tf.Tensor | None = None,
) -> tf.Tensor:
    """KARE of a factorised system, whose rows count `N` times together.

    `∂KARE/∂K = (1/n) [−(1/(N c t²)) Σ_k (a_k b_kᵀ + b_k a_kᵀ) + (2 s/(N t³)) A⁻²]`,
    `∂KARE/∂z` is n times its trace, and `2 s (N − n)/(N t³ z²)`;
    `∂KARE/∂y = 2 b/(N c t²)`.
    """
    a, b, inverse = solved
    rows = tf.cast(tf.shape(gram)[0], gram.dtype)
    weighted, count = count is not None, rows if count is None else count

    @tf.custom_gradient
    def value(y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor) -> tuple[tf.Tensor, Any]:
        c = tf.cast(tf.shape(y)[1], gram.dtype)
        s = tf.reduce_sum(tf.square(a)) / (count * c)
        t = tf.linalg.trace(inverse) / count
        if weighted:
            t = _positive(t + (count - rows) / (count * ridge))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
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
            gradients = (2.0 * scale * b, by_gram, by_ridge)
            return _final(gradients, (y, gram, ridge))

        return s / t**2, gradient

    return value(y, gram, ridge)


def predict(
    y: tf.Tensor,
    gram: tf.Tensor,
    ridge: tf.Tensor,
    cross: tf.Tensor,
    intercept: bool = False,
) -> tf.Tensor:
    """`(1/n) K(x, X) (K/n + zI)⁻¹ y` for other rows `x`, `(m, c)`, differentiable.

    For an upstream `u` by `a = A⁻¹y`, with `v = A⁻¹u`: the gradient by the system is
    `−(v aᵀ + a vᵀ)/2`, by `y` it is `v`. An intercept is the mean of `y − K a/n`.

    Args:
        y: `(n, c)`.
        gram: `(n, n)`.
        ridge: `z`.
        cross: `K(x, X)`, `(m, n)`.
        intercept: Whether there is a constant.
    """
    n = tf.cast(tf.shape(gram)[0], gram.dtype)
    ones = tf.ones_like(gram[:, :1]) if intercept else None
    a, _, inverse = regress(y, gram, ridge, ones)

    @tf.custom_gradient
    def solution(y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            v = tf.matmul(inverse, u)
            by_gram = tf.matmul(
                tf.concat([v, a], axis=1), tf.concat([a, v], axis=1), transpose_b=True
            ) * (-0.5 / n)
            gradients = (v, by_gram, -tf.reduce_sum(v * a))
            return _final(gradients, (y, gram, ridge))

        return tf.identity(a), gradient

    dual = solution(y, gram, ridge)
    outputs = tf.matmul(cross, dual) / n
    if ones is None:
        return outputs
    centre = tf.stop_gradient(mean_of(y, ones))  # float32 has few digits beyond it
    left = y - centre - tf.matmul(gram, dual) / n
    return outputs + tf.reduce_mean(left, axis=0) + centre


def leave_one_out_of(
    y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, solved: Regression
) -> tf.Tensor:
    """Leave-one-out predictions of a factorised system, `y_i − a_i / (A⁻¹)_ii`.

    With `D = diag(A⁻¹)`, upstream `u`, `v = u/D`, `w_i = Σ_k u_ik a_ik / D_i²`, the
    gradient by the system is `Σ_k (A⁻¹v_k) a_kᵀ − A⁻¹ diag(w) A⁻¹`, symmetrised.
    """
    a, _, inverse = solved

    @tf.custom_gradient
    def value(y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor) -> tuple[tf.Tensor, Any]:
        diagonal = tf.linalg.diag_part(inverse)[:, None]

        def gradient(u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            n = tf.cast(tf.shape(gram)[0], gram.dtype)
            v = tf.matmul(inverse, u / diagonal)
            w = tf.reduce_sum(u * a, axis=1, keepdims=True) / tf.square(diagonal)
            va = tf.matmul(v, a, transpose_b=True)
            by_system = 0.5 * (va + tf.transpose(va)) - tf.matmul(inverse, w * inverse)
            gradients = (u - v, by_system / n, tf.linalg.trace(by_system))
            return _final(gradients, (y, gram, ridge))

        return y - a / diagonal, gradient

    return value(y, gram, ridge)


class Counted(NamedTuple):
    """Rows that count `w_i` times, as a system whose rows count once.

    Attributes:
        y: `W½ y`, `(n, c)`.
        gram: `W½ K W½ n/N`, so that dividing by `n` gives `W½ K W½/N`.
        total: `N`, the sum of the weights; `None` where each row counts once.
        root: `w½`, `(n, 1)`, by which predictions of this system are divided.
    """

    y: tf.Tensor
    gram: tf.Tensor
    total: tf.Tensor | None
    root: Any

    @property
    def constant(self) -> tf.Tensor:
        """`ρ`, `(n, 1)`: what an intercept adds to each target of this system."""
        return self.root * tf.ones_like(self.gram[:, :1])


def counted(y: tf.Tensor, gram: tf.Tensor, sample_weight: Any) -> Counted:
    """The system of rows that count `sample_weight` times.

    A weight of zero becomes one of the rounding unit, which lets the row be predicted
    without a formula of its own.
    """
    if sample_weight is None:
        return Counted(y, gram, None, 1.0)
    weights = _weights(sample_weight, gram)
    least = np.finfo(gram.dtype.as_numpy_dtype).eps * tf.reduce_mean(weights)
    weights = tf.maximum(weights, least)
    root, count = tf.sqrt(weights)[:, None], tf.reduce_sum(weights)
    rows = tf.cast(tf.shape(gram)[0], gram.dtype)
    return Counted(y * root, gram * root * tf.transpose(root) * (rows / count), count, root)


def _weights(sample_weight: Any, gram: tf.Tensor) -> tf.Tensor:
    if tf.executing_eagerly():
        rows = gram.shape[0]
        sample_weight = _validation.check_weights("sample_weight", sample_weight, rows)
    return tf.reshape(tf.cast(sample_weight, gram.dtype), (-1,))


def _positive(t: tf.Tensor) -> tf.Tensor:
    """Refuse weights under which the machine has more freedom than rows count for."""
    check = tf.debugging.Assert(
        t > 0,
        [
            "The weights sum to less than the degrees of freedom of the kernel machine, so "
            "that KARE is not defined: `sample_weight` says how often a row counts. Give "
            "larger weights, or a larger ridge. Received: (1/N) tr A⁻¹ =",
            t,
        ],
    )
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(t)


def _final(
    gradients: tuple[tf.Tensor, ...], arguments: tuple[tf.Tensor, ...]
) -> tuple[tf.Tensor, ...]:
    """Gradients that refuse to be differentiated by the arguments they stem from.

    `regress` is a constant to differentiation, so a second derivative would be
    wrong in silence.
    """

    @tf.custom_gradient
    def keep(*values: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Any]:
        def refuse(*upstream: tf.Tensor) -> Any:
            raise NotImplementedError(
                "KARE and leave-one-out have no second derivative here. Take finite "
                "differences of their gradients instead."
            )

        return tuple(tf.identity(v) for v in values[: len(gradients)]), refuse

    return tuple(keep(*gradients, *arguments))


def checked(y: Any, gram: Any, ridge: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Tensors of one type and fitting shapes; values are checked outside of graphs."""
    gram = _tensor("gram", gram)
    if not gram.dtype.is_floating:
        raise ValueError(
            f"`gram` must hold floats. Received: gram of dtype {gram.dtype.name}"
        )
    if gram.dtype.size < 4:  # no factorisations in half precision
        gram = tf.cast(gram, tf.float32)
    if gram.shape.rank != 2 or not gram.shape[:1].is_compatible_with(gram.shape[1:]):
        raise ValueError(
            "`gram` must be a square matrix, the kernel between all rows. "
            f"Received: gram of shape {tuple(gram.shape)}"
        )
    if gram.shape[0] is not None and gram.shape[0] < 2:
        raise ValueError(
            "`gram` must have at least two rows: one row says nothing about others. "
            f"Received: gram of shape {tuple(gram.shape)}"
        )
    y = _columns(y, gram)
    _validation.check_ridge_value("ridge", ridge)
    # A Python number must not pass through float32 on its way to float64.
    ridge = (
        tf.cast(ridge, gram.dtype) if tf.is_tensor(ridge) else _scalar(ridge, gram.dtype)
    )
    if tf.executing_eagerly():
        _validation.check_finite("y", y)
        _validation.check_finite("gram", gram)
        _refuse_asymmetric(gram)
        return y, gram, ridge
    y = tf.debugging.check_numerics(y, "`y` holds NaN or Inf")
    positive = tf.debugging.Assert(
        tf.math.is_finite(ridge) & (ridge > 0),
        ["`ridge` must be a positive finite number. Received: ridge=", ridge],
    )
    with tf.control_dependencies([positive]):
        return y, gram, tf.identity(ridge)


def _refuse_asymmetric(gram: tf.Tensor) -> None:
    """A kernel between different rows, for one, is no Gram matrix."""
    off = tf.reduce_max(tf.abs(gram - tf.transpose(gram)))
    if off > 1e-3 * tf.reduce_max(tf.abs(gram)):
        raise ValueError(
            "`gram` must be symmetric: the kernel between all rows and the same rows. "
            f"Received: gram that differs from its transpose by up to {float(off):.1e}"
        )


def _tensor(name: str, value: Any) -> tf.Tensor:
    if not tf.is_tensor(value):
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise ValueError(
                f"`{name}` must hold numbers. Received: {name} of dtype {value.dtype}"
            )
    return tf.convert_to_tensor(value)


def _scalar(value: Any, dtype: tf.DType) -> tf.Tensor:
    return tf.reshape(tf.constant(np.asarray(value, "float64"), dtype), ())


def _columns(y: Any, gram: tf.Tensor) -> tf.Tensor:
    y = _tensor("y", y)
    if y.shape.rank == 0 or not y.shape[:1].is_compatible_with(gram.shape[:1]):
        raise ValueError(
            "`y` must have one row for each row of `gram`. Received: y of shape "
            f"{tuple(y.shape)}, gram of shape {tuple(gram.shape)}"
        )
    if y.shape[1:].num_elements() == 0:
        raise ValueError(f"`y` has no columns. Received: y of shape {tuple(y.shape)}")
    y = tf.cast(y, gram.dtype)
    return y if y.shape.rank == 2 else tf.reshape(y, (tf.shape(gram)[0], -1))
