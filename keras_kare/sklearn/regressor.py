"""`KARERegressor`: kernel ridge regression on tables, with a trained kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from keras_kare.recipes.perceptrons import LOCK
from keras_kare.sklearn import counting
from keras_kare.sklearn.base import KAREEstimator


class KARERegressor(RegressorMixin, KAREEstimator):
    """Regression by a kernel machine whose kernel is trained with KARE.

    Dense networks' neural tangent kernels are trained on all folds of the rows but one,
    Laplace kernels learn their metric there, and all predict that fold: these predictions
    choose kernels, how long they train, and ridges, and say how large errors are. Then
    what was chosen is trained on all rows, and the predictions of the best few machines are
    averaged: see `keras_kare.recipes`. Of more than 2,000 rows, as many choose, and all
    train in the end; of more than 5,000, see `centres`. Targets are centred and scaled
    inside.

    Args:
        hidden_sizes: Units of each hidden layer. `()` makes the kernel linear. Defaults
            to `(64, 64)`.
        activation: Of the hidden layers, by its name in Keras. Defaults to `"gelu"`.
        epochs: Most steps of training; 0, 10, 30, 100, 300 and so on up to it are chosen
            from. `0` keeps the kernels of random networks, and metrics as they are.
            Defaults to `100`.
        learning_rate: Of the Adam optimizer. Defaults to `3e-3`.
        kare_ridge: Ridge inside KARE, relative to `tr(K)/n²`. Defaults to `1.0`.
        ridge: Ridge of the machines, relative to `tr(K)/n²`, or `"auto"`: chosen by
            predictions of rows that did not train. Defaults to `"auto"`.
        batch_size: Most rows of a step of training. Defaults to `512`.
        folds: Into how many the rows are cut, at least 2. Less than 20 rows are each
            predicted by all others, and no network is trained. Defaults to `4`.
        networks: How many are trained on all rows, whose kernels are averaged. Defaults to
            `3`.
        machines: Most machines whose predictions are averaged: the best, and those that are
            not worse by more than two standard errors. Defaults to `5`.
        laplace: Whether Laplace kernels may be chosen, too, which serve rough targets: of
            the L1 distance, and of the L2 distance in a metric that is learnt in up to
            three rounds (of at most 500 columns). With centres, one is mixed in. Defaults
            to `True`.
        centres: Of how many rows predictions are sums, where there are more: these, drawn
            at random, are the centres of a Nyström approximation to machines on all rows.
            `"auto"`: 1,000 of more than 5,000 rows. `None`: all, whose Gram matrices
            must fit into memory. With centres one row in ten, at most 5,000, chooses and
            does not train, the others train in batches for up to `30 * epochs` steps, and
            `approximation_` says what was done, and with `"auto"` a warning. Defaults to
            `"auto"`.
        time_budget: Seconds, of which half are for choosing: longer trainings than fit
            into that are not chosen. Machines are solved after that. Defaults to no limit.
        categorical_features: Names or numbers of categorical columns, or a mask.
            `"auto"`: columns of a data frame that hold text, categories or truth values.
            `None`: none. They are encoded one-hot, rare and unknown categories together.
            Defaults to `"auto"`.
        few_values: Most values of a numeric column that also gets a column for each of
            them (from 3 on: such numbers may be codes). `0` for none. Defaults to `8`.
        standardize: Whether numeric columns get zero mean and unit variance. Defaults to
            `True`.
        dtype: Precision of the network and of its kernel's entries, `"float32"` or
            `"float64"`, which takes twice as long. Ridges are chosen and machines solved
            in float64 either way. Defaults to `"float32"`.
        random_state: Seed, generator or `None`, as in scikit-learn. No other generator is
            used or changed.
        verbose: Whether to print what was chosen. Defaults to `0`.

    Attributes:
        machines_: Of each averaged machine `steps` of training, `share` of a Laplace
            kernel (1: it alone), the relative `ridge`, and `rough`: that kernel's
            `distance`, `bandwidth` and `rounds` of learning; the best comes first.
        history_: `steps` of training, and after each the least `error` in rows that did not
            train: the mean squared error of scaled targets. (Of a `KAREClassifier`, of
            targets in -1 and 1, plus the share of wrong rows.)
        preprocessor_: The `ColumnTransformer`: see `keras_kare.sklearn.preprocessing`.
        approximation_: `None` where machines are on all rows, else a dict: how many `rows`
            trained, how many were `held_out`, how many `centres` there are, and of each
            machine its `kernel_error`, the share of `tr(K)` that centres do not span.
        feature_importances_: How strongly predictions depend on each column, `(d,)`.
        noise_scale_: `s²` of each target, `(c,)`: see `predict`.
        target_mean_, target_scale_: Of each target, `(c,)`.
        n_features_in_, feature_names_in_: As in scikit-learn.

    NaN in `X` counts as missing: the median, and an indicator column, take its place.
    Sparse `X` becomes dense.

    Raises:
        ValueError: From `fit`, for parameters out of range and bad input, named.

    Example:

    ```python
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    regressor = kk.sklearn.KARERegressor(epochs=10, random_state=0).fit(X, y)
    regressor.score(X_test, y_test)
    mean, std = regressor.predict(X_test, return_std=True)
    ```

    References:
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
        - Rudi, Carratino, Rosasco, "FALKON: an optimal large scale kernel method",
          arXiv:1705.10958.
        - Rasmussen, Williams, "Gaussian processes for machine learning", 2006, chapter 2.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KARERegressor:
        """Fit on rows.

        Args:
            X: Table `(n, d)`: array, sparse matrix, list of rows or data frame.
            y: Finite numbers, `(n,)` or `(n, c)`.
            sample_weight: How often each row counts, `(n,)`: a row of weight 2 is two equal
                rows, one of weight 0 is none. Defaults to once.
        """
        table, weights = self._checked(X, y, sample_weight)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        self._single = y.ndim == 1
        columns = y.reshape(len(y), -1)
        rows, weights = counting.merged(table, columns, weights)
        x, columns = self._fit_inputs(table[rows]), columns[rows]
        self.target_mean_, self.target_scale_ = _mean_and_scale(columns, weights)
        scaled = (columns - self.target_mean_) / self.target_scale_
        evidence = self._fit_machines(x, scaled, scaled[:, 0], weights)
        self._targets = scaled
        seen = evidence.rows
        ratios = (scaled[seen] - evidence.predictions) ** 2 / evidence.variances[:, None]
        counts = None if weights is None else weights[seen]
        self.noise_scale_ = np.average(ratios, axis=0, weights=counts)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return predicted targets, and how far new observations may lie from them.

        The variance is the mean of the machines'. Each is that of a Gaussian process with
        covariance `s² K` and noise variance `s² nλ`, where `K` is the kernel and `λ` the
        ridge: `s² (K(x, x) − k(x) (K + nλI)⁻¹ k(x)ᵀ + nλ)`. The scale `s²` is the one at
        which squared errors of rows that did not train, divided by their variance, have
        mean one.

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
        with LOCK:
            bench = self._bench(x.shape[1])
            variances = self._ensemble.unit_variance(bench, x, self._targets)
        std = np.sqrt(variances[:, None] * self.noise_scale_)
        return outputs, self._shaped(self.target_scale_ * std)

    def _shaped(self, columns: np.ndarray) -> np.ndarray:
        return columns[:, 0] if self._single else columns

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn 1.5 collects them by class
        return {"multioutput": True}


def _mean_and_scale(
    y: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column; one for constant columns."""
    with np.errstate(over="ignore", invalid="ignore"):
        if weights is None:
            mean, scale = np.mean(y, axis=0), np.std(y, axis=0)
        else:
            mean = np.average(y, axis=0, weights=weights)
            scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=weights))
    if not np.all(np.isfinite(mean) & np.isfinite(scale)):
        raise ValueError(
            "`y` holds numbers too large for their variance in float64. Divide them by a "
            f"constant. Received: y up to {np.max(np.abs(y)):.1e}"
        )
    # Rounding leaves constant columns a deviation of about 1e-16 of their size.
    varies = scale > 1e-14 * np.abs(mean)
    return mean, np.where(varies & (scale > 0.0), scale, 1.0)
