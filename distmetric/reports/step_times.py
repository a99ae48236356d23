"""Where the time of a training step goes: in the middle of all steps, and over the run."""

import numpy as np
from matplotlib.figure import Figure

from distmetric.reports.figures import legend_below, over_steps, sentence
from distmetric.reports.history import History, Numbers, series
from distmetric.reports.theme import FIGURE_WIDTH, LIGHT, SMALL, Theme, single_axes

PHASES = ("plan", "data", "forward", "index", "gather", "loss", "backward", "optimizer")
"""Parts of a training step in the order they happen; the tracker logs seconds as `time/<phase>`."""
STRETCHES = 60
"""Stretches of steps that the times over the run are averaged in."""


def phase_seconds(history: History) -> dict[str, float]:
    """Median seconds of each logged phase of a step, in the order the phases happen.

    Args:
        history: metric name -> (step, value) pairs, seconds as `time/<phase>`.

    Returns:
        Phase -> seconds; phases without values, and those of less than 10 microseconds, are left out.
    """
    logged = {phase: series(history, f"time/{phase}")[1] for phase in PHASES}
    medians = {phase: float(np.median(values)) for phase, values in logged.items() if len(values)}
    return {phase: seconds for phase, seconds in medians.items() if seconds >= 1e-5}


def time_split(history: History, theme: Theme = LIGHT) -> Figure:
    """Draw where the time of a training step goes: one bar for each phase, in the order they happen.

    Args:
        history: metric name -> (step, value) pairs, seconds as `time/<phase>`.
        theme: colors.

    Returns:
        The figure; bars are median milliseconds, labeled with their share of the sum of medians.
    """
    seconds = phase_seconds(history)
    if not seconds:
        return sentence("No step times were logged.", theme)
    total = sum(seconds.values()) or 1.0
    figure, axes = single_axes(
        FIGURE_WIDTH,
        0.65 + 0.34 * len(seconds),
        theme,
        f"Median step: {_number(1000 * total)} ms",
        left=0.9,
        bottom=0.15,
    )
    values = [1000 * value for value in seconds.values()]
    colors = [phase_color(phase, theme) for phase in seconds]
    bars = axes.barh(list(seconds), values, color=colors, height=0.62)
    names = [f"{_number(value)} ms · {value / total / 10:.0f}%" for value in values]
    axes.bar_label(bars, labels=names, color=theme.text, padding=6, fontsize=SMALL)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.6)
    axes.tick_params(axis="y", colors=theme.text)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def time_over_steps(history: History, theme: Theme = LIGHT) -> Figure:
    """Draw the parts of a step on top of each other over the run: mean milliseconds of sixty stretches of it.

    Args:
        history: metric name -> (step, value) pairs, seconds as `time/<phase>`.
        theme: colors.

    Returns:
        The figure; phases in the order they happen, the first one at the bottom.
    """
    phases = list(phase_seconds(history))
    if not phases:
        return sentence("No step times were logged.", theme)
    steps, table = _stretches(history, phases)
    rows = -(-len(phases) // 4)
    figure, axes = single_axes(
        FIGURE_WIDTH, 2.7 + 0.2 * rows, theme, "A step over the run (ms)", bottom=0.6 + 0.2 * rows
    )
    axes.stackplot(steps, 1000 * table, labels=phases, colors=[phase_color(phase, theme) for phase in phases])
    over_steps(axes, theme)
    axes.margins(x=0)
    axes.set_ylim(0, 1.05 * 1000 * table.sum(axis=0).max())
    legend_below(axes, theme, columns=4)
    return figure


def phase_color(phase: str, theme: Theme) -> str:
    """The color of a phase, the same in all figures."""
    return theme.series[PHASES.index(phase)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _stretches(history: History, phases: list[str]) -> tuple[Numbers, Numbers]:
    """Middle steps (s,) and mean seconds (phases, s) of at most `STRETCHES` stretches that have values."""
    logged = [series(history, f"time/{phase}") for phase in phases]
    known = np.unique(np.concatenate([steps for steps, _ in logged]))
    edges = known[np.unique(np.linspace(0, len(known), STRETCHES + 1).astype(int))[:-1]]
    place = np.searchsorted(edges, known, side="right") - 1
    middle = np.bincount(place, known) / np.bincount(place)
    table = np.zeros((len(phases), len(edges)))
    for row, (steps, values) in zip(table, logged, strict=True):
        at = np.searchsorted(edges, steps, side="right") - 1
        counts = np.bincount(at, minlength=len(edges))
        row[:] = np.bincount(at, values, minlength=len(edges)) / np.maximum(counts, 1)
    return middle, table
