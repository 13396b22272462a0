"""The Higgs boson challenge of 2014, complete rows only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_kare.datasets._arguments import check_fraction, check_seed, data_folder, extra
from keras_kare.datasets.split import Split

MISSING = -999.0
AUTHORS_SEED = 42
FEATURES = 30


def higgs(
    folder: str | os.PathLike[str] | None = None,
    weight_column: bool = False,
    seed: int | None = None,
    train_fraction: float = 0.5,
) -> Split:
    """Load the complete rows of the challenge's `training.csv`: signal -1, background +1.

    Rows with a missing value (-999.0) are left out. The others are split at random, with
    the same share of classes in both parts, and every column is divided by its largest
    training value, as the authors do.

    The challenge's `Weight` is no feature: it is computed from the truth of a simulated
    event, separates the two classes perfectly, and is unknown at prediction time. The
    published code left it in; `weight_column=True` is for comparison with its numbers
    alone.

    Args:
        folder: The folder of `training.csv`. Defaults to `None`: `higgs/` in the folder
            that the environment variable `KERAS_KARE_DATA` names.
        weight_column: Whether `Weight`, which gives the label away, is a 31st feature.
            Defaults to `False`.
        seed: Of the split. Defaults to `None`: 42, the authors' one split.
        train_fraction: Share of training rows. Defaults to `0.5`.

    Returns:
        A `Split` in float64: `x` of shape `(n, 30)`, or `(n, 31)` with `Weight` last, `y`
        of shape `(n, 1)` in {-1, 1}, and the same of the test rows.

    Raises:
        ValueError: If no folder is named, an argument is out of its range, or the file is
            not the challenge's.
        FileNotFoundError: If the folder or its `training.csv` does not exist.
        ImportError: If scikit-learn is not installed.

    Example:

    ```python
    from keras_kare.datasets import higgs

    data = higgs()
    assert data.x.shape[1] == 30 and data.x.max() == 1.0
    ```

    References:
        Adam-Bourdarios et al., "The Higgs boson machine learning challenge", JMLR
        Workshop and Conference Proceedings 42, 2015; prepared as in arXiv:2505.11347.
    """
    if not isinstance(weight_column, bool):
        raise ValueError(
            "`weight_column` must be True or False. Received: "
            f"weight_column={weight_column!r}"
        )
    seed = AUTHORS_SEED if seed is None else seed
    check_seed(seed)
    check_fraction("train_fraction", train_fraction)
    path = data_folder("higgs", folder) / "training.csv"
    if not path.is_file():
        raise FileNotFoundError(
            "`folder` must hold the challenge's `training.csv`. Received: "
            f"folder={str(path.parent)!r}"
        )
    x, y = _read(path, weight_column)
    complete = np.all(x != MISSING, axis=1)
    x, y = x[complete], y[complete]
    split = extra("sklearn.model_selection", "scikit-learn", "sklearn", "higgs")
    try:
        x, x_test, y, y_test = split.train_test_split(
            x, y, train_size=train_fraction, random_state=seed, stratify=y[:, 0]
        )
    except ValueError as error:
        raise ValueError(
            "`train_fraction` must leave rows of both classes in either part. Received: "
            f"train_fraction={train_fraction!r}, {len(y)} complete rows of {path.name} "
            f"({error})"
        ) from error
    largest = x.max(axis=0)
    largest[largest == 0.0] = 1.0
    return Split(x / largest, y, x_test / largest, y_test)


def _read(path: Path, weight_column: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read all rows: features `(n, 30)` or `(n, 31)`, labels `(n, 1)` in {-1, 1}."""
    with path.open(encoding="utf-8") as file:
        names = [name.strip().strip('"') for name in file.readline().split(",")]
        columns = [k for k, name in enumerate(names) if name.startswith(("DER_", "PRI_"))]
        if len(columns) != FEATURES or not {"Weight", "Label"} <= set(names):
            raise ValueError(
                f"`{path.name}` must be the challenge's file: a header with {FEATURES} "
                "columns DER_* and PRI_*, Weight and Label. Received: "
                f"{len(columns)} columns DER_* and PRI_*, in a header that begins "
                f"{','.join(names)[:80]!r}"
            )
        if weight_column:
            columns.append(names.index("Weight"))
        label = names.index("Label")
        try:
            table = np.loadtxt(
                file,
                delimiter=",",
                usecols=[*columns, label],
                converters={label: _target},
                encoding="utf-8",
                comments=None,
                ndmin=2,
            )
        except ValueError as error:
            raise ValueError(
                f"`{path.name}` must hold numbers, and labels s and b. Received: {error}"
            ) from error
    if not np.all(np.isfinite(table)):
        row = int(np.argmin(np.all(np.isfinite(table), axis=1))) + 1
        raise ValueError(
            f"`{path.name}` must hold finite numbers ({MISSING} where one is missing). "
            f"Received: NaN or Inf in row {row}"
        )
    return table[:, :-1], table[:, -1:]


def _target(label: str) -> float:
    targets = {"s": -1.0, "b": 1.0}
    if label.strip().strip('"') not in targets:
        raise ValueError(f"label {label!r}")
    return targets[label.strip().strip('"')]
