"""The Laplace kernel."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare import _validation
from keras_kare.kernels.classic import distances, spectra
from keras_kare.kernels.classic.stationary import Stationary, of_squares


@keras.saving.register_keras_serializable(package="keras_kare")
class Laplace(Stationary):
    """`K(x, x') = exp(−‖x − x'‖ / s)`, of rough targets; the kernel of feature machines.

    Args:
        scale: The length `s`; or `"median"`, the median distance of different rows. With
            `distance="l1"`, `1/s` is `gamma` of scikit-learn's `laplacian_kernel`. Defaults
            to `"median"`.
        metric: `"isotropic"`, `"diagonal"` or `"full"`: see `Stationary`. Defaults to
            `"isotropic"`.
        distance: `"l2"`, Euclidean, or `"l1"`, the sum over columns, which takes as many
            passes. Defaults to `"l2"`.
        features: How many random features stand for the kernel, an even number: see
            `Stationary`. Defaults to `None`: the kernel is exact.
        seed: Of their frequencies. Defaults to `0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    The kernel has a kink where rows are equal; its derivative counts as 0 there. Its random
    features have frequencies of no variance: train the metric with the exact kernel.

    Raises:
        ValueError: If `scale`, `metric`, `distance` or `features` is something else.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.Laplace(scale=2.0).gram(x)  # (100, 100)
    ```

    References:
        - Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in
          neural networks and backpropagation-free machine learning models", Science 2024.
    """

    def __init__(
        self,
        scale: float | str = "median",
        metric: str = "isotropic",
        distance: str = "l2",
        features: int | None = None,
        seed: int = 0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _validation.check_option("distance", distance, ("l1", "l2"))
        super().__init__(scale, metric, features, seed, memory_limit, name, **kwargs)
        self.distance = distance
        self._distance_of_scipy = "euclidean" if distance == "l2" else "cityblock"

    def _exact(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        if self.distance == "l1":
            return tf.exp(-distances.manhattan(a, b))
        return exponential(distances.squared(a, b))

    def _spectrum(self) -> spectra.Spectrum:
        return spectra.cauchy if self.distance == "l1" else spectra.student(1.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "distance": self.distance}


exponential = of_squares(
    lambda s: tf.exp(-tf.sqrt(s)),
    lambda s, values: -0.5 * tf.math.divide_no_nan(values, tf.sqrt(s)),
)
"""`exp(−√s)`, whose derivative by `s` counts as 0 at 0."""
