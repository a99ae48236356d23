"""Several runs side by side on one page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from distmetric.reports.album import Album
from distmetric.reports.figures import legend_below, over_steps
from distmetric.reports.headline import record_at
from distmetric.reports.histograms import PairDistances, histogram
from distmetric.reports.history import History, Record, moving_average, series, with_evaluations
from distmetric.reports.metric_names import interval_text, is_share, metric_name, metric_text
from distmetric.reports.page import Cell, RawCell, Section, document, table, write_page
from distmetric.reports.panels import PANELS
from distmetric.reports.step_times import PHASES, phase_seconds
from distmetric.reports.theme import DARK, FIGURE_WIDTH, LIGHT, SMALL, Theme, single_axes

LETTERS = "ABCDEFGHIJ"
"""What runs are called in charts and heads of columns; there are as many colors."""
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
NONE = "–"
"""What stands where a run has no value."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs on a page.

    Attributes:
        name: of the run, any text.
        status: how it stands, any text.
        step: of its best checkpoint; None without.
        metrics: of that checkpoint.
        history: metric name -> (step, value) pairs with the tracker's names.
        evaluations: records of its evaluations.
        config: dotted keys -> values of its settings.
        link: relative address of its own report; empty without.
        notices: what it had to tell of itself, any texts.
    """

    name: str
    status: str = ""
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    evaluations: Sequence[Record] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    link: str = ""
    notices: Sequence[str] = ()

    @cached_property
    def whole_history(self) -> History:
        """The history, with what only evaluation records know."""
        return with_evaluations(self.history, self.evaluations)

    @property
    def record(self) -> Record:
        """The evaluation record of the best checkpoint; empty without."""
        return record_at(self.evaluations, self.step)


def write_comparison(path: str | Path, runs: Sequence[ComparedRun], title: str = "Runs side by side") -> Path:
    """Write a page that compares runs: one self-contained HTML file, like the report of one run.

    Args:
        path: file to write; its folder is made, and a file that is there is replaced in one step.
        runs: from two to ten, in the order in which they are lettered.
        title: heading, any text.

    Returns:
        The path.

    Raises:
        ValueError: when there are more runs than letters and colors.
    """
    if len(runs) > len(LETTERS):
        raise ValueError(
            f"{len(runs)} runs are too many for one page: at most {len(LETTERS)} can be told apart"
        )
    album = Album()
    sections = [
        _runs(runs),
        _results(runs),
        _differences(runs),
        _curves(runs, album),
        _distances(runs, album),
        _times(runs, album),
    ]
    subtitle = f"{len(runs)} runs: " + ", ".join(
        f"{letter} {run.name}" for letter, run in zip(LETTERS, runs, strict=False)
    )
    return write_page(Path(path), document(title, subtitle, sections))


def overlaid(
    runs: Sequence[ComparedRun], metric: str, title: str, theme: Theme = LIGHT, **how: bool
) -> Figure:
    """Draw one metric of all runs that have it over their steps, each curve with its run's letter at the end.

    Args:
        runs: the runs, in the order of their letters.
        metric: name in their histories.
        title: any text.
        theme: colors.
        how: `fraction` and `smooth`, as a `Panel` has them.

    Returns:
        The figure.
    """
    figure, axes = single_axes(FIGURE_WIDTH, 2.75, theme, title, right=0.4)
    ends: list[tuple[float, str, str]] = []
    for number, run in enumerate(runs):
        steps, values = series(run.whole_history, metric)
        if not len(steps):
            continue
        if how.get("smooth") and len(values) >= 40:
            values = moving_average(values)
        color = theme.series[number]
        marker = "o" if len(values) <= 20 else ""
        axes.plot(
            *(steps, values),
            color=color,
            linewidth=2,
            linestyle=DASHES[number % len(DASHES)],
            marker=marker,
            markersize=4,
            label=LETTERS[number],
        )
        ends.append((float(values[-1]), LETTERS[number], color))
    over_steps(axes, theme, fraction=how.get("fraction", False), whole=False)
    low, high = axes.get_ylim()
    places = _apart([value for value, _, _ in ends], 0.07 * (high - low))
    for place, (_, letter, color) in zip(places, ends, strict=True):
        axes.text(
            *(1.02, (place - low) / (high - low), letter),
            transform=axes.transAxes,
            color=color,
            fontsize=SMALL + 0.5,
            fontweight="bold",
            va="center",
        )
    return figure


def stacked_times(runs: Sequence[ComparedRun], theme: Theme = LIGHT) -> Figure:
    """Draw the median step of every run that has times as one bar of its phases.

    Args:
        runs: the runs, in the order of their letters.
        theme: colors.

    Returns:
        The figure.
    """
    timed = {letter: found for letter, run in zip(LETTERS, runs, strict=False) if (found := _seconds(run))}
    figure, axes = single_axes(
        FIGURE_WIDTH, 1.55 + 0.36 * len(timed), theme, "Median step (ms)", left=0.4, bottom=1.0
    )
    left = np.zeros(len(timed))
    for phase, color in zip(PHASES, theme.series, strict=False):
        values = np.array([1000 * found.get(phase, 0.0) for found in timed.values()])
        if values.any():
            axes.barh(list(timed), values, left=left, color=color, height=0.62, label=phase)
            left += values
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=theme.muted, alpha=0.2, linewidth=0.8)
    axes.tick_params(axis="y", colors=theme.text)
    legend_below(axes, theme, below=0.35, columns=4)
    return figure


def _seconds(run: ComparedRun) -> dict[str, float]:
    return phase_seconds(run.history)


def _apart(values: Sequence[float], least: float) -> list[float]:
    """The values, moved upwards as little as it takes to keep them apart."""
    order = sorted(range(len(values)), key=lambda number: values[number])
    places = list(values)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + least)
    return places


def _heads(runs: Sequence[ComparedRun]) -> list[str]:
    return list(LETTERS[: len(runs)])


def _runs(runs: Sequence[ComparedRun]) -> Section:
    rows = []
    for number, (letter, run) in enumerate(zip(LETTERS, runs, strict=False)):
        name = escape(run.name)
        linked = f'<a href="{escape(run.link)}">{name}</a>' if run.link else name
        colors = f"--light: {LIGHT.series[number]}; --dark: {DARK.series[number]}"
        key = f'<span class="key" style="{colors}">{letter}</span>'
        best = NONE if run.step is None else f"{run.step:,}"
        told = Cell(run.status or NONE, "; ".join(run.notices))
        rows.append([RawCell(key), RawCell(linked), told, Cell(best, kind="number")])
    return Section("Runs", "", [table(("", "Run", "Status", "Best step"), rows)])


def _results(runs: Sequence[ComparedRun]) -> Section:
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if not names:
        return Section("Results", "", ["<p>None of the runs has an evaluation yet.</p>"])
    rows = [[Cell(metric_name(name)), *_row(runs, name)] for name in names]
    lead = "Of the best checkpoint of each run; ★ marks the highest value."
    if any(run.record.get("intervals") for run in runs):
        lead += " Below the values: 95% bootstrap intervals over the queries."
    return Section("Results", lead, [table(("Metric", *_heads(runs)), rows, "wide")])


def _row(runs: Sequence[ComparedRun], name: str) -> list[Cell]:
    known = [run.metrics[name] for run in runs if name in run.metrics]
    best = max(known) if is_share(name) and len(known) > 1 else None
    cells = []
    for run in runs:
        if name not in run.metrics:
            cells.append(Cell(NONE))
            continue
        value, bounds = run.metrics[name], (run.record.get("intervals") or {}).get(name)
        mark = " ★" if value == best else ""
        cells.append(
            Cell(
                metric_text(name, value) + mark,
                interval_text(name, *bounds) if bounds else "",
                "number best" if mark else "number",
            )
        )
    return cells


def _differences(runs: Sequence[ComparedRun]) -> Section:
    keys = sorted({key for run in runs for key in run.config} - {"name", "resume"})
    missing = object()
    rows = [
        [RawCell(_breakable(key)), *(Cell(_value(run, key)) for run in runs)]
        for key in keys
        if len({repr(run.config.get(key, missing)) for run in runs}) > 1
    ]
    if not rows:
        return Section("What differs", "", ["<p>The settings of the runs are the same.</p>"])
    lead = "All settings that are not the same in all of the runs, but for their names."
    return Section("What differs", lead, [table(("Setting", *_heads(runs)), rows, "wide")])


def _breakable(key: str) -> str:
    """A dotted key that may go on in the next line after its dots and underscores."""
    return re.sub(r"([._])", r"\1<wbr>", escape(key))


def _value(run: ComparedRun, key: str) -> str:
    return str(run.config[key]) if key in run.config else NONE


def _curves(runs: Sequence[ComparedRun], album: Album) -> Section:
    charts = []
    for panel in PANELS:
        for line in panel.lines:
            title = f"{panel.title}: {line.name}" if len(panel.lines) > 1 else panel.title
            having = [
                letter
                for letter, run in zip(LETTERS, runs, strict=False)
                if len(series(run.whole_history, line.metric)[0])
            ]
            quiet = panel.quiet and not any(panel.has_data(run.whole_history) for run in runs)
            if len(having) < 2 or quiet:  # what one run has alone is in its own report
                continue
            draw = partial(overlaid, runs, line.metric, title, fraction=panel.fraction, smooth=panel.smooth)
            alt = f"{title} of the runs {', '.join(having)} over training steps. {panel.caption}"
            charts.append(album.chart(line.metric.replace("/", "_"), draw, alt))
    return Section("Learning curves", "", [f'<div class="panels">{"".join(charts)}</div>'] if charts else [])


def _distances(runs: Sequence[ComparedRun], album: Album) -> Section:
    known = {
        letter: found
        for letter, run in zip(LETTERS, runs, strict=False)
        if (found := PairDistances.of(run.record)) is not None
    }
    if not known:
        return Section("Distances", "", [])
    limits = min(each.edges[0] for each in known.values()), max(each.edges[-1] for each in known.values())
    charts = []
    for letter, each in known.items():
        title = f"{letter}, step {each.step:,}"
        positive, negative = each.means
        alt = (
            f"Distances of pairs of run {letter} at step {each.step:,}: positive pairs are {positive:.3g} apart on "
            f"average and negative pairs {negative:.3g}."
        )
        charts.append(album.chart(f"distances_{letter}", partial(histogram, each, title, limits), alt))
    lead = "Of all pairs of evaluated images, at the best checkpoint."
    return Section("Distances", lead, [f'<div class="panels">{"".join(charts)}</div>'])


def _times(runs: Sequence[ComparedRun], album: Album) -> Section:
    timed = {letter: found for letter, run in zip(LETTERS, runs, strict=False) if (found := _seconds(run))}
    if not timed:
        return Section("Where the time goes", "", [])
    totals = ", ".join(f"{letter} {1000 * sum(found.values()):.3g} ms" for letter, found in timed.items())
    chart = album.chart(
        "times", partial(stacked_times, runs), f"Median time of the parts of a step. In all: {totals}."
    )
    rows = [
        [Cell(phase), *(_milliseconds(_seconds(run).get(phase)) for run in runs)]
        for phase in PHASES
        if any(phase in found for found in timed.values())
    ]
    parts = [f'<div class="panels">{chart}</div>', "<h3>Milliseconds</h3>"]
    return Section(
        "Where the time goes", "", [*parts, table(("Part of a step", *_heads(runs)), rows, "wide")]
    )


def _milliseconds(seconds: float | None) -> Cell:
    return Cell(NONE if seconds is None else f"{1000 * seconds:.3g}", kind="number")
