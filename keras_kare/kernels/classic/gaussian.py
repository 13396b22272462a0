"""The Gaussian kernel."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_kare.kernels.classic import distances, spectra
from keras_kare.kernels.classic.stationary import Stationary


@keras.saving.register_keras_serializable(package="keras_kare")
class Gaussian(Stationary):
    """`K(x, x') = exp(−‖x − x'‖² / (2 s²))`, the radial basis function of smooth targets.

    Args:
        scale: The length `s`, as `length_scale` of scikit-learn's `RBF`; or `"median"`, the
            median distance of different rows. Defaults to `"median"`.
        metric: `"isotropic"`, `"diagonal"` or `"full"`: see `Stationary`. Defaults to
            `"isotropic"`.
        features: How many random features stand for the kernel, an even number: see
            `Stationary`. Defaults to `None`: the kernel is exact.
        seed: Of their frequencies. Defaults to `0`.
        memory_limit: Bytes that kernel values may hold while they are computed. Defaults to
            half of what is free.
        name: Name of the layer.

    Raises:
        ValueError: If `scale`, `metric` or `features` is something else.

    Example:

    ```python
    x = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    y = np.sin(x[:, :1])
    model = kk.KAREModel(kk.kernels.Gaussian(metric="diagonal"))
    model.compile(keras.optimizers.Adam(0.05), kk.losses.KARE(ridge=0.01))
    model.fit(x, y, epochs=10, verbose=0)
    np.exp(model.kernel.log_scale.numpy())  # lengths: long ones do not matter
    ```

    References:
        - Rasmussen, Williams, "Gaussian processes for machine learning", eq. 4.9 and 5.2.
    """

    def _exact(self, a: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        return tf.exp(-0.5 * distances.squared(a, b))

    def _spectrum(self) -> spectra.Spectrum:
        return spectra.normal
