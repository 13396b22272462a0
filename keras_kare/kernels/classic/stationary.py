"""Kernels of distances in a metric: exact, or by random Fourier features."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kare.kernels.classic.random_features import RandomFeatures


class Stationary(RandomFeatures):
    """A kernel of the distance of mapped rows, or random features that stand for it.

    A subclass defines `_exact`, and `_spectrum` where frequencies come from.

    With `features=p`, the kernel is that of a finite map of mapped rows, `φ(x) = √(2/p)
    [cos(W x), sin(W x)]`, whose `p/2` frequencies `W` are drawn once from the exact
    kernel's spectral measure. Heads then have a primal form, whose work a row does not
    grow with the number of training rows. Values are off by about `p^(−1/2)`, which
    `features_error` measures; of those values everything is exact: gradients, both forms,
    files. The metric trains, `W` does not.

    Frequencies of the Laplace kernel, and of `nu=0.5`, have no variance. Values of their
    features come near the kernel's, but derivatives by the metric do not, however many:
    train the exact kernel first.

    Args:
        scale: Length that distances are divided by, a positive number; or `"median"`: the
            median distance of the different rows that the kernel first sees, each counted
            once (`sample_weight` does not matter, but that rows of weight 0 are not there).
        metric: What trains: `"isotropic"`: one scale; `"diagonal"`: one for each column;
            `"full"`: a matrix `F`, `(d, d)`, so that distances are those of `x F / scale`
            (Mahalanobis' with `M = F Fᵀ / scale²`). It begins with the identity.
        features: How many random features stand for the kernel, an even number. Defaults
            to `None`: the kernel is exact.
        seed: Of their frequencies. Defaults to `0`.
        memory_limit, name: As in `ClosedForm`.

    Attributes:
        log_scale: The variable `log(scale)`: `()`, or `(d,)` with `metric="diagonal"`.
        factor: The variable `F` with `metric="full"`, else `None`.
        frequencies: `W`, `(d, p/2)`, with `features`, else `None`.

    References:
        - Rahimi, Recht, "Random features for large-scale kernel machines", NIPS 2007.
    """

    def _diagonal(self, a: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(a[:, 0])


def of_squares(value: Any, slope: Any) -> Any:
    """Make a function of squared distances, whose derivative is given.

    Args:
        value: Takes squared distances `s`.
        slope: Takes `s` and the values, and returns the derivative by `s`, finite at 0.
    """

    @tf.custom_gradient
    def function(s: tf.Tensor) -> tuple[tf.Tensor, Any]:
        values = value(s)
        return values, lambda upstream: upstream * slope(s, values)

    return function
