"""The factorised system that risks are read off, and gradients in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_kare._linalg import (
    NO_BLOCKS,
    by_halves,
    climbed,
    inverse_of,
    plain_factor,
    succeeded,
)
from keras_kare._traced_once import Rescued
from keras_kare.risk.given import Counted, checked, counted

FLOAT64_BELOW = 1e-5
"""Below this fraction of `tr(K)/n`, a float32 ridge is factorised in float64."""

OVERFLOW = (
    "overflows: `y`, `gram` or 1/`ridge` is too large for its type. Scale targets and "
    "kernel to about one, or use float64. Its value"
)


class Regression(NamedTuple):
    """The factorised system `A = K/n + zI`, from which every risk is read off.

    With an intercept, `P` stands in for `A⁻¹` everywhere.

    Attributes:
        system: `y` and `K`, in which rows count once.
        ridge: `z`.
        a: `A⁻¹y`, `(n, c)`.
        b: `A⁻¹A⁻¹y`, `(n, c)`.
        inverse: `A⁻¹`, `(n, n)`.
    """

    system: Counted
    ridge: tf.Tensor
    a: tf.Tensor
    b: tf.Tensor
    inverse: tf.Tensor


def regress(
    y: Any, gram: Any, ridge: Any, sample_weight: Any = None, intercept: bool = False
) -> Regression:
    """Check what was given, which is what `kare` is given, and factorise it.

    The result is a constant to automatic differentiation; `kare_of` and
    `leave_one_out_of` supply the gradients.
    """
    y, gram, ridge = checked(y, gram, ridge)
    system = counted(y, gram, sample_weight)
    constant = system.constant if intercept else None
    return Regression(system, ridge, *factorised(system.y, system.gram, ridge, constant))


def factorised(
    y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, constant: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return `a`, `b` and `A⁻¹`, by one Cholesky, one triangular inverse, one product.

    Args:
        y: `(n, c)`.
        gram: `(n, n)`.
        ridge: `z`.
        constant: `ρ`, `(n, 1)`, for an intercept.
    """
    given = (y, gram, ridge) if constant is None else (y, gram, ridge, constant)
    known = gram.shape[0]
    small = known is not None and known <= NO_BLOCKS
    regression = _small_regression if small else _regression
    a, b, inverse = regression(*(tf.stop_gradient(t) for t in given))
    for found, like in ((a, y), (b, y), (inverse, gram)):
        found.set_shape(like.shape)  # which graphs do not know
    return a, b, inverse


def in_closed_form(
    value: tf.Tensor,
    gradients: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    *arguments: tf.Tensor,
) -> tf.Tensor:
    """Return a value with gradients of its own, which refuse to be differentiated.

    What is factorised is a constant to differentiation, so a second derivative would be
    wrong in silence.

    Args:
        value: The value.
        gradients: Takes the upstream of the value; returns that of each argument.
        arguments: What the value is a function of.
    """

    @tf.custom_gradient
    def held(*given: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return _final(*gradients(upstream), *given)[: len(given)]

        return tf.identity(value), gradient

    return held(*arguments)


@tf.custom_gradient
def _final(*values: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Any]:
    """Return the values, which refuse to be differentiated by each other."""

    def refuse(*upstream: tf.Tensor) -> Any:
        raise NotImplementedError(
            "KARE and leave-one-out have no second derivative here. Take finite "
            "differences of their gradients instead."
        )

    return tuple(tf.identity(v) for v in values), refuse


def mean_of(y: tf.Tensor, constant: tf.Tensor) -> tf.Tensor:
    """Return the mean of each target, `(1, c)`: of `y/ρ`, where rows count `ρ²` times."""
    total = tf.matmul(constant, y, transpose_a=True)
    return total / tf.reduce_sum(tf.square(constant))


def _in_own_type(factor: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., Any]:
    def regression(
        y: tf.Tensor, gram: tf.Tensor, ridge: tf.Tensor, *constant: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Solve; say where it failed, or where the ridge is too small for float32."""
        lower = factor(_system(gram, ridge))
        fine = succeeded(lower) & ~_needs_float64(gram, ridge)
        return fine, *_solved(lower, y, *constant)

    return regression


def _in_float64(*given: tf.Tensor) -> list[tf.Tensor]:
    """Solve in float64, with jitter where rounding has made the matrix indefinite."""
    _, gram, ridge, *_ = given
    y, wide, z, *constant = (tf.cast(t, tf.float64) for t in given)
    rounded = tf.float64 if _needs_float64(gram, ridge) else gram.dtype
    lower, _ = climbed(_system(wide, z), first=0, of=rounded)
    return [tf.cast(t, gram.dtype) for t in _solved(lower, y, *constant)]


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
    """Return `a`, `b` and `A⁻¹`, from the inverse factor of `A`."""
    inverse = inverse_of(lower)
    if constant is not None:
        y = y - constant * mean_of(y, constant)  # P y is the same, with less rounding
        u = tf.matmul(inverse, constant)
        along = u / tf.reduce_sum(constant * u)
        inverse -= tf.matmul(along, u, transpose_b=True)  # P
    a = tf.matmul(inverse, y)
    return a, tf.matmul(inverse, a), inverse
