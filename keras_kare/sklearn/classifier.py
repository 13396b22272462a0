"""`KAREClassifier`: classification of tables by a kernel machine with a trained kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from keras_kare import _labels
from keras_kare.machine import calibration
from keras_kare.recipes.cross_fitting import Evidence, squared_errors
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.sklearn.base import KAREEstimator
from keras_kare.sklearn.counting import check_class_weight, merged, weights_of_classes


class KAREClassifier(ClassifierMixin, KAREEstimator):
    """Classification by a kernel machine whose kernel is trained with KARE.

    Classes become targets in -1 and 1: one column for two classes, else one a class, all
    of one kernel. Machines are chosen by their squared error plus the share of wrong rows.
    Everything else is as in `KARERegressor`, whose documentation explains the parameters.

    Args:
        hidden_sizes, activation, epochs, learning_rate, kare_ridge, ridge, batch_size,
            folds, networks, machines, laplace, centres, time_budget, categorical_features,
            few_values, standardize, dtype, random_state, verbose: As in `KARERegressor`.
            Folds have their share of each class.
        class_weight: How often rows of each class count, a dict from labels to weights
            (those that it does not name have 1), or `"balanced"`: all classes count
            alike. They multiply `sample_weight`. Defaults to `None`.

    Attributes:
        classes_: The class labels, sorted, `(c,)`.
        inverse_temperature_: What scores are multiplied by to become probabilities: see
            `predict_proba`.
        machines_, history_, approximation_, preprocessor_, feature_importances_,
            target_mean_, target_scale_, n_features_in_, feature_names_in_: As in
            `KARERegressor`.

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

    def __init__(
        self,
        hidden_sizes: Sequence[int] = DEFAULTS.hidden_sizes,
        activation: str = DEFAULTS.activation,
        epochs: int = DEFAULTS.epochs,
        learning_rate: float = DEFAULTS.learning_rate,
        kare_ridge: float = DEFAULTS.kare_ridge,
        ridge: float | str = DEFAULTS.ridge,
        batch_size: int = DEFAULTS.batch_size,
        folds: int = DEFAULTS.folds,
        networks: int = DEFAULTS.networks,
        machines: int = DEFAULTS.machines,
        laplace: bool = DEFAULTS.laplace,
        centres: int | str | None = DEFAULTS.centres,
        time_budget: float | None = DEFAULTS.time_budget,
        categorical_features: Any = DEFAULTS.categorical_features,
        few_values: int = DEFAULTS.few_values,
        standardize: bool = DEFAULTS.standardize,
        dtype: str = DEFAULTS.dtype,
        class_weight: Any = None,
        random_state: Any = DEFAULTS.random_state,
        verbose: int = DEFAULTS.verbose,
    ):
        super().__init__(
            hidden_sizes=hidden_sizes,
            activation=activation,
            epochs=epochs,
            learning_rate=learning_rate,
            kare_ridge=kare_ridge,
            ridge=ridge,
            batch_size=batch_size,
            folds=folds,
            networks=networks,
            machines=machines,
            laplace=laplace,
            centres=centres,
            time_budget=time_budget,
            categorical_features=categorical_features,
            few_values=few_values,
            standardize=standardize,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KAREClassifier:
        """Fit on rows.

        Args:
            X: Table `(n, d)`: array, sparse matrix, list of rows or data frame.
            y: Class labels, `(n,)`: numbers or text. Or several labels a row: 0 and 1,
                `(n, k)`, one column a label.
            sample_weight: How often each row counts, `(n,)`: a row of weight 2 is two equal
                rows, one of weight 0 is none. Defaults to once.
        """
        check_class_weight(self.class_weight)
        table, weights = self._checked(X, y, sample_weight)
        if (labels := _indicators(y)) is not None:
            return self._fit_labels(table, labels, weights)
        self._multilabel = False
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "O":
            _labels.check_objects("y", y)
        check_classification_targets(y)
        rows, codes, weights = self._rows_of_classes(table, y, weights)
        x = self._fit_inputs(table[rows])
        signs = 2.0 * (codes[:, None] == np.arange(len(self.classes_))) - 1.0
        if len(self.classes_) == 2:
            signs = signs[:, 1:]
        evidence = self._fit_signs(x, signs, codes, weights)
        scores = self.target_mean_ + self.target_scale_ * evidence.predictions
        self.inverse_temperature_ = _factor(scores, signs, evidence.rows, weights)
        return self

    def _rows_of_classes(
        self, table: np.ndarray, y: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the rows that count, their classes from 0, and how often they count."""
        counted = slice(None) if weights is None else weights > 0.0
        self.classes_ = np.unique(y[counted])
        codes = np.searchsorted(self.classes_, y[counted])
        every = np.zeros(len(y), int)
        every[counted] = codes
        rows, weights = merged(table, every[:, None], weights)
        codes = every[rows]
        weights = weights_of_classes(self.class_weight, self.classes_, codes, weights)
        if weights is not None and not np.all(weights):
            rows, codes, weights = (part[weights > 0.0] for part in (rows, codes, weights))
        present = np.unique(codes)
        if len(present) < 2:
            raise ValueError(
                "`y` must have at least two classes. Received: one class, "
                f"{self.classes_[present].tolist()[0]!r}"
            )
        return rows, codes, weights

    def _fit_signs(
        self,
        x: np.ndarray,
        signs: np.ndarray,
        order: np.ndarray,
        weights: np.ndarray | None,
    ) -> Evidence:
        """Fit machines on targets in -1 and 1, `(n, c)`."""
        self.target_mean_ = np.average(signs, axis=0, weights=weights)
        variances = np.var(signs, axis=0) if weights is None else 1.0 - self.target_mean_**2
        # One scale for all classes: rare ones should not count more than frequent ones.
        self.target_scale_ = np.sqrt(np.mean(variances)) or 1.0
        scaled = (signs - self.target_mean_) / self.target_scale_
        squares = squared_errors(signs)

        def losses(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
            scores = self.target_mean_ + self.target_scale_ * values
            return squares(scores, rows) + _wrong(scores, signs[rows], self._multilabel)

        return self._fit_machines(x, scaled, order, weights, losses)

    def _fit_labels(
        self, table: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
    ) -> KAREClassifier:
        """Fit on several labels a row, each of which is in -1 and 1."""
        if self.class_weight is not None:
            raise ValueError(
                "`class_weight` must be None where rows have several labels: give "
                f"`sample_weight`. Received: class_weight={self.class_weight!r}"
            )
        self._multilabel, self.classes_ = True, np.arange(labels.shape[1])
        rows, weights = merged(table, labels, weights)
        x, labels = self._fit_inputs(table[rows]), labels[rows]
        order = np.ravel(np.unique(labels, axis=0, return_inverse=True)[1])
        evidence = self._fit_signs(x, 2.0 * labels - 1.0, order, weights)
        scores = self.target_mean_ + self.target_scale_ * evidence.predictions
        each = None if weights is None else np.repeat(weights, labels.shape[1])
        signs = 2.0 * labels.reshape(-1, 1) - 1.0
        places = np.arange(labels.size).reshape(labels.shape)[evidence.rows].ravel()
        self.inverse_temperature_ = _factor(scores.reshape(-1, 1), signs, places, each)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the highest score, `(n,)`.

        Of several labels a row, return 1 where scores are above 0, else 0: `(n, k)`.
        """
        scores = self._scores(X)
        if self._multilabel:
            return (scores > 0.0).astype(int)
        if scores.shape[1] == 1:
            return self.classes_[(scores[:, 0] > 0.0).astype(int)]
        return self.classes_[np.argmax(scores, axis=1)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores, about -1 to 1: `(n,)` for two classes, else `(n, c)`.

        Of two classes, scores above 0 are for the second. Of several labels a row, those
        above 0 are for the label: `(n, k)`.
        """
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 and not self._multilabel else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of the classes, `(n, c)`; rows sum to one.

        The sigmoid (two classes) or softmax of the scores times one number, by which the
        probabilities of rows that did not train fit best (temperature scaling): all rows,
        as machines of the other folds predict them. Of several labels a row, the
        probability of each, `(n, k)`, by the sigmoid.
        """
        scores = self._scores(X)
        if self._multilabel:
            return np.asarray(expit(self.inverse_temperature_ * scores))
        return np.asarray(calibration.probabilities(scores, self.inverse_temperature_))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return logarithms of `predict_proba`, `(n, c)`."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def _scores(self, X: Any) -> np.ndarray:
        return self._outputs(self._inputs(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _wrong(scores: np.ndarray, signs: np.ndarray, labels: bool) -> np.ndarray:
    """Return 1 for rows whose class scores miss, else 0; the share of wrong labels.

    Args:
        scores: `(m, c)`.
        signs: Targets in -1 and 1, `(m, c)`.
        labels: Whether each column is a label of its own.
    """
    if labels or scores.shape[1] == 1:
        return np.mean((scores > 0.0) != (signs > 0.0), axis=1)
    return (np.argmax(scores, axis=1) != np.argmax(signs, axis=1)).astype("float64")


def _indicators(y: Any) -> np.ndarray | None:
    """Return 0 and 1 for each label of a row, `(n, k)`; `None` for one class a row.

    Raises:
        ValueError: If there are several columns of something else.
    """
    if y is None:
        return None
    y = y.toarray() if issparse(y) else np.asarray(y)
    if y.ndim != 2 or y.shape[1] < 2:
        return None
    kind = type_of_target(y, input_name="y")
    if kind != "multilabel-indicator":
        raise ValueError(
            "`y` must be one column of classes, or hold 0 and 1, one column a label. For "
            "several columns of classes see `sklearn.multioutput.MultiOutputClassifier`. "
            f"Received: y of shape {y.shape}, {kind}"
        )
    return np.asarray(y.astype(int))


def _factor(
    scores: np.ndarray, signs: np.ndarray, rows: np.ndarray, weights: np.ndarray | None
) -> float:
    """Return what scores of some rows are multiplied by to become probabilities.

    Args:
        scores: `(m, c)`.
        signs: Targets in -1 and 1 of all rows, `(n, c)`.
        rows: Numbers of the rows that have scores, `(m,)`.
        weights: How often each of all rows counts, `(n,)`.
    """
    counts = np.ones(len(rows)) if weights is None else weights[rows]
    return float(calibration.inverse_temperature(scores, signs[rows], counts))
