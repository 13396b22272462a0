"""The results page: every figure and table, made of the files that runs have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_kare.datasets import uci_names
from keras_kare.diagnostics.equivalence import LEARNERS, Equivalence
from keras_kare.experiments import (
    figures,
    fooled_report,
    guarded_report,
    image_jobs,
    ranking,
    regression_report,
    settings,
    tables,
)
from keras_kare.experiments.contenders import not_run
from keras_kare.experiments.convergence_figure import convergence_figure, slopes
from keras_kare.experiments.drift_figure import drift_figure
from keras_kare.experiments.fooled_figure import fooled_figure
from keras_kare.experiments.names import in_text
from keras_kare.experiments.rank_figure import accuracy_figure
from keras_kare.experiments.store import write_whole
from keras_kare.experiments.uci_jobs import HALVES, LOOKS, half_of
from keras_kare.experiments.variants import ABLATIONS, RECIPES, VARIANTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAPER_GPU_HOURS = 321
"""What the paper's UCI experiments took, as it says."""

BEST_PUBLISHED = 10
"""The last place of the published classifiers that are listed."""

COVERAGE = 0.8
"""Share of the data sets that a method must have run on to be in a table."""

PAPER_METHODS = ("ntk_kare", "after_ntk", "network", "ntk", "residual")
"""Methods that also run on larger data sets, under the paper's protocol."""


def write(results: Path, reference: Path | None) -> Path:
    """Write `README.md` and its pictures into the folder of results.

    Args:
        results: Where runs have written; experiments that are not there are left out.
        reference: Folder of published curves and accuracies, or `None` to leave those out.

    Returns:
        The page.
    """
    remarks = results / "remarks.md"
    parts = [remarks.read_text()] if remarks.exists() else []
    for name, section in SECTIONS.items():
        parts += _section(results, reference, name, section)
    page = results / "README.md"
    write_whole(page, "\n".join(parts).rstrip() + "\n")
    return page


def _section(
    results: Path, reference: Path | None, name: str, section: Section
) -> Iterator[str]:
    """Write an experiment's heading, cost and body, where it has run."""
    rows = _table(results, name)
    if rows is None:
        return
    yield f"## {section.title}\n"
    yield _cost(results, name, section.more)
    yield from section.body(rows, results, reference)


def _simulation(ours: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    published = _published(reference, "paper_fig1.csv")
    for start in settings.INITIALIZATIONS:
        rows = ours[ours.initialization == start]
        if not len(rows):
            continue
        yield f"### Initialisation `{start}`\n"
        drawing = figures.figure_1(rows, published)
        caption = f"Figure 1, initialisation {start}"
        yield _picture(results / f"simulation_{start}.png", drawing, caption)
        yield _best_table(rows, published, ["gamma", "sigma"])


def _images(ours: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    published = _published(reference, "paper_fig2.csv")
    for dataset in ("mnist", *image_jobs.HIGGS):
        for start in settings.INITIALIZATIONS:
            rows = ours[(ours.dataset == dataset) & (ours.initialization == start)]
            if not len(rows):
                continue
            yield f"### `{dataset}`, initialisation `{start}`\n"
            drawing = figures.figure_2(rows, published)
            caption = f"Figure 2, {dataset}, initialisation {start}"
            yield _picture(results / f"{dataset}_{start}.png", drawing, caption)
            by = ["dataset", "depth", "width", "initialization"]
            yield _best_table(rows, published, by).replace("_", " ")


def _uci(ours: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    for half in HALVES:
        yield from _repeated(ours, half, results)
    for protocol in ("honest", "customary", "paper"):
        rows = ours[ours.protocol == protocol]
        if not len(rows):
            continue
        if protocol == "customary":
            rows = guarded_report.beside(rows, _table(results, "guarded"))
        main = complete(rows)
        if not len(main):
            yield f"### Protocol *{protocol}*\n\nNo data set is complete yet.\n"
            continue
        yield f"### Protocol *{protocol}*, {len(main)} data sets\n"
        yield _ranking(main)
        if protocol == "customary":
            yield from guarded_report.sentences(rows)
        if protocol == "honest":
            shown = rows[rows.dataset.isin(main.index) & rows.method.isin(main.columns)]
            drawing = accuracy_figure(shown, protocol)
            caption = "Ranks and accuracies, honest protocol"
            yield _picture(results / "uci_honest.png", drawing, caption)
        if protocol == "paper":
            own = complete(rows[rows.method.isin(PAPER_METHODS)])
            if len(own) > len(main):
                yield f"The paper's methods alone, {len(own)} data sets up to 5,000 rows:\n"
                yield _ranking(own)
        if protocol == "customary" and reference is not None:
            yield (
                "Among the 179 classifiers of Fernández-Delgado et al. (2014). The folds "
                "are the same, but their accuracies come from other software, tuned in "
                "another way: the places say about where a method stands, no more.\n"
            )
            joined = ranking.against_published(main, reference / "uci_179_classifiers.csv")
            joined = joined[joined.ours | (joined.place <= BEST_PUBLISHED)]
            joined.index = [in_text(name) for name in joined.index]
            yield tables.markdown_table(joined.reset_index(names="method"))
    stored = {*ours.method}  # here or elsewhere
    missing = {name: why for name, why in not_run().items() if name not in stored}
    if missing:
        yield "Not run: " + "; ".join(f"{n} ({why})" for n, why in missing.items()) + ".\n"


def _repeated(ours: pd.DataFrame, half: str, results: Path) -> Iterator[str]:
    """Write how the recipe compares with others, and with its variants, on a half."""
    rows = ours[ours.protocol == "repeated"]
    if len(rows):
        rows = rows[rows.dataset.isin(half_of(uci_names(), half))]
    if not len(rows):
        return
    rivals = rows[~rows.method.isin([*ABLATIONS, *VARIANTS])]
    main = complete(rivals)
    words = {"screen": "the half to choose on", "confirm": "the half that confirms"}[half]
    if half == "confirm":
        looked = f"Accuracies on this half have been looked at {LOOKS}.\n"
    else:
        looked = f"The other half has been looked at {LOOKS}.\n"
    yield f"### Protocol *repeated*, {words}, {len(main)} data sets\n"
    yield looked
    if not len(main):
        yield "No data set is complete yet.\n"
        return
    yield _ranking(main)
    shown = rivals[rivals.dataset.isin(main.index) & rivals.method.isin(main.columns)]
    if "recipe" in main:
        drawing = accuracy_figure(shown, "repeated", "recipe", words)
        caption = f"Ranks and accuracies, repeated protocol, {words}"
        yield _picture(results / f"uci_{half}.png", drawing, caption)
    accuracy = finished(rows)
    if "recipe" not in accuracy or len(accuracy.columns) < 2:
        return
    yield (
        "The recipe's accuracy less that of another, in points: means over data sets, "
        "their standard errors, and whether the recipe is better or worse. Within one "
        "standard error it is a tie:\n"
    )
    for table in (
        accuracy[["recipe", *accuracy.columns.difference(RECIPES, sort=False)]],
        accuracy[[name for name in RECIPES if name in accuracy]],
    ):
        if len(table.columns) > 1:
            found = ranking.differences(table, "recipe")
            found.index = [in_text(name) for name in found.index]
            formats = {"difference": "+.2f", "standard_error": ".2f"}
            yield tables.markdown_table(found.reset_index(names="against"), formats)


def _regression(rows: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    yield from regression_report.sections(rows)


def _drift(rows: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    yield (
        "NTKs of networks that train by themselves, by gradient descent on all rows "
        "(arXiv:2504.11130). Under squared loss (dashed) the kernel comes to rest once "
        "rows are fitted, the nearer to its start the wider the network, where targets are "
        "smooth; under cross-entropy (solid) it goes on, at every width.\n"
    )
    picture = results / "drift.png"
    yield _picture(picture, drift_figure(rows), "Drift of kernels over steps")
    last = rows[rows.steps == rows.steps.max()]
    by = ["dataset", "architecture", "width", "loss"]
    values = ["drift", "smallest_eigenvalue", "weights_norm", "loss_value"]
    table = last.groupby(by, as_index=False)[values].mean()
    yield f"After {rows.steps.max():,} steps, means over {rows.seed.nunique()} seeds:\n"
    yield tables.markdown_table(
        table,
        {"drift": ".2f", "smallest_eigenvalue": ".1e", "weights_norm": ".1f"}
        | {"loss_value": ".1e"},
    )


def _fooled(rows: pd.DataFrame, results: Path, reference: Path | None) -> Iterator[str]:
    caption = "KARE, its test error, and two estimates of it, over steps"
    yield _picture(results / "fooled.png", fooled_figure(fooled_report.base(rows)), caption)
    yield from fooled_report.sections(rows)


def _equivalence(
    rows: pd.DataFrame, results: Path, reference: Path | None
) -> Iterator[str]:
    yield (
        "ReLU networks that train by themselves under squared loss, against the kernel "
        "machines that are to be like them (arXiv:2501.10929, "
        "`kk.diagnostics.equivalence`): root mean square difference of predictions of test "
        "rows, in units of the network's own, and squared errors. The network that is "
        "linear in its weights comes near as width grows, and further off with depth; "
        "regression by a kernel alone does not know where the network started.\n"
    )
    means = ["gap", "error"]
    by = ["dataset", "depth", "width", "learner"]
    for value in means:
        table = rows.pivot_table(value, by[:-1], "learner", sort=False)[list(LEARNERS)]
        table = table.sort_index().reset_index()
        shown = LEARNERS[value == "gap" :]  # the network has no gap to itself
        yield f"Mean {value} over {rows.seed.nunique()} seeds:\n"
        formats = dict.fromkeys(shown, ".3f")
        yield tables.markdown_table(table[[*by[:-1], *shown]], formats)
    picture = results / "equivalence.png"
    chosen = rows[rows.dataset == rows.dataset.iloc[0]]
    mean = chosen.groupby(["depth", "width", "learner"], as_index=False)["gap"].mean()
    figure: Any = Equivalence(mean.to_dict("records")).plot().figure
    yield _picture(picture, figure, f"Gaps over width, {rows.dataset.iloc[0]}")


def _convergence(
    rows: pd.DataFrame, results: Path, reference: Path | None
) -> Iterator[str]:
    yield (
        "Relative distance of Gram matrices on digits of MNIST: of the empirical NTK `K` "
        "of networks whose weights are drawn from `N(0, 1)` and scaled where they are "
        "used, without biases, and of `Θ` (`kk.kernels.InfiniteWidth`; arXiv:1806.07572). "
        "Means over draws, and slopes of a line through all of a kind, by logarithms:\n"
    )
    by = ["activation", "depth"]
    table = rows.pivot_table("error", by, "width").reset_index()
    fitted = slopes(rows).rename(columns={"slope": "fitted slope"})
    widths = [f"width {width}" for width in table.columns[2:]]
    table.columns = [*by, *widths]
    formats = {**dict.fromkeys(widths, ".4f"), "fitted slope": ".2f"}
    yield tables.markdown_table(table.merge(fitted, on=by), formats)
    caption = f"Distance to the kernel of infinite width, {rows.seed.nunique()} draws each"
    yield _picture(results / "convergence.png", convergence_figure(rows), caption)


class Section(NamedTuple):
    """What the page says of an experiment below its heading, and beside its cost."""

    title: str
    body: Callable[[pd.DataFrame, Path, Path | None], Iterator[str]]
    more: str = ""


SECTIONS = {
    "simulation": Section("Figure 1: simulation", _simulation),
    "mnist": Section("Figure 2: MNIST, 7 against 9", _images),
    "higgs": Section("Figure 2: Higgs", _images),
    "uci": Section("Table 1: UCI", _uci, f" The paper's took {PAPER_GPU_HOURS} GPU-hours."),
    "regression": Section("Regression", _regression),
    "fooled": Section("Why KARE is fooled, and what helps", _fooled),
    "drift": Section("How far kernels move", _drift),
    "equivalence": Section("Do networks predict as their kernels do?", _equivalence),
    "convergence": Section(
        "How near the NTK of a random network is to that of infinite width", _convergence
    ),
}
"""By experiment, in the page's order."""


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy over folds, data set by method; NaN where folds are missing."""
    table = {"index": "dataset", "columns": "method", "values": "accuracy"}
    accuracy = rows.pivot_table(**table)
    if not len(accuracy):
        return accuracy
    folds = rows.pivot_table(**table, aggfunc="count")
    return accuracy.where(folds.eq(folds.max(axis=1), axis=0))


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy over folds, data set by method, where all methods have run.

    Methods that have run on less than four fifths of the data sets, as yet, are left out.
    """
    accuracy = finished(rows)
    if not len(accuracy):
        return accuracy
    done = accuracy.notna()
    kept = done.columns[done.sum() >= COVERAGE * done.sum().max()]
    return accuracy.loc[done[kept].all(axis=1), kept]


def _picture(path: Path, drawing: Figure, caption: str) -> str:
    figures.save(drawing, path)
    return f"![{caption}]({path.name})\n"


def _ranking(accuracy: pd.DataFrame) -> str:
    table = ranking.table(accuracy)
    table.index = [in_text(name) for name in table.index]
    return tables.markdown_table(table.reset_index(names="method"))


def _best_table(ours: pd.DataFrame, published: pd.DataFrame | None, by: list[str]) -> str:
    table = tables.best_ridge_table(ours, published, by)
    squared = dict.fromkeys(("mse", "standard_error", "published_mse"), ".4f")
    return tables.markdown_table(
        table, {**squared, "ratio": ".2f", "relative_ridge": ".0e"}
    )


def _cost(results: Path, name: str, more: str = "") -> str:
    summary = json.loads((results / name / f"{name}.json").read_text())
    return (
        f"{summary['jobs']} jobs, {summary['core_hours']:.2f} core-hours of these two "
        f"cores.{more}\n"
    )


def _table(results: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    path = results / name / f"{name}.csv"
    return pd.read_csv(path) if path.exists() and path.stat().st_size > 2 else None


def _published(reference: Path | None, name: str) -> pd.DataFrame | None:
    import pandas as pd

    return None if reference is None else pd.read_csv(reference / name)
