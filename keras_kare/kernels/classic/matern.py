"""Matérn kernels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_kare.kernels.classic import distances, spectra
from keras_kare.kernels.classic.laplace import exponential
from keras_kare.kernels.classic.stationary import Stationary, of_squares

SMOOTHNESS = {
    0.5: exponential,
    1.5: of_squares(
        lambda s: (1.0 + tf.sqrt(3.0 * s)) * tf.exp(-tf.sqrt(3.0 * s)),
        lambda s, _: -1.5 * tf.exp(-tf.sqrt(3.0 * s)),
    ),
    2.5: of_squares(
        lambda s: (1.0 + tf.sqrt(5.0 * s) + 5.0 / 3.0 * s) * tf.exp(-tf.sqrt(5.0 * s)),
        lambda s, _: -5.0 / 6.0 * (1.0 + tf.sqrt(5.0 * s)) * tf.exp(-tf.sqrt(5.0 * s)),
    ),
}
"""Functions of squared distances in units of the scale, by `nu`."""


@keras.saving.register_keras_serializable(package="keras_kare")
class Matern(Stationary):
    """Matérn's kernel: between Laplace (`nu=0.5`) and Gaussian in smoothness.

    With `r = ‖x − x'‖/s`: `exp(−r)` for `nu=0.5`, `(1 + √3 r) exp(−√3 r)` for 1.5,
    `(1 + √5 r + 5r²/3) exp(−√5 r)` for 2.5.

    Args:
        nu: 0.5, 1.5 or 2.5: processes of that kernel are 0, 1 or 2 times differentiable.
            Defaults to `1.5`.
        scale: The length `s`, as `length_scale` of scikit-learn's `Matern`; or `"median"`,
            the median distance of different rows. Defaults to `"median"`.
        metric: `"isotropic"`, `"diagonal"` or `"full"`: see `Stationary`. Defaults to
            `"isotropic"`.
        features: How many random features stand for the kernel, an even number: see
            `Stationary`. Defaults to `None`: the kernel is exact.
        seed: Of their frequencies. Defaults to `0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Raises:
        ValueError: If `nu`, `scale`, `metric` or `features` is something else.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    gram = kk.kernels.Matern(nu=2.5, scale=1.0).gram(x)  # (100, 100)
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", eq. 4.17.
    """

    def __init__(
        self,
        nu: float = 1.5,
        scale: float | str = "median",
        metric: str = "isotropic",
        features: int | None = None,
        seed: int = 0,
        memory_limit: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if nu not in SMOOTHNESS:
            raise ValueError(f"`nu` must be 0.5, 1.5 or 2.5. Received: nu={nu!r}")
        super().__init__(scale, metric, features, seed, memory_limit, name, **kwargs)
        self.nu = float(nu)

    def _exact(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        values: tf.Tensor = SMOOTHNESS[self.nu](distances.squared(a, b))
        return values

    def _spectrum(self) -> spectra.Spectrum:
        return spectra.student(2.0 * self.nu)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "nu": self.nu}
