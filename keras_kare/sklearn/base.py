"""The base of both estimators: tables in, trained and solved kernel machines kept."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from keras_kare._linalg import threads_for
from keras_kare.kernels import memory
from keras_kare.recipes.cross_fitting import Evidence, Losses, cross_fit, folds_of
from keras_kare.recipes.defaults import DEFAULTS
from keras_kare.recipes.ensemble import Ensemble, refit
from keras_kare.recipes.many_rows import Table, divided, fit_many
from keras_kare.recipes.perceptrons import LOCK, draw_weights, wider, workbench
from keras_kare.recipes.recipe import (
    RIDGES,
    ROUGHS,
    SHARES,
    Key,
    Recipe,
    Start,
    checkpoints_to,
)
from keras_kare.recipes.workbench import Workbench
from keras_kare.sklearn import counting, preprocessing
from keras_kare.sklearn._compat import validate_data
from keras_kare.sklearn.parameters import check_parameters

FEWEST = 20
"""Fewest rows that a kernel is trained on: fewer cannot say when to stop."""

MOST_CHOOSING = 2000
"""Most rows that cross-fitting takes: its eigenproblems grow with their cube."""

EXACT_ROWS = 5000
"""Most rows that machines are solved on exactly, unless told otherwise."""

AUTO_CENTRES = 1000
"""How many of more rows are centres, unless told otherwise."""

RATED = 500
"""Most training rows at which importances of features are looked at."""

MATRICES = 9
"""About how many matrices of all pairs of rows exact machines hold at a time."""

MOST_SEED = 2**31 - 1


APPROXIMATED = (
    "Machines of {rows} rows are approximated by {centres} of them (kernel errors "
    "{kernel_error}): a number as `centres` says that this is meant, and `centres=None` "
    "solves them exactly."
)


class KAREEstimator(BaseEstimator):
    """A kernel machine on tables, whose kernel is trained with KARE.

    Subclasses turn targets into centred and scaled columns, and outputs back. Their
    documentation lists the parameters.
    """

    _categorical: list[int]
    _ensemble: Ensemble
    _importances: np.ndarray | None
    _network: tuple[tuple[int, ...], str, str, float]
    approximation_: dict[str, Any] | None

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
        random_state: Any = DEFAULTS.random_state,
        verbose: int = DEFAULTS.verbose,
    ):
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.kare_ridge = kare_ridge
        self.ridge = ridge
        self.batch_size = batch_size
        self.folds = folds
        self.networks = networks
        self.machines = machines
        self.laplace = laplace
        self.centres = centres
        self.time_budget = time_budget
        self.categorical_features = categorical_features
        self.few_values = few_values
        self.standardize = standardize
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _checked(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Check parameters and rows; return the table and how often its rows count."""
        check_parameters(self)
        table = self._table(X, y, reset=True)
        check_consistent_length(table, y)
        if len(table) < 2:
            raise ValueError(
                "`X` must have at least two rows: a kernel compares rows. "
                "Received: n_samples=1"
            )
        return table, counting.check_sample_weight(sample_weight, len(table))

    def _fit_inputs(self, table: np.ndarray) -> np.ndarray:
        """Fit the preprocessor, and return inputs, `(n, d)`."""
        self._importances = None
        self.preprocessor_ = preprocessing.make_preprocessor(
            self.n_features_in_, self._categorical, self.standardize, self.few_values
        )
        return np.asarray(self.preprocessor_.fit_transform(table), "float32")

    def _fit_machines(
        self,
        x: np.ndarray,
        y: np.ndarray,
        order: np.ndarray,
        weights: np.ndarray | None = None,
        losses: Losses | None = None,
    ) -> Evidence:
        """Choose machines by rows that did not train, and solve them.

        Args:
            x: `(n, d)`.
            y: Centred and scaled, `(n, c)`.
            order: What folds should be balanced in, `(n,)`.
            weights: How often each row counts, `(n,)`. Defaults to once.
            losses: As for `cross_fit`.
        """
        rng = check_random_state(self.random_state)
        sizes = tuple(int(size) for size in self.hidden_sizes)
        # kept: `set_params` before `predict` is for the next fit
        self._network = sizes, self.activation, self.dtype, float(self.kare_ridge)
        half = end = None
        if self.time_budget is not None:
            begun = time.perf_counter()
            half, end = (begun + part * self.time_budget for part in (0.5, 1.0))
        few = self._centres(len(x))
        with LOCK:
            if few is None:
                self._refuse_too_many(len(x))
                evidence = self._fit_all(x, y, order, weights, losses, rng, half, end)
            else:
                table = divided(x, y, weights, order, few, rng)
                evidence = self._fit_centres(table, rng, half, end)
        self.machines_ = self._ensemble.keys
        self.history_ = _history(evidence.errors)
        if self.verbose:
            for key in self.machines_:
                error = evidence.errors.get(key, np.nan)
                print(f"{key}: error in rows not trained on {error:.4g}")
            if self.approximation_ is not None:
                print(self.approximation_)
        return evidence

    def _fit_all(
        self,
        x: np.ndarray,
        y: np.ndarray,
        order: np.ndarray,
        weights: np.ndarray | None,
        losses: Losses | None,
        rng: np.random.RandomState,
        half: float | None,
        end: float | None,
    ) -> Evidence:
        """Choose machines by cross-fitting, and solve them on all rows."""
        recipe, n = self._recipe(len(x)), len(x)
        self.approximation_ = None
        # few rows: each is predicted by all others
        folds = n if n < FEWEST else min(self.folds, n)
        rows = np.flatnonzero(folds_of(order, -(-n // MOST_CHOOSING), rng) == 0)
        fold_of = folds_of(order[rows], folds, rng)
        with threads_for(len(rows)):
            bench = self._bench(x.shape[1])
            starts = _starts(bench, x.shape[1], folds + self.networks, rng)
            keys, evidence = cross_fit(
                bench, recipe, x, y, rows, fold_of, starts[:folds], half, weights, losses
            )
            _warn_untrained(recipe, evidence, self.time_budget)
            self._ensemble = refit(
                bench, recipe, x, y, keys, starts[folds:], end, weights, rows
            )
        return evidence

    def _fit_centres(
        self,
        table: Table,
        rng: np.random.RandomState,
        half: float | None,
        end: float | None,
    ) -> Evidence:
        """Choose machines by rows held out, and solve them on some rows as centres."""
        bench, recipe = self._bench(table.x.shape[1]), self._recipe(len(table.rest))
        starts = _starts(bench, table.x.shape[1], self.networks, rng)
        self._ensemble, evidence = fit_many(bench, recipe, table, starts, half, end)
        _warn_untrained(recipe, evidence, self.time_budget)
        self.approximation_ = {
            "rows": len(table.rest),
            "held_out": len(table.held),
            "centres": len(table.centres),
            "kernel_error": [solved.kernel_error for solved in self._ensemble.solved],
        }
        if self.centres == "auto":
            warnings.warn(APPROXIMATED.format(**self.approximation_), stacklevel=4)
        return evidence

    def _centres(self, n: int) -> int | None:
        """Return how many rows are centres; `None` where all are."""
        if self.centres is None or n < FEWEST:
            return None
        if self.centres == "auto":
            return AUTO_CENTRES if n > EXACT_ROWS else None
        few = int(self.centres)
        return few if few < n else None

    def _refuse_too_many(self, n: int) -> None:
        """Refuse machines on all rows that do not fit into memory."""
        needed, free = MATRICES * 8.0 * n**2, memory.available()
        if n > EXACT_ROWS and needed > free:
            raise ValueError(
                f"`centres` must say how many of the {n} rows are centres: machines on "
                f"all of them take about {memory.in_words(needed)}, where "
                f"{memory.in_words(free)} are free. "
                f"Received: centres={self.centres!r}"
            )

    def _recipe(self, n: int) -> Recipe:
        learns = n >= FEWEST and self.epochs > 0
        trains = learns and len(self.hidden_sizes) > 0  # else weights do not matter
        rough = [kind for kind in ROUGHS if self.laplace and (learns or not kind.rounds)]
        return Recipe(
            learning_rate=self.learning_rate,
            steps=checkpoints_to(self.epochs if trains else 0),
            batch_size=self.batch_size,
            shares=SHARES if self.laplace else SHARES[:1],
            rough=tuple(rough),
            ridges=RIDGES if self.ridge == "auto" else (float(self.ridge),),
            machines=self.machines,
        )

    def _bench(self, inputs: int) -> Workbench:
        return workbench(wider(inputs), *self._network)

    def _inputs(self, X: Any) -> np.ndarray:
        """Return checked and transformed inputs of a fitted estimator, `(n, d)`."""
        check_is_fitted(self)
        table = self._table(X, "no_validation", reset=False)
        return np.asarray(self.preprocessor_.transform(table), "float32")

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """Return the machines' outputs in the units of the targets, `(n, c)`."""
        with LOCK:
            outputs = self._ensemble.predict(self._bench(x.shape[1]), x)
        return np.asarray(self.target_mean_ + self.target_scale_ * outputs)

    @property
    def feature_importances_(self) -> np.ndarray:
        """How strongly predictions depend on each column of `X`, `(d,)`; they sum to 1.

        The mean square of the predictions' derivative by a column, times its variance, over
        (at most 500) training rows: exact derivatives of the kernel machine. Of what a
        column became, such as its categories, the sum. For targets of several columns, the
        mean over these, each divided by its standard deviation. Zero for all where
        predictions are constant. Computed when first asked for.

        References:
            - Sobol, Kucherenko, "Derivative based global sensitivity measures and their
              link with global sensitivity indices", 2009.
            - Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in
              neural networks and backpropagation-free machine learning models", 2024: the
              diagonal of the average gradient outer product.
        """
        check_is_fitted(self)
        if self._importances is None:
            some = slice(None, None, max(1, -(-len(self._ensemble.anchors) // RATED)))
            x, counts = self._ensemble.anchors[some], self._ensemble.weights
            mean = functools.partial(
                np.average, axis=0, weights=None if counts is None else counts[some]
            )
            with LOCK:
                slopes = self._ensemble.slopes(self._bench(x.shape[1]), x)
            squares = np.mean(slopes**2, axis=2)  # of scaled targets
            each = mean(squares) * mean((x - mean(x)) ** 2)
            columns = preprocessing.sources(self.preprocessor_)
            found = np.bincount(columns, each, self.n_features_in_)
            self._importances = found / max(np.sum(found), np.finfo("float64").tiny)
        return self._importances

    def _table(self, X: Any, y: Any, reset: bool) -> np.ndarray:
        """Return `preprocessing.as_table` of `X`; check or remember names of columns."""
        if not preprocessing.is_frame(X):
            X = preprocessing.dense(X)
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
        table = preprocessing.as_table(X, self._categorical, self)
        if reset:
            preprocessing.check_categories(table, self._categorical, X)
        return table

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn 1.5
        return {"allow_nan": True}


def _starts(
    bench: Workbench, inputs: int, count: int, rng: np.random.RandomState
) -> list[Start]:
    """Draw where networks start."""
    return [
        Start(draw_weights(bench.network, rng, inputs=inputs), int(rng.randint(MOST_SEED)))
        for _ in range(count)
    ]


def _warn_untrained(recipe: Recipe, evidence: Evidence, budget: float | None) -> None:
    """Say so where only random networks could be chosen."""
    if len(recipe.steps) < 2 or any(key.steps for key in evidence.errors):
        return
    if evidence.late:
        what = (
            f"There was no time to train; a larger `time_budget` (now {budget:g} s) helps"
        )
    else:
        what = (
            "Training failed, since a loss or a kernel was not finite; a smaller "
            f"`learning_rate` (now {recipe.learning_rate:g}) may help"
        )
    warnings.warn(
        f"{what}. The kernels are those of random networks.", RuntimeWarning, stacklevel=5
    )


def _history(errors: dict[Key, float]) -> dict[str, list[float]]:
    """Return the least error of cross-fitting after each number of steps."""
    steps = sorted({key.steps for key in errors})
    least = [min(e for key, e in errors.items() if key.steps == count) for count in steps]
    return {"steps": [float(count) for count in steps], "error": least}
