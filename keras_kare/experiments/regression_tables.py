"""Tables with a measured number to predict: what packages ship, and UCI's columns.

The UCI sets in the format of Fernández-Delgado et al. 2014 are standardised already. Their
classes are neither targets nor inputs here: one column is predicted from the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn import datasets

from keras_kare.datasets import load_uci

Rows = tuple[np.ndarray, np.ndarray]
"""Inputs `(n, d)` and targets `(n,)`, float64."""


class Table(NamedTuple):
    """Where a table comes from.

    Attributes:
        load: From how many rows to draw, and a seed, to the rows. Tables that are not
            simulated return all that they have.
        simulated: Whether a formula made the targets.
    """

    load: Callable[[int, int], Rows]
    simulated: bool = False


def load_table(name: str, rows: int, seed: int) -> Rows:
    """Return a table's rows, at most so many, drawn by a seed and in the drawn order.

    Args:
        name: One of `TABLES`.
        rows: Most rows.
        seed: Of the drawing, and of simulations.
    """
    x, y = TABLES[name].load(rows, seed)
    chosen = np.random.default_rng(seed).permutation(len(x))[:rows]
    return np.asarray(x, "float64")[chosen], np.asarray(y, "float64")[chosen]


def _diabetes(rows: int, seed: int) -> Rows:
    x, y = datasets.load_diabetes(return_X_y=True)
    return x, y


def _linnerud(rows: int, seed: int) -> Rows:
    """Predict men's weight from how often they can do three exercises."""
    found = datasets.load_linnerud()
    return found.data, found.target[:, 0]


def _of_scikit_learn(load: Callable[..., Rows], column: int) -> Table:
    """Predict a column of a table of scikit-learn, by number, from the others."""

    def others(rows: int, seed: int) -> Rows:
        return _against_others(load(return_X_y=True)[0], column)

    return Table(others)


def _of_uci(name: str, column: int) -> Table:
    """Predict a column of a UCI set, by number, from the others."""

    def others(rows: int, seed: int) -> Rows:
        return _against_others(load_uci(name).x, column)

    return Table(others)


def _against_others(x: np.ndarray, column: int) -> Rows:
    return np.delete(x, column, axis=1), x[:, column]


def _friedman(make: Callable[..., Rows], noise: float) -> Table:
    def simulate(rows: int, seed: int) -> Rows:
        return make(rows, noise=noise, random_state=seed)

    return Table(simulate, simulated=True)


TABLES: dict[str, Table] = {
    "diabetes": Table(_diabetes),
    "linnerud_weight": Table(_linnerud),
    "iris_petal_width": _of_scikit_learn(datasets.load_iris, 3),
    "wine_proline": _of_scikit_learn(datasets.load_wine, 12),
    "breast_cancer_fractal_dimension": _of_scikit_learn(datasets.load_breast_cancer, 9),
    "abalone_shucked_weight": _of_uci("abalone", 5),
    "wine_quality_white_alcohol": _of_uci("wine-quality-white", 10),
    "parkinsons_harmonics_to_noise": _of_uci("parkinsons", 15),
    "statlog_vehicle_radius_ratio": _of_uci("statlog-vehicle", 3),
    "vertebral_column_spondylolisthesis": _of_uci("vertebral-column-2clases", 5),
    "cardiotocography_short_variability": _of_uci("cardiotocography-10clases", 7),
    "statlog_heart_maximum_rate": _of_uci("statlog-heart", 7),
    "breast_cancer_prognostic_tumour_size": _of_uci("breast-cancer-wisc-prog", 31),
    "ozone_humidity": _of_uci("ozone", 53),
    "steel_plates_minimum_luminosity": _of_uci("steel-plates", 8),
    "yeast_signal_peptide": _of_uci("yeast", 0),
    "arrhythmia_qrs_duration": _of_uci("arrhythmia", 4),
    "friedman1": _friedman(datasets.make_friedman1, 1.0),
    "friedman2": _friedman(datasets.make_friedman2, 125.0),
    "friedman3": _friedman(datasets.make_friedman3, 0.1),
}
"""All tables by name; the part of a name after its source's says what is predicted."""
