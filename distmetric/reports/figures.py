"""Figures of a run's history: learning curves."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from distmetric.reports.history import History, moving_average, series
from distmetric.reports.panels import PANELS, Line, Panel
from distmetric.reports.theme import FIGURE_WIDTH, LIGHT, SMALL, Theme, dress, new_figure, single_axes


def panel_figure(panel: Panel, history: History, theme: Theme = LIGHT) -> Figure:
    """Draw one panel by itself, at a size that stays legible on a phone.

    Args:
        panel: what to draw, one of `PANELS` or your own.
        history: metric name -> (step, value) pairs; metrics that are missing are left out.
        theme: colors.

    Returns:
        A figure that is 4.5 inches wide.
    """
    named = len(panel.lines) > 1
    figure, axes = single_axes(
        FIGURE_WIDTH, 3.0 if named else 2.75, theme, panel.title, bottom=0.8 if named else 0.55
    )
    _draw_panel(axes, history, panel, theme)
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
        return sentence("No learning curves were logged.", theme)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(FIGURE_WIDTH * columns, 2.8 * rows, theme)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        dress(axes, theme, panel.title)
        _draw_panel(axes, history, panel, theme)
    return figure


def over_steps(axes: Axes, theme: Theme, *, fraction: bool = False, whole: bool = True) -> None:
    """Scale axes whose horizontal one counts steps.

    Args:
        axes: dressed axes.
        theme: colors.
        fraction: the values lie between 0 and 1 and are shown as percentages.
        whole: of a fraction, show everything from 0 to 1, and not just where values are.
    """
    axes.set_xlabel("step", color=theme.muted, fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5), useMathText=True)
    axes.yaxis.get_offset_text().set(color=theme.muted, fontsize=SMALL)
    if fraction and whole:
        axes.set_ylim(-0.02, 1.02)
    if fraction:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def legend_below(axes: Axes, theme: Theme, *, below: float = 0.48, columns: int = 3) -> None:
    """Name the curves below the axes, where no curve is hidden.

    Args:
        axes: what has labeled artists.
        theme: colors.
        below: inches between the axes and the names.
        columns: names in a row.
    """
    legend = axes.legend(
        frameon=False,
        labelcolor=theme.text,
        fontsize=SMALL,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + ScaledTranslation(0, -below, axes.figure.dpi_scale_trans),
        ncols=columns,
        handlelength=1.2,
        columnspacing=1.2,
        handletextpad=0.5,
        borderpad=0,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def sentence(text: str, theme: Theme) -> Figure:
    """A figure that says in words why there is none."""
    figure = new_figure(FIGURE_WIDTH, 1.2, theme)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=theme.muted, fontsize=11)
    return figure


def _draw_panel(axes: Axes, history: History, panel: Panel, theme: Theme) -> None:
    for line in panel.lines:
        _draw_line(axes, history, line, theme, panel)
    over_steps(axes, theme, fraction=panel.fraction)
    if panel.zero:
        axes.axhline(0, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    if len(panel.lines) > 1:
        legend_below(axes, theme)


def _draw_line(axes: Axes, history: History, line: Line, theme: Theme, panel: Panel) -> None:
    steps, values = series(history, line.metric)
    if not len(steps):
        return
    color = theme.colors[line.color]
    if panel.smooth and len(values) >= 40:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.9)
        values = moving_average(values)
    marker = "o" if len(values) <= 20 else ""
    style = "steps-post" if panel.stairs else "default"
    axes.plot(
        steps, values, color=color, linewidth=2, marker=marker, markersize=4, label=line.name, drawstyle=style
    )
    (low_steps, low), (high_steps, high) = series(history, line.low), series(history, line.high)
    if len(low) and np.array_equal(low_steps, high_steps):
        axes.fill_between(low_steps, low, high, color=color, alpha=0.18, linewidth=0)
