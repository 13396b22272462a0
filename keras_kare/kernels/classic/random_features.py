"""Random Fourier features: a finite map that stands for a kernel, and how far it is off."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.kernels.classic.metric import Metric
from keras_kare.kernels.classic.spectra import Spectrum


class RandomFeatures(Metric):
    """A kernel in a metric, exact or by random features; a subclass defines both.

    Args:
        scale, metric, features, seed: As in `Stationary`.
        memory_limit, name: As in `ClosedForm`.

    Attributes:
        log_scale, factor, frequencies: As in `Stationary`.
    """

    def __init__(
        self,
        scale: float | str = "median",
        metric: str = "isotropic",
        features: int | None = None,
        seed: int = 0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        check_features(features, seed)
        super().__init__(scale, metric, memory_limit, name, **kwargs)
        self.features = None if features is None else int(features)
        self.seed = int(seed)
        self.has_features = features is not None
        self.frequencies: Any = None

    @abc.abstractmethod
    def _exact(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        """Return the exact kernel of mapped rows, `(n1, n2)`; `None` for the same rows."""

    @abc.abstractmethod
    def _spectrum(self) -> Spectrum:
        """Return what draws frequencies of the kernel of mapped rows."""

    def _make_variables(self, columns: int) -> None:
        super()._make_variables(columns)
        if self.features is None:
            return
        rng, count = np.random.default_rng(self.seed), self.features // 2
        drawn = self._spectrum()(rng, columns, count)
        self.frequencies = self.add_weight(
            shape=drawn.shape,
            initializer=lambda shape, dtype: tf.cast(drawn, dtype),
            trainable=False,
            name="frequencies",
        )

    def _values(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        if self.features is None:
            middle = tf.stop_gradient(tf.reduce_mean(a, axis=0))  # of rows as they are
            a, b = a - middle, None if b is None else b - middle
            return self._exact(self._mapped(a), None if b is None else self._mapped(b))
        left = self._phi(self._mapped(a))
        right = left if b is None else self._phi(self._mapped(b))
        return tf.matmul(left, right, transpose_b=True)

    def _phi(self, a: tf.Tensor) -> tf.Tensor:
        """Return `√(2/p) [cos(a W), sin(a W)]` of mapped rows, `(n, p)`."""
        w = tf.cast(tf.convert_to_tensor(self.frequencies), a.dtype)
        count = tf.cast(tf.shape(w)[1], a.dtype)
        return tf.concat([tf.cos(a @ w), tf.sin(a @ w)], axis=1) / tf.sqrt(count)

    def vjp(self, x: Any, v: Any, dtype: str | None = None) -> list[tf.Tensor]:
        if self.features is None:
            return super().vjp(x, v, dtype)
        phi = self._phi(self._mapped(self._rows("x", x, dtype)))
        return [tf.matmul(tf.cast(v, phi.dtype), phi, transpose_a=True)]

    def jvp(self, x: Any, w: list[tf.Tensor]) -> tf.Tensor:
        if self.features is None:
            return super().jvp(x, w)
        weights = tf.convert_to_tensor(w[0])
        phi = self._phi(self._mapped(self._rows("x", x, weights.dtype.name)))
        return tf.matmul(phi, weights, transpose_b=True)

    def prediction_cost(self, anchors: int, targets: int) -> dict[str, float]:
        if self.features is None:
            return super().prediction_cost(anchors, targets)
        mapped = self.features // 2 * (self.columns or 1)
        dual = mapped + anchors * (self.features + targets)
        return {"dual": float(dual), "primal": float(mapped + self.features * targets)}

    def features_error(self, x: Any) -> dict[str, float]:
        """Measure how far the features' Gram matrix is from that of the exact kernel.

        Args:
            x: `(n, d)`.

        Returns:
            `"root_mean_square"` and `"largest"` absolute difference of their `n²` values,
            where the kernel of a row with itself is 1. In float64, in tiles.

        Raises:
            ValueError: If the kernel has no `features`.

        Example:

        ```python
        kernel = kk.kernels.Gaussian(scale=2.0, features=1024)
        kernel.features_error(x)["root_mean_square"]  # some hundredths
        ```
        """
        if self.features is None:
            raise ValueError(
                "This kernel is exact: `features_error` is of one with `features`. "
                f"Received: features={self.features!r}"
            )
        a = self._rows("x", x, "float64")
        total = largest = 0.0
        for rows in _rows.slices(a, self._step(a, a) or len(a)):
            exact = self._exact(self._mapped(rows), self._mapped(a))
            apart = np.abs(self._values(rows, a) - exact)
            total, largest = total + np.sum(apart**2), max(largest, np.max(apart))
        return {
            "root_mean_square": float(np.sqrt(total) / len(a)),
            "largest": float(largest),
        }

    def get_config(self) -> dict[str, Any]:
        own = {"features": self.features, "seed": self.seed}
        return {**super().get_config(), **own}


def check_features(features: Any, seed: Any) -> None:
    """Refuse what is neither an even number of features nor none, and seeds likewise."""
    whole = _validation.is_whole(features) and features > 0 and features % 2 == 0
    if features is not None and not whole:
        raise ValueError(
            "`features` must be an even whole number above 0, as many cosines as sines, "
            f"or None for the exact kernel. Received: features={features!r}"
        )
    _validation.check_whole("seed", seed, 0)
