"""Kernels in a metric: lengths of columns that train, and where they come from."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kare import _rows, _validation
from keras_kare.kernels.classic.closed_form import ClosedForm

METRICS = ("isotropic", "diagonal", "full")

LEAST = 1e-12
"""The least share of a metric's mean diagonal that a column has."""

ROUNDING = 1e-5
"""Share of the largest eigenvalue of a metric that is rounding, of float32 too."""

MEDIAN_ROWS = 1000
"""Most rows whose distances `scale="median"` is the median of."""


class Metric(ClosedForm):
    """A kernel of rows in a metric that trains.

    Args:
        scale, metric: As in `Stationary`.
        memory_limit, name: As in `ClosedForm`.

    Attributes:
        log_scale, factor: As in `Stationary`.
    """

    _distance_of_scipy = "euclidean"

    def __init__(
        self,
        scale: float | str = "median",
        metric: str = "isotropic",
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_positive("scale", scale, "median")
        _validation.check_option("metric", metric, METRICS)
        super().__init__(memory_limit=memory_limit, name=name, **kwargs)
        self.scale, self.metric = scale, metric
        self.log_scale: Any = None
        self.factor: Any = None

    def _make_variables(self, columns: int) -> None:
        start = np.nan if self.scale == "median" else np.log(self.scale)
        self.log_scale = self.add_weight(
            shape=(columns,) if self.metric == "diagonal" else (),
            initializer=keras.initializers.Constant(start),
            name="log_scale",
        )
        if self.metric == "full":
            self.factor = self.add_weight(
                shape=(columns, columns),
                initializer=keras.initializers.Identity(),
                name="factor",
            )

    @property
    def _adapted(self) -> bool:
        if self.scale != "median" or not self.built:
            return self.scale != "median"
        with tf.init_scope():
            return bool(np.all(np.isfinite(self.log_scale.numpy())))

    def _adapt(self, x: np.ndarray) -> None:
        if self.scale != "median":
            return
        x = distinct(x)
        relative = np.zeros(self.log_scale.shape)
        if self._adapted:  # the metric stays
            now = self.log_scale.numpy().astype("float64")
            relative = now + 0.5 * np.log(np.mean(np.exp(-2.0 * now)))
        if self.factor is not None:
            x = x @ self.factor.numpy().astype("float64")
        self.log_scale.assign(relative + np.log(self._median(x * np.exp(-relative))))

    def set_metric(self, matrix: Any) -> None:
        """Measure distances by `(x − x')ᵀ M (x − x')`, as in recursive feature machines.

        `M` is divided by its mean diagonal, and the root mean square of inverse lengths
        stays. Of a diagonal metric, its diagonal counts. `adapt(x)` finds the median
        distance, which `scale="median"` is, anew.

        Args:
            matrix: `M`, `(d, d)`, symmetric positive semi-definite: `model.agop(x)`.

        Raises:
            ValueError: If the metric is isotropic, the kernel has seen no rows, or `M` is
                something else, or zero.
        """
        if self.metric == "isotropic" or not self.built:
            raise ValueError(
                '`set_metric` needs a kernel with `metric="diagonal"` or "full" that has '
                f"seen rows. Received: metric={self.metric!r}, built={self.built}"
            )
        m, d = np.asarray(matrix, "float64"), self.columns
        symmetric = m.shape == (d, d) and np.allclose(m, m.T, atol=1e-8 * np.abs(m).max())
        if not (symmetric and np.all(np.isfinite(m)) and np.trace(m) > 0.0):
            raise ValueError(
                f"`matrix` must be symmetric, finite, not zero, and of shape ({d}, {d}). "
                f"Received: matrix of shape {m.shape}, and trace "
                f"{np.trace(m) if m.ndim == 2 else None}"
            )
        values, vectors = np.linalg.eigh(m)
        if values[0] < -ROUNDING * values[-1]:
            raise ValueError(
                "`matrix` must be positive semi-definite: distances are not negative. "
                f"Received: matrix with eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}"
            )
        m = m / np.mean(np.diag(m))
        if self.metric == "full":
            roots = np.sqrt(np.maximum(values / np.mean(values), 0.0))
            self.factor.assign(vectors * roots @ vectors.T)
            return
        inverse = np.mean(np.exp(-2.0 * self.log_scale.numpy().astype("float64")))
        self.log_scale.assign(-0.5 * np.log(inverse * np.maximum(np.diag(m), LEAST)))

    def _mapped(self, a: tf.Tensor) -> tf.Tensor:
        """Return rows whose distances are those of the metric, `(n, d)`."""
        if self.factor is not None:
            a = a @ tf.cast(tf.convert_to_tensor(self.factor), a.dtype)
        return a * tf.exp(-tf.cast(tf.convert_to_tensor(self.log_scale), a.dtype))

    def _median(self, x: np.ndarray) -> float:
        """Return the median distance of distinct rows; 1 where there is one."""
        from scipy.spatial.distance import pdist

        found = pdist(x[:: max(1, -(-len(x) // MEDIAN_ROWS))], self._distance_of_scipy)
        apart = found[found > 0.0]
        return float(np.median(apart)) if len(apart) else 1.0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale, "metric": self.metric}


def distinct(x: np.ndarray) -> np.ndarray:
    """Return the different rows of float64 numbers, in the order of their first place.

    How often a row is there then has no say, as little as a weight that counts it.
    """
    seen: set[int] = set()
    first = np.ones(len(x), bool)
    for cut in _rows.cuts(len(x), 4096):
        part = np.ascontiguousarray(x[cut]) + 0.0  # of two zeros, one
        texts = part.view(np.dtype((np.void, part.itemsize * part.shape[1])))
        for i, text in enumerate(texts.ravel().tolist(), cut.start):
            key = hash(text)
            first[i] = key not in seen
            seen.add(key)
    return x if first.all() else x[first]
