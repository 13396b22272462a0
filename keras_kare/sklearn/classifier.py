"""`KAREClassifier`: classification of tables by a kernel machine with a trained kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from keras_kare.machine import calibration
from keras_kare.sklearn.base import KAREEstimator


class KAREClassifier(ClassifierMixin, KAREEstimator):
    """Classification by a kernel machine whose kernel is trained with KARE.

    Classes become targets in -1 and 1: one column for two classes, else one a class, all
    of one kernel. Everything else is as in `KARERegressor`, whose documentation explains
    the parameters.

    Args:
        hidden_sizes, activation, epochs, learning_rate, kare_ridge, ridge, batch_size,
            folds, networks, machines, laplace, time_budget, categorical_features,
            few_values, standardize, dtype, random_state, verbose: As in `KARERegressor`.
            Folds have their share of each class.

    Attributes:
        classes_: The class labels, sorted, `(c,)`.
        inverse_temperature_: What scores are multiplied by to become probabilities: see
            `predict_proba`.
        machines_, history_, preprocessor_, target_mean_, target_scale_, n_features_in_,
            feature_names_in_: As in `KARERegressor`.

    Raises:
        ValueError: From `fit`, for parameters out of range, bad input, named, and labels
            of one class only.

    Example:

    ```python
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    classifier = kk.sklearn.KAREClassifier(epochs=10, random_state=0).fit(X, y)
    classifier.score(X_test, y_test)
    classifier.predict_proba(X_test)  # (n, 2)
    ```

    References:
        - Schwab, Kelly, Malamud, Xu, "Training NTK to generalize with KARE",
          arXiv:2505.11347.
        - Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks",
          arXiv:1706.04599.
    """

    def fit(self, X: Any, y: Any) -> KAREClassifier:
        """Fit on rows.

        Args:
            X: Table `(n, d)`: array, list of rows or data frame.
            y: Class labels, `(n,)`: numbers or text.
        """
        x = self._fit_inputs(X, y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "`y` must have at least two classes. Received: one class, "
                f"{self.classes_[0]!r}"
            )
        signs = 2.0 * (codes[:, None] == np.arange(len(self.classes_))) - 1.0
        if len(self.classes_) == 2:
            signs = signs[:, 1:]
        self.target_mean_ = np.mean(signs, axis=0)
        # One scale for all classes: rare ones should not count more than frequent ones.
        self.target_scale_ = np.sqrt(np.mean(np.var(signs, axis=0)))
        scaled = (signs - self.target_mean_) / self.target_scale_
        evidence = self._fit_machines(x, scaled, order=codes)
        scores = self.target_mean_ + self.target_scale_ * evidence.predictions
        self.inverse_temperature_ = float(
            calibration.inverse_temperature(
                scores, signs[evidence.rows], np.ones(len(scores))
            )
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the highest score, `(n,)`."""
        scores = self._scores(X)
        if scores.shape[1] == 1:
            return self.classes_[(scores[:, 0] > 0.0).astype(int)]
        return self.classes_[np.argmax(scores, axis=1)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores, about -1 to 1: `(n,)` for two classes, else `(n, c)`.

        Of two classes, scores above 0 are for the second.
        """
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of the classes, `(n, c)`; rows sum to one.

        The sigmoid (two classes) or softmax of the scores times one number, by which the
        probabilities of rows that did not train fit best (temperature scaling): all rows,
        as machines of the other folds predict them.
        """
        scores = self._scores(X)
        return np.asarray(calibration.probabilities(scores, self.inverse_temperature_))

    def _scores(self, X: Any) -> np.ndarray:
        return self._outputs(self._inputs(X))
