"""What both estimators share: tables in, a trained and solved kernel machine kept."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from keras_kare.kernels import NTK
from keras_kare.layers import NTKRidgeHead
from keras_kare.models import KAREModel
from keras_kare.sklearn import preprocessing
from keras_kare.sklearn._compat import validate_data
from keras_kare.sklearn.networks import make_network
from keras_kare.sklearn.parameters import check_parameters
from keras_kare.sklearn.training import Evidence, held_out_rows, judge, train


class KAREEstimator(BaseEstimator):
    """A kernel machine on tables, whose kernel is trained with KARE.

    Subclasses turn targets into centred and scaled columns, and outputs back. Their
    documentation lists the parameters.
    """

    _categorical: list[int]

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "gelu",
        epochs: int = 100,
        learning_rate: float = 1e-3,
        kare_ridge: float = 1.0,
        ridge: float | str = "auto",
        batch_size: int | None = None,
        validation_fraction: float = 0.2,
        patience: int = 10,
        time_budget: float | None = None,
        categorical_features: Any = "auto",
        standardize: bool = True,
        dtype: str = "float64",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.kare_ridge = kare_ridge
        self.ridge = ridge
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.time_budget = time_budget
        self.categorical_features = categorical_features
        self.standardize = standardize
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _fit_inputs(self, X: Any, y: Any) -> np.ndarray:
        """Check parameters and rows, fit the preprocessor; inputs `(n, d)`."""
        check_parameters(self)
        table = self._table(X, y, reset=True)
        check_consistent_length(table, y)
        if len(table) < 2:
            raise ValueError(
                "`X` must have at least two rows: a kernel compares rows. "
                "Received: n_samples=1"
            )
        self.preprocessor_ = preprocessing.make_preprocessor(
            self.n_features_in_, self._categorical, self.standardize
        )
        return np.asarray(self.preprocessor_.fit_transform(table), "float32")

    def _fit_machine(self, x: np.ndarray, y: np.ndarray, order: np.ndarray) -> Evidence:
        """Train, choose the ridge, solve on all rows.

        Args:
            x: `(n, d)`.
            y: Centred and scaled, `(n, c)`.
            order: What rows that are held out should be balanced in, `(n,)`.
        """
        end = time.perf_counter() + (self.time_budget or math.inf)
        rng = check_random_state(self.random_state)
        kernel = NTK(
            make_network(x.shape[1], self.hidden_sizes, self.activation, self.dtype, rng)
        )
        held = np.arange(0)  # without training, no row needs to be held out
        if self.epochs:
            held = held_out_rows(order, self.validation_fraction, rng)
        self.history_ = train(kernel, x, y, held, self, rng, end) if len(held) else {}
        evidence = judge(kernel.gram(x, dtype="float64").numpy(), y, held, self.ridge)
        self.ridge_ = evidence.ridge
        self.ridge_chosen_by_ = evidence.chosen_by
        self.model_ = KAREModel(kernel, head=NTKRidgeHead(ridge=evidence.ridge))
        self.model_.fit_head(x, y)
        return evidence

    def _inputs(self, X: Any) -> np.ndarray:
        """Checked and transformed inputs of a fitted estimator, `(n, d)`."""
        check_is_fitted(self)
        table = self._table(X, "no_validation", reset=False)
        return np.asarray(self.preprocessor_.transform(table), "float32")

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """The machine's outputs in the units of the targets, `(n, c)`."""
        outputs = np.asarray(self.model_(x), "float64")
        return np.asarray(self.target_mean_ + self.target_scale_ * outputs)

    def _table(self, X: Any, y: Any, reset: bool) -> np.ndarray:
        """`preprocessing.as_table` of `X`; checks or remembers names of columns."""
        if not preprocessing.is_frame(X):
            given = self.categorical_features if reset else self._categorical
            numeric = given is None or len(given) == 0 or isinstance(given, str)
            preprocessing.check_table(X, self, np.float64 if numeric else None)
        validate_data(self, X, y, reset=reset, skip_check_array=True)
        if reset:
            self._categorical = preprocessing.categorical_columns(
                X,
                self.categorical_features,
                self.n_features_in_,
                getattr(self, "feature_names_in_", None),
            )
        return preprocessing.as_table(X, self._categorical, self)

    def __getstate__(self) -> dict[str, Any]:
        """The model as the bytes of its `.keras` file."""
        state = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.keras"
                state["model_"].save(path)
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.keras"
                path.write_bytes(state["model_"])
                state = {**state, "model_": keras.saving.load_model(path)}
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn 1.5
        return {"allow_nan": True}
