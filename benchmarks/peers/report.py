"""Measurements as Markdown tables, and as a drawing of time over rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

OURS = "keras_kare"
REFERENCE = f"{OURS}, structured"


class Measurement(NamedTuple):
    """One contender on one task: its best time, or why there is none."""

    contender: str
    case: str
    n: int
    what: str
    seconds: float | None = None
    peak_mb: float | None = None
    runs: int = 0
    failure: str | None = None


def table(measurements: list[Measurement]) -> str:
    """One case at one size: a row a contender, three columns for each task."""
    whats = list(dict.fromkeys(m.what for m in measurements))
    found = {(m.contender, m.what): m for m in measurements}
    heads = [f"{what} | times the first | peak MB" for what in whats]
    lines = [
        f"| | {' | '.join(heads)} |",
        "|---|" + "---:|" * 3 * len(whats),
    ]
    for contender in dict.fromkeys(m.contender for m in measurements):
        cells = [
            _cells(found.get((contender, what)), found.get((REFERENCE, what)))
            for what in whats
        ]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fastest_peer(measurements: list[Measurement]) -> str:
    """For each task, the fastest contender that is not of this library."""
    told = []
    for what in dict.fromkeys(m.what for m in measurements):
        of_task = [m for m in measurements if m.what == what and m.seconds is not None]
        peers = [m for m in of_task if not m.contender.startswith(OURS)]
        reference = next((m for m in of_task if m.contender == REFERENCE), None)
        if peers and reference is not None:
            best = min(peers, key=lambda m: m.seconds or 0)
            ratio = best.seconds / reference.seconds
            told.append(f"{what} {best.contender}, {ratio:.3g} times the first")
    return f"Fastest peer: {'; '.join(told)}." if told else ""


def _cells(measured: Measurement | None, reference: Measurement | None) -> str:
    if measured is None:
        return " | | "
    if measured.seconds is None:
        return f"{measured.failure} | | "
    ratio = ""
    if reference is not None and reference.seconds:
        ratio = f"{measured.seconds / reference.seconds:.3g}"
    return f"{duration(measured.seconds)} | {ratio} | {measured.peak_mb:.0f}"


def duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def plot(measurements: list[Measurement], file: Path) -> None:
    """Time over rows, a panel for each case and task, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(m.case for m in measurements))
    whats = list(dict.fromkeys(m.what for m in measurements))
    contenders = list(dict.fromkeys(m.contender for m in measurements))
    styles = dict(zip(contenders, _styles(len(contenders)), strict=True))
    figure, axes = pyplot.subplots(
        len(whats),
        len(cases),
        figsize=(4.5 * len(cases), 3.6 * len(whats)),
        squeeze=False,
        layout="constrained",
    )
    for row, what in zip(axes, whats, strict=True):
        for axis, case in zip(row, cases, strict=True):
            here = [m for m in measurements if (m.case, m.what) == (case, what)]
            _draw(axis, here, styles)
            shown = "Gram matrix" if what == "gram" else "KARE step"
            axis.set(xlabel="rows", ylabel="seconds", title=f"{case}: {shown}")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(cases),
        frameon=False,
    )
    figure.savefig(file, dpi=150)


def _draw(axis: Any, measurements: list[Measurement], styles: dict[str, Any]) -> None:
    for contender, style in styles.items():
        points = sorted(
            (m.n, m.seconds)
            for m in measurements
            if m.contender == contender and m.seconds is not None
        )
        axis.plot([n for n, _ in points], [s for _, s in points], label=contender, **style)
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    sizes = sorted({m.n for m in measurements})
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()


def _styles(count: int) -> list[dict[str, Any]]:
    """Colours that differ in lightness, and markers, so that grey is enough."""
    colours = ["#000000", "#7a7a7a", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7"]
    markers, dashes = "os^Dv*P", ["-", "--", "-", "-", "--", ":", "-."]
    return [
        {"color": colours[i % 7], "marker": markers[i % 7], "linestyle": dashes[i % 7]}
        for i in range(count)
    ]
