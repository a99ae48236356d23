"""Figures of a run's history: learning curves and where the time of a step goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from distmetric.reports.theme import LIGHT, Theme, dress, new_figure

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name -> (step, value) pairs, with the names the tracker logs."""


@dataclass(frozen=True)
class Line:
    """One curve: its metric, its name in the legend, its color role, and the metrics that bound its band."""

    metric: str
    name: str
    color: str = "first"
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what it is called, what it tells, its curves, and how its axis is scaled.

    Attributes:
        title: heading, with the unit.
        caption: one sentence for readers and for the text alternative.
        lines: curves, drawn when the history has them.
        fraction: values lie between 0 and 1 and are shown as percentages.
        zero: draw a line at zero.
        smooth: draw the values faintly and their moving average on top.
    """

    title: str
    caption: str
    lines: tuple[Line, ...]
    fraction: bool = False
    zero: bool = False
    smooth: bool = False

    def has_data(self, history: History) -> bool:
        """Whether the history has a finite value of any of the curves."""
        return any(len(_series(history, line.metric)[0]) for line in self.lines)


def _banded(side: str, color: str) -> Line:
    stem = f"train/{side}_distance_"
    return Line(f"{stem}mean", f"{side}, mean and 10–90%", color, f"{stem}p10", f"{stem}p90")


PANELS = (
    Panel(
        "Retrieval quality",
        "Recall at 1 and mean average precision at R of the evaluation split over training steps.",
        (Line("eval/recall_at_1", "recall@1"), Line("eval/map_at_r", "MAP@R", "second")),
        fraction=True,
    ),
    Panel("Loss", "Training loss over training steps.", (Line("train/loss", "loss"),), smooth=True),
    Panel(
        "Distances in the batch",
        "Distances of positive and of negative pairs over training steps; learning moves the bands apart.",
        (_banded("positive", "third"), _banded("negative", "second")),
    ),
    Panel(
        "Active tuples",
        "Share of tuples that still cause a gradient, over training steps.",
        (Line("train/active_fraction", "active"),),
        fraction=True,
        smooth=True,
    ),
    Panel(
        "Hardest gap",
        "Distance of the hardest negative less that of the hardest positive; above zero is right.",
        (Line("train/hardest_gap", "gap"),),
        zero=True,
        smooth=True,
    ),
    Panel(
        "Margin-violating anchors",
        "Share of anchors with a negative not a margin farther than a positive: planned batches beside random ones.",
        (
            Line("hard/violating_fraction", "planned"),
            Line("hard/violating_fraction_random", "random", "second"),
        ),
        fraction=True,
    ),
    Panel(
        "Age of neighbors (steps)",
        "Steps since the embeddings that batches are planned from: of the snapshot, and of its median row.",
        (
            Line("index/snapshot_age_steps", "snapshot"),
            Line("index/staleness_p50_steps", "median row", "second"),
        ),
    ),
    Panel(
        "Embedding variance",
        "Variance of the embeddings in a batch over training steps; a fall towards zero is collapse.",
        (Line("train/embedding_variance", "variance"),),
        smooth=True,
    ),
    Panel("Learning rate", "Learning rate over training steps.", (Line("train/learning_rate", "rate"),)),
    Panel(
        "Throughput (samples/s)",
        "Training samples per second over training steps.",
        (Line("train/samples_per_second", "samples/s"),),
        smooth=True,
    ),
)

PHASES = ("plan", "data", "forward", "index", "gather", "loss", "backward", "optimizer")
"""Parts of a training step in the order they happen; the tracker logs seconds as `time/<phase>`."""


def _series(history: History, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of a metric in step order, without values that are not finite."""
    pairs = sorted((step, value) for step, value in history.get(metric, ()) if math.isfinite(value))
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centered average over a twentieth of the run, of fewer values at the ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def _draw_line(axes: Axes, history: History, line: Line, theme: Theme, smooth: bool) -> None:
    steps, values = _series(history, line.metric)
    if not len(steps):
        return
    color = theme.colors[line.color]
    if smooth and len(values) >= 40:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.9)
        values = _moving_average(values)
    marker = "o" if len(values) <= 20 else ""
    axes.plot(steps, values, color=color, linewidth=2, marker=marker, markersize=4, label=line.name)
    (low_steps, low), (high_steps, high) = _series(history, line.low), _series(history, line.high)
    if len(low) and np.array_equal(low_steps, high_steps):
        axes.fill_between(low_steps, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_panel(axes: Axes, history: History, panel: Panel, theme: Theme) -> None:
    dress(axes, theme, panel.title)
    for line in panel.lines:
        _draw_line(axes, history, line, theme, panel.smooth)
    axes.set_xlabel("step", color=theme.muted, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5), useMathText=True)
    axes.yaxis.get_offset_text().set(color=theme.muted, fontsize=9.5)
    if panel.fraction:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    if panel.zero:
        axes.axhline(0, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    if len(panel.lines) > 1:
        axes.legend(frameon=False, labelcolor=theme.text, fontsize=9.5, loc="best")


def panel_figure(panel: Panel, history: History, theme: Theme = LIGHT) -> Figure:
    """Draw one panel by itself, at a size that stays legible on a phone.

    Args:
        panel: what to draw, one of `PANELS` or your own.
        history: metric name -> (step, value) pairs; metrics that are missing are left out.
        theme: colors.

    Returns:
        A figure of 5.2 x 3 inches.
    """
    figure = new_figure(5.2, 3.0, theme)
    _draw_panel(figure.add_subplot(), history, panel, theme)
    return figure


def learning_curves(history: History, theme: Theme = LIGHT) -> Figure:
    """Draw every panel that has data in one figure, two in a row.

    Args:
        history: metric name -> (step, value) pairs with the tracker's names; values that are not finite are
            left out, and so are panels without any value.
        theme: colors.

    Returns:
        The figure; without any axes but one sentence when nothing was logged.
    """
    panels = [panel for panel in PANELS if panel.has_data(history)]
    if not panels:
        return _sentence("No learning curves were logged.", theme)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.0 * rows, theme)
    for place, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), history, panel, theme)
    return figure


def phase_seconds(history: History) -> dict[str, float]:
    """Median seconds of each logged phase of a step, in the order the phases happen.

    Args:
        history: metric name -> (step, value) pairs, seconds as `time/<phase>`.

    Returns:
        Phase -> seconds; phases without values, and those of less than 10 microseconds, are left out.
    """
    series = {phase: _series(history, f"time/{phase}")[1] for phase in PHASES}
    medians = {phase: float(np.median(values)) for phase, values in series.items() if len(values)}
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
        return _sentence("No step times were logged.", theme)
    total = sum(seconds.values()) or 1.0
    figure = new_figure(5.2, 0.9 + 0.38 * len(seconds), theme)
    axes = figure.add_subplot()
    dress(axes, theme, f"Median step: {1000 * total:.3g} ms")
    values = [1000 * value for value in seconds.values()]
    bars = axes.barh(list(seconds), values, color=theme.colors["first"], height=0.62)
    names = [f"{value:.3g} ms · {value / total / 10:.0f}%" for value in values]
    axes.bar_label(bars, labels=names, color=theme.text, padding=6, fontsize=9.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.35)
    axes.tick_params(axis="y", colors=theme.text)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def _sentence(text: str, theme: Theme) -> Figure:
    figure = new_figure(5.2, 1.2, theme)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=theme.muted, fontsize=11)
    return figure
