"""Figures and tables of the experiments: what they show, of numbers known by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from keras_kare.experiments import figures, rank_figure, tables

NAN = float("nan")
# Mean MSE at each relative ridge; seeds 0 and 1 lie 0.02 below and above.
MEANS = {
    "ntk_kare": {0.01: 0.3, 1.0: 0.1, 100.0: 0.6},
    "after_ntk": {0.01: 0.2, 1.0: 0.4, 100.0: 0.6},
    "network": {NAN: 0.05},
}
PANELS_1 = [
    {"gamma": g, "sigma": s} for g, s in itertools.product((1.0, 1.25, 1.5), (0.0, 0.1))
]
PANELS_2 = [
    {"dataset": "mnist", "depth": d, "width": w}
    for d, w in itertools.product((2, 4), (32, 64, 128))
]


def our_rows(panels, seeds=(0, 1), **constant):
    rows = []
    for panel, seed, (method, means) in itertools.product(panels, seeds, MEANS.items()):
        for ridge, mean in means.items():
            row = {"method": method, "seed": seed, "relative_ridge": ridge}
            row |= {"mse": mean + (0.02 if seed else -0.02), "seconds": 1.0}
            rows.append(panel | {"initialization": "torch"} | row | constant)
    return pd.DataFrame(rows)


def uci_rows(scores, protocol="honest"):
    """`scores`: accuracies of folds 0, 1, ... for each data set and method."""
    rows = [
        (protocol, dataset, method, fold, accuracy, "", 1.0)
        for (dataset, method), folds in scores.items()
        for fold, accuracy in enumerate(folds)
    ]
    names = ["protocol", "dataset", "method", "fold", "accuracy", "chosen", "seconds"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def simulation():
    return our_rows(PANELS_1)


@pytest.fixture
def mnist():
    return our_rows(PANELS_2)


@pytest.fixture
def published_1(reference_folder):
    return pd.read_csv(reference_folder / "paper_fig1.csv")


@pytest.fixture
def published_2(reference_folder):
    return pd.read_csv(reference_folder / "paper_fig2.csv")


@pytest.fixture(scope="module")
def figure_1(reference_folder):
    """Six panels with the published curves; drawn once, never changed."""
    published = pd.read_csv(reference_folder / "paper_fig1.csv")
    return figures.figure_1(our_rows(PANELS_1), published)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def texts(axis):
    return [text.get_text() for text in axis.texts]


OURS = ["NTK-KARE, ours", "After-NTK, ours", "Network, ours"]
PAPER = ["NTK-KARE, published", "After-NTK, published", "Network, published"]


# --- figures 1 and 2 ---


def test_figure_1_labels_panels_and_legend(figure_1):
    figure = figure_1
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        f"σ = {s}, γ = {g}" for s in ("0", "0.1") for g in ("1", "1.25", "1.5")
    ]
    assert all("(squared units" in figure.axes[i].get_ylabel() for i in (0, 3))
    assert all("(no unit)" in axis.get_xlabel() for axis in figure.axes[3:])
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}
    assert legend(figure) == OURS + PAPER
    assert "torch" in figure.get_suptitle()
    assert not any(texts(axis) for axis in figure.axes)


def test_figure_2_labels_panels_and_legend(mnist, published_2):
    figure = figures.figure_2(mnist, published_2)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"depth = {p['depth']}, width = {p['width']}" for p in PANELS_2]
    assert legend(figure) == OURS + PAPER
    assert "event weight" not in figure.legends[0].get_title().get_text()


def test_curves_are_means_and_bands_are_standard_errors(simulation):
    axis = figures.figure_1(simulation).axes[0]
    drawn = lines(axis)["NTK-KARE, ours"]
    np.testing.assert_allclose(drawn.get_xdata(), [0.01, 1.0, 100.0])
    np.testing.assert_allclose(drawn.get_ydata(), [0.3, 0.1, 0.6])
    # Two seeds at ±0.02: the standard error is 0.02 * sqrt(2) / sqrt(2).
    corners = axis.collections[0].get_paths()[0].vertices
    at_one = corners[corners[:, 0] == 1.0, 1]
    np.testing.assert_allclose([at_one.min(), at_one.max()], [0.08, 0.12])
    np.testing.assert_allclose(lines(axis)["Network, ours"].get_ydata(), 0.05)


def test_published_curves_are_dashed_in_the_colour_of_ours(figure_1, published_1):
    drawn = lines(figure_1.axes[0])
    for ours, paper in zip(OURS, PAPER, strict=True):
        assert drawn[ours].get_color() == drawn[paper].get_color()
        assert (drawn[ours].get_linestyle(), drawn[paper].get_linestyle()) == ("-", "--")
        assert drawn[ours].get_linewidth() > drawn[paper].get_linewidth()
    expected = published_1.query("gamma == 1 and sigma == 0 and method == 'ntk_kare'")
    np.testing.assert_array_equal(drawn[PAPER[0]].get_ydata(), expected["mse"])


def test_curves_differ_without_colour(simulation):
    simulation = pd.concat(
        [simulation, simulation[simulation["method"] == "ntk_kare"].assign(method="ntk")]
    )
    drawn = figures.figure_1(simulation).axes[0].get_lines()
    assert len({line.get_marker() for line in drawn}) == len(drawn) == 4


@pytest.mark.parametrize("dataset", ["higgs", "higgs_with_weight"])
def test_higgs_says_whether_the_published_runs_are_like_ours(published_2, dataset):
    figure = figures.figure_2(our_rows(PANELS_2, dataset=dataset), published_2)
    note = figure.legends[0].get_title().get_text()
    assert ("event weight" in note) == (dataset == "higgs")
    drawn = lines(figure.axes[0])[PAPER[0]].get_ydata()
    assert drawn[0] == pytest.approx(0.4214214569)


# --- partial results ---


def test_a_panel_without_results_says_so(simulation):
    missing = (simulation["gamma"] == 1.25) & (simulation["sigma"] == 0.1)
    figure = figures.figure_1(simulation[~missing])
    said = [texts(axis) for axis in figure.axes]
    assert said == [[], [], [], [], ["no results yet"], []]


def test_no_results_at_all(simulation, mnist, tmp_path):
    for draw, frame in ((figures.figure_1, simulation), (figures.figure_2, mnist)):
        figure = draw(frame.iloc[:0])
        assert [texts(axis) for axis in figure.axes] == [["no results yet"]] * 6
        assert not figure.legends
    figures.save(figure, tmp_path / "empty.png")


def test_published_curves_alone(simulation, published_1):
    figure = figures.figure_1(simulation.iloc[:0], published_1)
    assert legend(figure) == PAPER
    assert [texts(axis) for axis in figure.axes] == [["no results yet"]] * 6


def test_one_seed_has_a_line_and_no_band(simulation):
    figure = figures.figure_1(simulation[simulation["seed"] == 0])
    np.testing.assert_allclose(
        lines(figure.axes[0])[OURS[0]].get_ydata(), [0.28, 0.08, 0.58]
    )
    for band in figure.axes[0].collections:
        assert not any(np.isfinite(path.vertices).any() for path in band.get_paths())
    assert not figure.axes[0].patches


def test_missing_and_unknown_methods(simulation):
    some = simulation[simulation["method"] != "after_ntk"]
    some = some.assign(method=some["method"].replace("ntk_kare", "something_new"))
    assert legend(figures.figure_1(some)) == ["Network, ours", "something_new, ours"]


def test_settings_outside_the_paper_get_panels_of_their_own(mnist):
    small = our_rows([{"dataset": "mnist", "depth": 1, "width": 8}])
    assert len(figures.figure_2(pd.concat([mnist, small])).axes) == 12


def test_a_failed_run_shows(simulation):
    simulation.loc[
        (simulation["seed"] == 1) & (simulation["relative_ridge"] == 1.0), "mse"
    ] = NAN
    drawn = lines(figures.figure_1(simulation).axes[0])[OURS[0]].get_ydata()
    np.testing.assert_allclose(drawn, [0.3, NAN, 0.6])


# --- errors ---


def test_missing_columns_are_named(simulation, mnist, published_1):
    few = simulation.drop(columns=["sigma", "mse"])
    for call in (
        lambda: figures.figure_1(few),
        lambda: tables.best_ridge_table(few, None, by=["gamma", "sigma"]),
    ):
        with pytest.raises(ValueError, match=r"`ours` lacks.*'sigma', 'mse'.*Received"):
            call()
    with pytest.raises(ValueError, match=r"'depth', 'width'"):
        figures.figure_2(simulation.assign(dataset="mnist"))
    with pytest.raises(ValueError, match=r"`published` lacks.*'lambda_tilde'"):
        figures.figure_1(simulation, published_1.drop(columns="lambda_tilde"))
    with pytest.raises(ValueError, match=r"'protocol'.*'fold', 'accuracy'"):
        rank_figure.accuracy_figure(mnist, "paper")
    with pytest.raises(ValueError, match=r"`frame` lacks.*'nothing'"):
        tables.markdown_table(mnist, {"nothing": ".2f"})


def test_settings_are_never_mixed(simulation, mnist, published_2):
    both = pd.concat([simulation, simulation.assign(initialization="paper")])
    with pytest.raises(ValueError, match=r"several values of `initialization`"):
        figures.figure_1(both)
    with pytest.raises(ValueError, match=r"several values of `initialization`"):
        tables.best_ridge_table(both, None, by=["gamma", "sigma"])
    with pytest.raises(ValueError, match=r"several values of `dataset`"):
        figures.figure_2(pd.concat([mnist, mnist.assign(dataset="higgs")]))
    with pytest.raises(ValueError, match=r"`published` mixes several values of `dataset`"):
        tables.best_ridge_table(mnist, published_2, by=["depth", "width"])


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match=r"honest.*Received: protocol='wrong'"):
        rank_figure.accuracy_figure(uci_rows({("a", "ntk"): [50.0]}), "wrong")


# --- tables ---


def test_best_ridge_table_by_hand(simulation):
    paper = pd.DataFrame(
        [(1.0, 0.0, m, r, e) for m, r, e in (
            ("ntk_kare", 0.1, 0.08), ("ntk_kare", 1.0, 0.09), ("dnn", 1.0, 0.1))],
        columns=["gamma", "sigma", "method", "lambda_tilde", "mse"],
    )  # fmt: skip
    by = ["gamma", "sigma", "initialization"]
    table = tables.best_ridge_table(simulation, paper, by=by)
    assert len(table) == 18
    assert list(table.columns) == [
        *by, "method", "relative_ridge", "mse", "standard_error", "seeds", "published_mse",
        "ratio", "ntk_kare_below",
    ]  # fmt: skip
    first = table.iloc[:3]
    assert list(first["method"]) == ["ntk_kare", "after_ntk", "network"]
    np.testing.assert_allclose(first["relative_ridge"], [1.0, 0.01, NAN])
    np.testing.assert_allclose(first["mse"], [0.1, 0.2, 0.05])
    np.testing.assert_allclose(first["standard_error"], 0.02)
    assert list(first["seeds"]) == [2, 2, 2]
    np.testing.assert_allclose(first["published_mse"], [0.08, NAN, 0.1])
    np.testing.assert_allclose(first["ratio"], [1.25, NAN, 0.5])
    assert list(first["ntk_kare_below"]) == [None, True, False]
    assert table["published_mse"].iloc[3:].isna().all()


def test_published_best_of_the_paper(simulation, mnist, published_1, published_2):
    table = tables.best_ridge_table(simulation, published_1, by=["gamma", "sigma"])
    assert table["published_mse"].iloc[0] == pytest.approx(0.0320656368)
    assert table["published_mse"].notna().all()
    by = ["dataset", "depth", "width"]
    for name, there in (("mnist", True), ("higgs", False), ("higgs_with_weight", True)):
        table = tables.best_ridge_table(mnist.assign(dataset=name), published_2, by=by)
        assert table["published_mse"].notna().all() == there
        assert table["ratio"].notna().all() == there


def test_best_ridge_table_of_partial_results(simulation, published_1):
    by = ["gamma", "sigma"]
    assert tables.best_ridge_table(simulation.iloc[:0], published_1, by=by).empty
    rest = simulation[(simulation["method"] != "ntk_kare") & (simulation["seed"] == 0)]
    table = tables.best_ridge_table(rest, published_1, by=by)
    assert len(table) == 12
    assert table["standard_error"].isna().all()
    assert table["ntk_kare_below"].isna().all()


def test_a_ridge_with_a_failed_run_is_not_the_best(simulation):
    simulation.loc[
        (simulation["seed"] == 1) & (simulation["relative_ridge"] == 1.0), "mse"
    ] = NAN
    table = tables.best_ridge_table(simulation, None, by=["gamma", "sigma"])
    assert table["relative_ridge"].iloc[0] == 0.01
    assert table["mse"].iloc[0] == pytest.approx(0.3)


def test_markdown_table():
    frame = pd.DataFrame(
        {"name": ["a|b", "c"], "mse": [0.123456, NAN], "n": [3, 4], "below": [True, None]}
    )
    assert tables.markdown_table(frame) == (
        "| name | mse | n | below |\n"
        "| --- | ---: | ---: | --- |\n"
        "| a\\|b | 0.1235 | 3 | yes |\n"
        "| c |  | 4 |  |\n"
    )
    assert "| 0.12 | 003 |" in tables.markdown_table(frame, {"mse": ".2f", "n": "03d"})


# --- accuracies ---


def test_accuracy_figure_by_hand():
    scores = {
        ("a", "ntk_kare"): [90.0, 92.0], ("a", "svm"): [90.0, 90.0],
        ("a", "ntk"): [80.0, 80.0],
        ("b", "ntk_kare"): [70.0], ("b", "svm"): [75.0], ("b", "ntk"): [60.0],
        ("c", "ntk_kare"): [50.0], ("c", "svm"): [50.0], ("c", "ntk"): [40.0],
        ("d", "ntk_kare"): [99.0], ("d", "svm"): [1.0],
    }  # fmt: skip
    figure = rank_figure.accuracy_figure(uci_rows(scores), "honest")
    left, right = figure.axes
    assert "3 of 4 data sets" in figure.get_suptitle()
    # Ranks of NTK-KARE: 1, 2, 1.5; of svm: 2, 1, 1.5; of the NTK: 3.
    np.testing.assert_allclose(left.containers[0].lines[0].get_xdata(), [1.5, 1.5, 3.0])
    assert left.get_yticklabels()[2].get_text() == "NTK at initialisation"
    # Its standard error: 0.5 / sqrt(3).
    reach = left.containers[0].lines[2][0].get_segments()[0][:, 0]
    np.testing.assert_allclose(reach, 1.5 + 1.96 * 0.5 / np.sqrt(3) * np.array([-1, 1]))
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == [f"NTK-KARE {word}: 1" for word in ("better", "equal", "worse")]
    points = [tuple(c.get_offsets()[0]) for c in right.collections]
    assert points == [(90.0, 1.0), (50.0, 0.0), (75.0, -5.0)]
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()
        assert axis.get_legend() is not None


def test_accuracy_figure_names_the_half():
    scores = {("a", "ntk_kare"): [50.0], ("a", "ntk"): [40.0]}
    figure = rank_figure.accuracy_figure(uci_rows(scores), "honest", half="the half")
    title = "UCI, honest protocol, the half: 1 of 1 data sets complete"
    assert figure.get_suptitle() == title


def test_accuracy_figure_of_partial_results(tmp_path):
    complete = {("a", "ntk"): [80.0], ("a", "svm"): [70.0]}
    never = complete | {("b", "ntk_kare"): [90.0]}
    unfinished = rank_figure.accuracy_figure(uci_rows(never), "honest")
    assert all(
        "no data set has every method yet" in texts(axis) for axis in unfinished.axes
    )
    without = rank_figure.accuracy_figure(uci_rows(complete), "honest")
    assert any("not both here yet" in text for text in texts(without.axes[1]))
    nothing = rank_figure.accuracy_figure(uci_rows(never).iloc[:0], "honest")
    figures.save(nothing, tmp_path / "partial.png")


# --- files ---


def test_the_same_numbers_give_the_same_bytes(simulation, tmp_path):
    first, again, anew = (tmp_path / "new" / name for name in ("1.png", "2.png", "3.png"))
    figure = figures.figure_1(simulation)
    figures.save(figure, first)
    figures.save(figure, again)
    figures.save(figures.figure_1(simulation.sample(frac=1.0, random_state=0)), anew)
    assert first.read_bytes() == again.read_bytes() == anew.read_bytes()
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"matplotlib" not in first.read_bytes().lower()


def test_legends_lie_inside_the_picture(figure_1):
    figure_1.draw_without_rendering()
    box = figure_1.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure_1.bbox.width
