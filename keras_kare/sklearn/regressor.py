"""`KARERegressor`: kernel ridge regression on tables, with a trained kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from keras_kare.sklearn.base import KAREEstimator


class KARERegressor(RegressorMixin, KAREEstimator):
    """Regression by a kernel machine whose kernel is trained with KARE.

    A dense network's neural tangent kernel is trained on most of the rows; the others
    say when to stop, which ridge to use and how large errors are; then the machine is
    solved on all rows. Targets are centred and scaled inside.

    Args:
        hidden_sizes: Units of each hidden layer. `()` makes the kernel linear. Defaults
            to `(64, 64)`.
        activation: Of the hidden layers, by its name in Keras. Defaults to `"gelu"`.
        epochs: Most epochs of training. `0` keeps the kernel of the random network.
            Defaults to `100`.
        learning_rate: Of the Adam optimizer. Defaults to `1e-3`.
        kare_ridge: Ridge inside KARE, relative to `tr(K)/n²`. Defaults to `1.0`.
        ridge: Ridge of the machine, relative to `tr(K)/n²`, or `"auto"`: chosen on the
            rows that are held out. Defaults to `"auto"`.
        batch_size: Least rows of a Gram matrix in training. Defaults to all up to 4,096,
            and about 1,024 above.
        validation_fraction: Share of the rows that do not train. Fewer than 20 rows all
            stay out of training: the kernel is that of the random network, and
            leave-one-out chooses the ridge. Defaults to `0.2`.
        patience: Epochs without a smaller error on the rows held out after which training
            ends; the best epoch counts. Defaults to `10`.
        time_budget: Seconds after which training ends, with the batch that runs then. The
            machine is solved after that. Defaults to no limit.
        categorical_features: Names or numbers of categorical columns, or a mask.
            `"auto"`: columns of a data frame that hold text, categories or truth values.
            `None`: none. They are encoded one-hot, rare and unknown categories together.
            Defaults to `"auto"`.
        standardize: Whether numeric columns get zero mean and unit variance. Defaults to
            `True`.
        dtype: Precision of the network, `"float64"` or `"float32"`, for devices on which
            float64 is slow. Defaults to `"float64"`.
        random_state: Seed, generator or `None`, as in scikit-learn. No other generator is
            used or changed.
        verbose: As in `keras.Model.fit`. Defaults to `0`.

    Attributes:
        model_: The `keras_kare.KAREModel`, whose inputs are those of `preprocessor_`.
        preprocessor_: The `ColumnTransformer`: see `keras_kare.sklearn.preprocessing`.
        history_: `loss` (KARE) and `val_loss` (mean squared error on the rows held out, of
            scaled targets) of each epoch; empty where nothing was trained.
        ridge_: The relative ridge of the machine.
        ridge_chosen_by_: How it was chosen.
        noise_scale_: `s²` of each target, `(c,)`: see `predict`.
        target_mean_, target_scale_: Of each target, `(c,)`.
        n_features_in_, feature_names_in_: As in scikit-learn.

    NaN in `X` counts as missing: the median, and an indicator column, take its place.
    Sparse `X` and sample weights are not supported.

    Raises:
        ValueError: From `fit`, for parameters out of range and bad input, named.

    Example:

    ```python
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    regressor = kk.sklearn.KARERegressor(epochs=20, random_state=0).fit(X, y)
    regressor.score(X_test, y_test)
    mean, std = regressor.predict(X_test, return_std=True)
    ```

    References:
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
        - Rasmussen, Williams, "Gaussian processes for machine learning", 2006, chapter 2.
    """

    def fit(self, X: Any, y: Any) -> KARERegressor:
        """Fit on rows.

        Args:
            X: Table `(n, d)`: array, list of rows or data frame.
            y: Finite numbers, `(n,)` or `(n, c)`.
        """
        x = self._fit_inputs(X, y)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        self._single = y.ndim == 1
        columns = y.reshape(len(y), -1)
        self.target_mean_, self.target_scale_ = _mean_and_scale(columns)
        scaled = (columns - self.target_mean_) / self.target_scale_
        evidence = self._fit_machine(x, scaled, order=scaled[:, 0])
        residuals = scaled[evidence.rows] - evidence.predictions
        self.noise_scale_ = np.mean(residuals**2 / evidence.variances[:, None], axis=0)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicted targets, and how far new observations may lie from them.

        The standard deviation is that of a Gaussian process with covariance `s² K` and
        noise variance `s² nλ`, where `K` is the trained kernel and `λ` the ridge:
        `s² (K(x, x) − k(x) (K + nλI)⁻¹ k(x)ᵀ + nλ)`. The scale `s²` is the one at which
        squared errors on rows that did not train, divided by their variance, have mean
        one (leave-one-out errors where the kernel was not trained).

        Args:
            X: Table `(n, d)`.
            return_std: Whether to return standard deviations, too, which takes `O(n³)`
                in the number of training rows.

        Returns:
            `(n,)`, or `(n, c)` if `y` had columns; with `return_std=True` a pair of them.
        """
        x = self._inputs(X)
        outputs = self._shaped(self._outputs(x))
        if not return_std:
            return outputs
        head, kernel = self.model_.head, self.model_.kernel
        posterior = head.posterior(kernel)
        variances = posterior.unit_variance_at(kernel, x, head.anchors)
        variances = (variances + posterior.unit_noise)[:, None] * self.noise_scale_
        return outputs, self._shaped(self.target_scale_ * np.sqrt(variances))

    def _shaped(self, columns: np.ndarray) -> np.ndarray:
        return columns[:, 0] if self._single else columns

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn 1.5 collects them by class
        return {"multioutput": True}


def _mean_and_scale(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; one for constant columns."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = np.mean(y, axis=0), np.std(y, axis=0)
    if not np.all(np.isfinite(mean) & np.isfinite(scale)):
        raise ValueError(
            "`y` holds numbers too large for their variance in float64. Divide them by a "
            f"constant. Received: y up to {np.max(np.abs(y)):.1e}"
        )
    # Rounding leaves constant columns a deviation of about 1e-16 of their size.
    varies = scale > 1e-14 * np.abs(mean)
    return mean, np.where(varies & (scale > 0.0), scale, 1.0)
