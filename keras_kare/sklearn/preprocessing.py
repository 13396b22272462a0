"""From tables with numbers, categories and holes to numbers, by scikit-learn's parts.

- **Numeric columns.** Holes take the column's median (`SimpleImputer`), with an indicator
  column where training rows had holes. Then, with `standardize=True`, all get zero mean and
  unit variance (`StandardScaler`).
- **Numeric columns of few values** (3 to `few_values`) also get a column for each value:
  such numbers may be codes, whose order means nothing.
- **Categorical columns.** One column a category (`OneHotEncoder`). A hole is a category.
  At most `MAX_CATEGORIES`, of which the last gathers the rarest. A category that training
  did not see counts as rare; where there are no rare ones, as none.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import check_array

from keras_kare.kernels import memory
from keras_kare.recipes.few_values import FewValues
from keras_kare.sklearn._compat import ALLOW_NAN

COPIES = 4
"""About how many times a table is held while it is prepared."""

MAX_CATEGORIES = 50
"""Most columns that a categorical feature becomes."""

NUMBERS = (Real, Decimal)
"""What numbers are among objects (and no truth values)."""

DATES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)
"""What dates are among objects."""


def is_frame(X: Any) -> bool:
    """Tell whether `X` is a pandas `DataFrame`, without importing pandas."""
    return hasattr(X, "iloc") and hasattr(X, "dtypes") and getattr(X, "ndim", 0) == 2


def categorical_columns(
    X: Any, categorical_features: Any, n_features: int, names: Sequence[str] | None
) -> list[int]:
    """Return the numbers of the categorical columns.

    Raises:
        ValueError: If a name or number is unknown, or a data frame's column is neither
            numeric nor categorical.
    """
    if categorical_features is None:
        return []
    if isinstance(categorical_features, str):
        if categorical_features != "auto":
            raise ValueError(
                '`categorical_features` must be "auto", None, or a list of columns. '
                f"Received: categorical_features={categorical_features!r}"
            )
        return _by_type(X) if is_frame(X) else []
    given = list(categorical_features)
    if given and all(isinstance(item, bool | np.bool_) for item in given):
        if len(given) != n_features:
            raise ValueError(
                "A mask as `categorical_features` must have one entry for each of the "
                f"{n_features} columns of `X`. Received: {len(given)} entries"
            )
        return [int(i) for i in np.flatnonzero(given)]
    return sorted({_number(item, n_features, names) for item in given})


def dense(X: Any) -> Any:
    """Return a sparse table written out, anything else as it is.

    Raises:
        ValueError: If it does not fit into memory.
    """
    if not issparse(X):
        return X
    needed, free = COPIES * 8.0 * X.shape[0] * X.shape[1], memory.available()
    if needed > free:
        raise ValueError(
            "`X` must fit into memory when it is written out: reduce its columns first, "
            "for example with `sklearn.decomposition.TruncatedSVD`. Received: sparse X of "
            f"shape {X.shape}, which takes {memory.in_words(needed)} where "
            f"{memory.in_words(free)} are free"
        )
    return X.toarray()


def check_table(X: Any, estimator: Any, dtype: Any) -> np.ndarray:
    """Return a two-dimensional array; holes are allowed.

    Raises:
        ValueError: If there are text or dates where `dtype` is numeric; their columns are
            named.
        TypeError, ValueError: scikit-learn's own, for complex input, infinite values, or no
            rows.
    """
    if is_frame(X) and dtype is not None and "O" in _kinds(X):
        X = X.astype(object).where(X.notna(), np.nan)  # numbers among pandas' own holes
    if dtype is not None:
        _refuse_dates(X)
        _refuse_text(X)
    return np.asarray(
        check_array(X, dtype=dtype, estimator=estimator, input_name="X", **ALLOW_NAN)
    )


def _refuse_text(X: Any) -> None:
    """Refuse columns of text where numbers must be, by their names or numbers."""
    frame = is_frame(X)
    table: Any = X if frame else np.asarray(X)
    if getattr(table, "ndim", 0) != 2 or (not frame and table.dtype.kind not in "OUS"):
        return
    for i, name in enumerate(X.columns if frame else range(table.shape[1])):
        column = table.iloc[:, i] if frame else table[:, i]
        if frame and getattr(column.dtype, "kind", "O") in "iufcb":
            continue
        for value in np.asarray(column, dtype=object):
            if isinstance(value, str | bytes) and not _is_number(value):
                raise ValueError(
                    f"Column {name!r} of `X` must hold numbers, or be listed in "
                    f"`categorical_features`. Received: {str(value)[:40]!r} in column "
                    f"{name!r}"
                )


def _is_number(text: str | bytes) -> bool:
    """Tell whether text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_table(X: Any, categorical: Sequence[int], estimator: Any) -> np.ndarray:
    """Return a float64 array, or objects where there are categorical columns.

    Raises:
        TypeError, ValueError: As `check_table`.
    """
    if not len(categorical):
        return check_table(X, estimator, np.float64)
    frame = is_frame(X)
    if not frame:
        X = check_table(X, estimator, None)
    rows, columns = X.shape
    numeric = [i for i in range(columns) if i not in set(categorical)]
    table = np.empty((rows, columns), dtype=object)
    if numeric:
        part = X.iloc[:, numeric] if frame else X[:, numeric]
        table[:, numeric] = check_table(part, estimator, np.float64)
    for i in categorical:
        table[:, i] = _categories(X.iloc[:, i] if frame else X[:, i])
    return table


def check_categories(table: np.ndarray, categorical: Sequence[int], X: Any) -> None:
    """Refuse columns whose categories cannot be sorted, by their names or numbers.

    Raises:
        ValueError: If there are lists, or text among something else.
    """
    for i in categorical:
        types = {type(value) for value in table[:, i] if value is not np.nan}
        text = {issubclass(each, str) for each in types}
        if len(text) > 1 or any(each.__hash__ is None for each in types):
            name = X.columns[i] if is_frame(X) else i
            raise ValueError(
                f"Column {name!r} of `X` must hold categories of one type, all text or all "
                "numbers: turn them into text. Received: "
                f"{', '.join(sorted(each.__name__ for each in types))} in column {name!r}"
            )


def make_preprocessor(
    n_features: int, categorical: Sequence[int], standardize: bool, few_values: int
) -> ColumnTransformer:
    """Make the transformer of what `as_table` returns."""
    numeric = [i for i in range(n_features) if i not in set(categorical)]
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    scaler = StandardScaler() if standardize else "passthrough"
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=MAX_CATEGORIES,
        sparse_output=False,
    )
    transformer = ColumnTransformer(
        [
            ("numeric", make_pipeline(imputer, scaler), numeric),
            ("few_values", FewValues(few_values), numeric),
            ("categorical", encoder, list(categorical)),
        ],
        sparse_threshold=0.0,
    )
    return transformer.set_output(transform="default")


def sources(preprocessor: ColumnTransformer) -> np.ndarray:
    """Return which column of `as_table` each column came from that it was turned into."""
    columns = {name: np.array(of, int) for name, _, of in preprocessor.transformers_}
    parts, found = preprocessor.named_transformers_, []
    if len(numeric := columns["numeric"]):
        missing = parts["numeric"][0].indicator_.features_
        few = [len(values) for values in parts["few_values"].values_]
        found += [numeric, numeric[missing], np.repeat(numeric, few)]
    if len(categorical := columns["categorical"]):
        encoder = parts["categorical"]
        counts = np.array([len(known) for known in encoder.categories_])
        for i, rare in enumerate(encoder.infrequent_categories_):
            counts[i] -= 0 if rare is None else len(rare) - 1  # share a column
        found.append(np.repeat(categorical, counts))
    return np.concatenate(found)


def _by_type(frame: Any) -> list[int]:
    """Return columns of text, categories and truth values; the others must be numbers."""
    kinds = [
        _kind_of_objects(frame.iloc[:, i]) if kind == "O" else kind
        for i, kind in enumerate(_kinds(frame))
    ]
    pairs = zip(frame.columns, kinds, strict=True)
    _refuse_columns([name for name, kind in pairs if kind not in "iufcbO"])
    return [i for i, kind in enumerate(kinds) if kind in "bO"]


def _refuse_columns(names: list[Any]) -> None:
    """Refuse columns, of dates or of what is unknown, if there are some."""
    if names:
        raise ValueError(
            "Columns must hold numbers or categories; turn dates into numbers (for example "
            f"days since a day). Received: neither in columns {names}"
        )


def _refuse_dates(X: Any) -> None:
    """Refuse columns of dates where numbers must be: NumPy has numbers for their holes."""
    if is_frame(X):
        pairs = zip(X.columns, _kinds(X), strict=True)
        _refuse_columns([name for name, kind in pairs if kind in "mM"])
    elif getattr(X, "ndim", 0) == 2 and X.dtype.kind in "mM":
        _refuse_columns([*range(X.shape[1])])


def _kind_of_objects(column: Any) -> str:
    """Return "f" for a pandas column of numbers, "M" for one with dates, else "O"."""
    if column.dtype.name == "category":
        return "O"
    values = np.asarray(column, dtype=object)[~np.asarray(column.isna(), bool)]
    if any(isinstance(value, DATES) or hasattr(value, "to_timestamp") for value in values):
        return "M"  # also a pandas `Period`
    numbers = [
        isinstance(value, NUMBERS) and not isinstance(value, bool | np.bool_)
        for value in values
    ]
    return "f" if numbers and all(numbers) else "O"


def _kinds(frame: Any) -> list[str]:
    """Return NumPy's letters for the types of columns; "O" for text and categories."""
    return [getattr(dtype, "kind", "O") for dtype in frame.dtypes]


def _number(item: Any, n_features: int, names: Sequence[str] | None) -> int:
    if isinstance(item, str):
        if names is None or item not in list(names):
            raise ValueError(
                "`categorical_features` names a column that `X` does not have. "
                f"Received: {item!r}, columns {None if names is None else list(names)}"
            )
        return list(names).index(item)
    whole = isinstance(item, int | np.integer) and not isinstance(item, bool)
    if not whole or not -n_features <= item < n_features:
        raise ValueError(
            "`categorical_features` must hold names or numbers of columns of `X`, which "
            f"has {n_features}. Received: {item!r}"
        )
    return int(item) % n_features


def _categories(column: Any) -> np.ndarray:
    """Return values as objects, with NaN for every kind of hole."""
    if hasattr(column, "isna"):  # a pandas column
        holes = np.asarray(column.isna())
        values = np.array(column.astype(object), dtype=object)
    else:
        values = np.array(column, dtype=object)
        holes = np.array([value is None or value != value for value in values])
    values[holes] = np.nan
    return values
