"""Rankings: by hand on small tables, and as published on the 179 classifiers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_kare.experiments import ranking
from keras_kare.experiments.ranking import (
    against_published,
    average_accuracy,
    differences,
    duels,
    friedman_rank,
    friedman_test,
    pma,
    share_of_best,
    table,
)

NAN = float("nan")
# Rows are data sets. Ranks by row: (1, 2, 3), (1.5, 1.5, 3), (3, 1, 2), (1.5, 3, 1.5).
BY_HAND = np.array(
    [[100.0, 95.0, 90.0], [80.0, 80.0, 60.0], [45.0, 50.0, 47.5], [70.0, 63.0, 70.0]]
)


@pytest.fixture
def named() -> pd.DataFrame:
    return pd.DataFrame(BY_HAND, index=list("wxyz"), columns=["one", "two", "three"])


@pytest.fixture
def published_csv(reference_folder: Path) -> Path:
    return reference_folder / "uci_179_classifiers.csv"


def test_ranks_by_hand() -> None:
    np.testing.assert_allclose(friedman_rank(BY_HAND), [7 / 4, 7.5 / 4, 9.5 / 4])


def test_averages_by_hand() -> None:
    mean, sd = average_accuracy(BY_HAND)
    np.testing.assert_allclose(mean, [73.75, 72.0, 66.875])
    np.testing.assert_allclose(sd, np.std(BY_HAND, axis=0))


def test_shares_of_the_best_by_hand() -> None:
    # By row: (1, .95, .9), (1, 1, .75), (.9, 1, .95), (1, .9, 1); limits are included.
    np.testing.assert_allclose(share_of_best(BY_HAND, 0.9), [100, 100, 75])
    np.testing.assert_allclose(share_of_best(BY_HAND, 0.95), [75, 75, 50])
    np.testing.assert_allclose(share_of_best(BY_HAND, 1.0), [75, 50, 25])
    mean, sd = pma(BY_HAND)
    np.testing.assert_allclose(mean, [97.5, 96.25, 90.0])
    np.testing.assert_allclose(sd[0], 100 * np.std([1, 1, 0.9, 1]))


def test_duels_by_hand() -> None:
    assert duels(BY_HAND, 0).tolist() == [[0, 4, 0], [2, 1, 1], [2, 1, 1]]
    assert duels(BY_HAND, 2).tolist() == [[1, 1, 2], [1, 0, 3], [0, 4, 0]]


def test_differences_by_hand(named: pd.DataFrame) -> None:
    named.loc["z", "three"] = NAN  # compared on the others: 10, 20 and -2.5
    found = differences(named, "one")
    assert list(found.index) == ["two", "three"]
    more = np.array([5.0, 0.0, -5.0, 7.0])
    error = np.std(more, ddof=1) / 2.0
    assert list(found.loc["two"]) == pytest.approx([1.75, error, 4, "tie"])
    more = np.array([10.0, 20.0, -2.5])
    expected = [more.mean(), np.std(more, ddof=1) / np.sqrt(3.0), 3, "better"]
    assert list(found.loc["three"]) == pytest.approx(expected)
    assert differences(named, "three").loc["one", "verdict"] == "worse"


def test_one_data_set_and_equals_are_ties(named: pd.DataFrame) -> None:
    named["four"] = named["one"]
    assert differences(named, "one").loc["four", "verdict"] == "tie"
    assert set(differences(named.iloc[:1], "one")["verdict"]) == {"tie"}
    named["five"] = NAN
    assert "five" not in differences(named, "one").index
    with pytest.raises(ValueError, match=r"`method` must be a column.*Received: .*'six'"):
        differences(named, "six")


def test_friedman_by_its_formula() -> None:
    # Without ties: χ² = 12 n / (k (k + 1)) Σ (r - (k + 1) / 2)², k - 1 degrees of freedom.
    values = np.array([[3.0, 2, 1], [3, 2, 1], [3, 1, 2], [3, 2, 1]])
    ranks = friedman_rank(values)
    statistic = 12 * 4 / (3 * 4) * np.sum((ranks - 2.0) ** 2)
    assert friedman_test(values) == pytest.approx(np.exp(-statistic / 2.0))  # of 2 degrees


def test_ties_of_all_methods() -> None:
    values = np.full((3, 4), 50.0)
    assert friedman_test(values) == 1.0
    assert friedman_rank(values).tolist() == [2.5] * 4
    assert share_of_best(values, 0.95).tolist() == [100.0] * 4


def test_rounding_of_averages_is_a_tie() -> None:
    values = np.array([[0.1 + 0.2, 0.3, 0.2]]) * 100
    assert values[0, 0] != values[0, 1]
    assert friedman_rank(values).tolist() == [1.5, 1.5, 3.0]
    assert duels(values, 0).tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_nobody_is_right() -> None:
    values = np.array([[0.0, 0.0, NAN], [50.0, 40.0, 50.0]])
    assert share_of_best(values, 0.9).tolist() == [100.0, 50.0, 50.0]


def test_missing_values() -> None:
    values = np.array([[90.0, NAN, 70.0], [60.0, 80.0, 40.0], [50.0, 60.0, 40.0]])
    mean, _ = average_accuracy(values)
    np.testing.assert_allclose(mean, [200 / 3, 70, 50])
    # The missing one counts as (90 + 70) / 2: second.
    np.testing.assert_allclose(friedman_rank(values), [5 / 3, 4 / 3, 3])
    np.testing.assert_allclose(share_of_best(values, 0.9), [100 / 3, 200 / 3, 0])
    np.testing.assert_allclose(pma(values)[0][1], 200 / 3)
    assert duels(values, 1).tolist() == [[2, 0, 0], [0, 2, 0], [2, 0, 0]]
    assert friedman_test(values) == pytest.approx(friedman_test(values[1:]))
    assert table(values)["data_sets"].sort_index().tolist() == [3, 2, 3]


def test_table_has_the_metrics_in_order(named: pd.DataFrame) -> None:
    found = table(named, method="one")
    assert found.index.tolist() == ["one", "two", "three"]
    assert found.loc["two", ["wins", "ties", "losses"]].tolist() == [2, 1, 1]
    for column, values in {
        "rank": friedman_rank(BY_HAND),
        "accuracy": average_accuracy(BY_HAND)[0],
        "accuracy_sd": average_accuracy(BY_HAND)[1],
        "p90": share_of_best(BY_HAND, 0.9),
        "p95": share_of_best(BY_HAND, 0.95),
        "pma": pma(BY_HAND)[0],
        "pma_sd": pma(BY_HAND)[1],
    }.items():
        np.testing.assert_array_equal(found.loc[named.columns, column], values)


def test_order_of_methods_and_of_sets_does_not_matter(named: pd.DataFrame) -> None:
    shuffled = named.iloc[[2, 0, 3, 1], [1, 2, 0]]
    pd.testing.assert_frame_equal(table(named), table(shuffled))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: table(np.zeros(3)), "row for each data set"),
        (lambda: table(np.zeros((0, 3))), "row for each data set"),
        (lambda: table(np.array([[0.5, 0.9]])), "percent"),
        (lambda: table(np.array([[50.0, 109.0]])), "percent"),
        (lambda: table(np.array([[50.0, -1.0]])), "percent"),
        (lambda: table(np.array([[50.0, NAN]])), "1 empty columns, 0 empty rows"),
        (
            lambda: table(np.array([[NAN, NAN], [5.0, 5.0]])),
            "0 empty columns, 1 empty rows",
        ),
        (lambda: table(BY_HAND, method="one"), "`method` must be a column"),
        (lambda: table(pd.DataFrame(BY_HAND, columns=list("aab"))), "each method once"),
        (lambda: duels(BY_HAND, 3), "number of a column"),
        (lambda: duels(BY_HAND, -1), "number of a column"),
        (lambda: share_of_best(BY_HAND, 90), "`share` must be a fraction"),
        (lambda: friedman_test(BY_HAND[:, :2]), "three methods"),
        (lambda: friedman_test(BY_HAND[:1]), "two data sets"),
    ],
)
def test_errors_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"(?s){re.escape(message)}.*Received: |Received: .*{re.escape(message)}",
    ):
        call()


def test_reproduces_the_published_ranks(published_csv: Path) -> None:
    """Of Fernández-Delgado et al. 2014: their best eight, ranks and average accuracies,
    and of their abstract PMA and P90.
    """
    published = {
        "parRF_caret": (32.9, 82.0),
        "rf_caret": (33.1, 82.3),
        "svm_C": (36.8, 81.8),
        "svmPoly_caret": (38.0, 81.2),
        "rforest_R": (39.4, 81.9),
        "elm_kernel_matlab": (39.6, 82.0),
        "svmRadialCost_caret": (40.3, 81.4),
        "svmRadial_caret": (42.5, 81.0),
    }
    found = table(pd.read_csv(published_csv, index_col="dataset"))
    assert found.index[:8].tolist() == list(published)
    for name, (rank, accuracy) in published.items():
        assert found.loc[name, "rank"] == pytest.approx(rank, abs=0.1)
        assert found.loc[name, "accuracy"] == pytest.approx(accuracy, abs=0.06)
    assert found.loc["parRF_caret", "pma"] == pytest.approx(94.1, abs=0.05)
    assert found.loc["parRF_caret", "p90"] == pytest.approx(84.3, abs=0.05)
    assert found.loc["svm_C", "pma"] == pytest.approx(92.3, abs=0.05)


def test_places_among_the_published(published_csv: Path) -> None:
    theirs = pd.read_csv(published_csv, index_col="dataset")
    best = theirs.max(axis=1)
    ours = pd.DataFrame(
        {"best": best + 0.04, "worst": 0.0 * best, "forest": theirs["rf_caret"]}
    )
    ours = ours.clip(upper=100.0).drop(index=["letter", "adult"])
    found = against_published(ours, published_csv)
    assert found["ours"].sum() == 3
    assert len(found) == 3 + theirs.shape[1]
    assert found.index[0] == "best"
    assert found.loc["best", ["place", "place_alone"]].tolist() == [1, 1]
    assert found.loc["best", "pma"] == found.loc["best", "p95"] == 100.0
    assert found.loc["worst", ["place", "place_alone"]].tolist() == [182, 180]
    # Twins share a place; the one of ours that is better takes the first.
    twin = found.loc["rf_caret"]
    assert (
        found.loc["forest", "place"]
        == twin["place"]
        == found.loc["forest", "place_alone"] + 1
    )
    assert np.isnan(twin["place_alone"])
    assert found.loc["forest", "rank"] == pytest.approx(twin["rank"])


def test_published_tables_refuse_strangers(published_csv: Path) -> None:
    good = pd.DataFrame({"ours": [90.0, 91.0]}, index=["iris", "wine"])
    with pytest.raises(ValueError, match="unknown \\['irises'\\]"):
        against_published(good.rename(index={"iris": "irises"}), published_csv)
    with pytest.raises(ValueError, match="repeated \\['iris'\\]"):
        against_published(good.rename(index={"wine": "iris"}), published_csv)
    with pytest.raises(ValueError, match="Rename them"):
        against_published(good.rename(columns={"ours": "svm_C"}), published_csv)
    with pytest.raises(ValueError, match="percent"):
        against_published(good / 100, published_csv)


def test_the_docstring_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", inspect.getdoc(table) or "", re.DOTALL)
    assert example is not None
    exec(example[1], dict(vars(ranking)))
