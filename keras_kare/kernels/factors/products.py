"""Kernel values from the factors of all groups at once."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_kare.kernels.factors.factor import Factor
from keras_kare.kernels.factors.full import FullFactor

SMALL = 2048
"""Written-out gradients of at most this many numbers a row are multiplied together."""


def gram_of(factors: Sequence[Factor]) -> tf.Tensor:
    """Return the sum of all `gram()`s, `(n, n)`."""
    small, rest = _split(factors)
    parts = [factor.gram() for factor in rest]
    if small:
        parts.append(_side_by_side(small).gram())
    return tf.add_n(parts)


def cross_of(factors: Sequence[Factor], others: Sequence[Factor]) -> tf.Tensor:
    """Return the sum of all `cross`es, `(n, n')`."""
    (small, rest), (small2, rest2) = _split(factors), _split(others)
    parts = [f.cross(g) for f, g in zip(rest, rest2, strict=True)]
    if small:
        parts.append(_side_by_side(small).cross(_side_by_side(small2)))
    return tf.add_n(parts)


def _split(factors: Sequence[Factor]) -> tuple[list[FullFactor], list[Factor]]:
    """Split off small written-out factors, whose products are one product."""
    small: list[FullFactor] = []
    rest: list[Factor] = []
    for factor in factors:
        condensed = factor.condensed()
        if isinstance(condensed, FullFactor) and condensed.cost().row_numbers <= SMALL:
            small.append(condensed)
        else:
            rest.append(condensed)
    return small, rest


def _side_by_side(factors: list[FullFactor]) -> FullFactor:
    if len(factors) == 1:
        return factors[0]
    return FullFactor(tf.concat([factor.j for factor in factors], axis=2))
