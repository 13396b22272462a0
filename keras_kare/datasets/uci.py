"""The UCI classification sets of Fernández-Delgado et al. 2014, in their own format."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_kare.datasets._arguments import data_folder

Pair = tuple[np.ndarray, np.ndarray]
"""Numbers of training rows, numbers of the other rows."""

FOLDS = 4
COUNTS = ("n_entradas", "n_clases", "n_patrons1", "n_patrons_entrena", "n_patrons_valida")


# Compared by identity: `==` of two arrays is no truth value.
@dataclass(frozen=True, eq=False)
class UCIDataset:
    """One data set, with the publishers' division into rows for each purpose.

    Attributes:
        name: Of the data set.
        x: Inputs, float64, `(n, d)`, as published: in most sets standardised already, by
            all rows.
        labels: Classes, int, `(n,)`, from 0.
        classes: How many classes there are.
        split: Rows to train on and to validate on, to choose hyperparameters by.
        folds: Four times rows to train on and to test on, to report.
    """

    name: str
    x: np.ndarray
    labels: np.ndarray
    classes: int
    split: Pair
    folds: tuple[Pair, ...]


def uci_names(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """List the data sets that a folder holds, sorted: each `NAME/NAME.txt` is one.

    Args:
        folder: The folder. Defaults to `None`: `uci/` in the folder that the environment
            variable `KERAS_KARE_DATA` names.

    Returns:
        Their names.

    Raises:
        ValueError: If no folder is named, or it holds no data set.
        FileNotFoundError: If the folder does not exist.

    Example:

    ```python
    from keras_kare.datasets import uci_names

    assert "iris" in uci_names()
    ```
    """
    path = data_folder("uci", folder)
    names = sorted(p.name for p in path.iterdir() if (p / f"{p.name}.txt").is_file())
    if not names:
        raise ValueError(
            "`folder` must hold data sets, each as NAME/NAME.txt and its files. Received: "
            f"folder={str(path)!r}"
        )
    return names


def load_uci(name: str, folder: str | os.PathLike[str] | None = None) -> UCIDataset:
    """Load one of the UCI classification sets of Fernández-Delgado et al. 2014.

    Reads the publishers' files: the header `NAME.txt`, the first data file that it names
    (some data sets have a second with test rows, which the four folds do not use, nor
    do later papers: Arora et al. 2020, Radhakrishnan et al. 2024), and the row numbers
    in `conxuntos.dat` and `conxuntos_kfold.dat`.

    Args:
        name: Of the data set, as in `uci_names`.
        folder: The folder of all data sets. Defaults to `None`: `uci/` in the folder that
            the environment variable `KERAS_KARE_DATA` names.

    Returns:
        A `UCIDataset`.

    Raises:
        ValueError: If no folder is named, there is no such data set, or its files
            contradict one another: other counts than in the header, a row or a class out
            of range, a row in both parts of a division, NaN.
        FileNotFoundError: If the folder or a file of the data set does not exist.

    Example:

    ```python
    from keras_kare.datasets import load_uci, preprocess, signed_one_hot

    data = load_uci("iris")
    train, test = data.folds[0]
    x, x_test = preprocess(data.x[train], data.x[test], rows=len(data.x))
    y = signed_one_hot(data.labels[train], data.classes)
    assert x.shape == (113, 4) and y.shape == (113, 3)
    ```

    References:
        Fernández-Delgado et al., "Do we need hundreds of classifiers to solve real world
        classification problems?", JMLR 15, 2014.
    """
    path = data_folder("uci", folder)
    if not isinstance(name, str) or name != Path(name).name:
        raise ValueError(
            "`name` must be the name of a data set, see `uci_names()`. Received: "
            f"name={name!r}"
        )
    if not (path / name / f"{name}.txt").is_file():
        close = difflib.get_close_matches(name, uci_names(path))
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise ValueError(
            f"`name` must be a data set in the folder, see `uci_names()`.{hint} "
            f"Received: name={name!r}"
        )
    path = path / name
    header = _header(path / f"{name}.txt")
    x, labels, classes = _rows(path, header)
    (split,) = _pairs(path / "conxuntos.dat", 1, len(x))
    stated = [header.get(key) for key in ("n_patrons_entrena", "n_patrons_valida")]
    for part, rows in zip(split, stated, strict=True):
        if rows is not None and int(rows) != len(part):
            raise ValueError(
                f"`conxuntos.dat` of `{name}` must list as many rows as `{name}.txt` "
                f"says: {rows}. Received: {len(part)} rows"
            )
    folds = _pairs(path / "conxuntos_kfold.dat", FOLDS, len(x))
    return UCIDataset(name, x, labels, classes, split, folds)


def _header(path: Path) -> dict[str, str]:
    """Read the lines `key= value` of a data set's text file; refuse it without some."""
    pairs = (line.split("=", 1) for line in _text(path).splitlines() if "=" in line)
    header = {key.strip(): value.strip() for key, value in pairs}
    for key in ("n_entradas", "n_clases", "fich1"):
        if not header.get(key):
            raise ValueError(
                f"`{path.name}` must have a line `{key}= ...`. Received: {sorted(header)}"
            )
    for key, value in header.items():
        if key in COUNTS and not value.isdecimal():
            raise ValueError(
                f"`{key}` in `{path.name}` must be a whole number. Received: {value!r}"
            )
    return header


def _rows(path: Path, header: dict[str, str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Read inputs, labels and the number of classes from the first data file."""
    file = path / header["fich1"]
    lines = [line for line in _text(file).splitlines() if line.strip()][1:]
    columns, classes = int(header["n_entradas"]), int(header["n_clases"])
    rows = int(header.get("n_patrons1", len(lines)))
    if not lines or len(lines) != rows:
        raise ValueError(
            f"`{file.name}` must have a line of names and the {rows} rows that "
            f"`{path.name}.txt` says. Received: {len(lines)} rows"
        )
    try:
        table = np.loadtxt(lines, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(
            f"`{file.name}` must hold numbers, equally many in each row. Received: {error}"
        ) from error
    if table.shape[1] != columns + 2:
        raise ValueError(
            f"`{file.name}` must have {columns + 2} columns: the row's number, {columns} "
            f"inputs, the class. Received: {table.shape[1]} columns"
        )
    if not np.all(np.isfinite(table)):
        row = int(np.argmin(np.all(np.isfinite(table), axis=1))) + 1
        raise ValueError(
            f"`{file.name}` must hold finite numbers. Received: NaN or Inf in row {row}"
        )
    wrong = ~np.isin(table[:, -1], np.arange(classes))
    if np.any(wrong):
        raise ValueError(
            f"Classes in `{file.name}` must be whole numbers from 0 to {classes - 1}. "
            f"Received: {table[wrong, -1][0]:g} in row {int(np.argmax(wrong)) + 1}"
        )
    return table[:, 1:-1].copy(), table[:, -1].astype(int), classes


def _pairs(path: Path, pairs: int, rows: int) -> tuple[Pair, ...]:
    """Read row numbers, two lines a pair: in range, and none in both lines or twice."""
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    name = f"{path.parent.name}/{path.name}"
    if len(lines) != 2 * pairs:
        raise ValueError(
            f"`{name}` must have {2 * pairs} lines of row numbers. Received: "
            f"{len(lines)} lines"
        )
    try:
        parts = [np.array(line, "int64") for line in lines]
    except ValueError as error:
        raise ValueError(
            f"`{name}` must hold whole numbers of rows. Received: {error}"
        ) from error
    found = []
    for pair in range(pairs):
        train, other = parts[2 * pair : 2 * pair + 2]
        both = np.concatenate([train, other])
        if both.min() < 0 or both.max() >= rows:
            raise ValueError(
                f"`{name}` must hold numbers of rows from 0 to {rows - 1}. Received: "
                f"{both.min()} to {both.max()}"
            )
        if len(np.unique(both)) < len(both):
            raise ValueError(
                f"Lines {2 * pair + 1} and {2 * pair + 2} of `{name}` must hold each row "
                f"once: a test row must be no training row. Received: {len(both)} "
                f"numbers of {len(np.unique(both))} rows"
            )
        found.append((train, other))
    return tuple(found)


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"A data set's folder must hold `{path.name}`. Received: {str(path.parent)!r}"
        )
    # Numbers are ASCII; a publisher's remark in Latin-1 is no reason to fail.
    return path.read_text(encoding="latin-1")
