"""The table and the figure of a study: arms as rows, variants as columns, intervals over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from distmetric.reports.figures import sentence
from distmetric.reports.metric_names import metric_name
from distmetric.reports.theme import LIGHT, SMALL, Theme, dress, new_figure

NONE = "–"
"""What stands where there is nothing."""


@dataclass(frozen=True)
class Entry:
    """One measure of an arm under a variant.

    Attributes:
        arm: row of the table.
        variant: column of the table; empty for the only one.
        measure: which table.
        mean: over seeds; None where no run has it.
        low: lower end of its interval.
        high: upper end.
        count: seeds.
        difference: mean, low and high of the difference from the baseline; None without.
    """

    arm: str
    variant: str
    measure: str
    mean: float | None
    low: float = 0.0
    high: float = 0.0
    count: int = 0
    difference: tuple[float, float, float] | None = None


def study_tables(entries: Sequence[Entry], seeds: int, baseline: str | None = None) -> str:
    """Tables in Markdown, one a measure.

    Args:
        entries: in the order of rows and columns.
        seeds: how many there should be; a cell of fewer says so.
        baseline: name of the arm that differences are from.

    Returns:
        The text. A cell is mean and interval; below it the difference from the baseline, bold where its interval does
        not hold 0.
    """
    parts = []
    for measure in dict.fromkeys(entry.measure for entry in entries):
        of = {(entry.arm, entry.variant): entry for entry in entries if entry.measure == measure}
        arms = list(dict.fromkeys(arm for arm, _ in of))
        variants = list(dict.fromkeys(variant for _, variant in of))
        columns = [title for variant in variants for title in _titles(variant, baseline)]
        rows = [
            [
                _escaped(arm),
                *(cell for variant in variants for cell in _cells(of.get((arm, variant)), seeds, baseline)),
            ]
            for arm in arms
        ]
        head = ["arm", *columns]
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        parts.append(f"**{metric_name(measure)}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def study_figure(entries: Sequence[Entry], theme: Theme = LIGHT) -> Figure:
    """Draw means with their intervals, a panel for each measure, arms from top to bottom, variants in colors.

    Args:
        entries: as for the tables.
        theme: colors.

    Returns:
        The figure; one sentence where nothing was measured. Of one seed there is no interval to draw.
    """
    drawn = [entry for entry in entries if entry.mean is not None]
    if not drawn:
        return sentence("Nothing was measured.", theme)
    measures = list(dict.fromkeys(entry.measure for entry in drawn))
    arms = list(dict.fromkeys(entry.arm for entry in entries))
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    figure = new_figure(4.0 * len(measures) + 1.2, 1.2 + 0.38 * len(arms), theme)
    for place, measure in enumerate(measures, start=1):
        axes = figure.add_subplot(1, len(measures), place)
        dress(axes, theme, metric_name(measure))
        for number, variant in enumerate(variants):
            shift = 0.5 * (number - (len(variants) - 1) / 2) / max(len(variants), 2)
            own = [entry for entry in drawn if (entry.measure, entry.variant) == (measure, variant)]
            axes.errorbar(
                [entry.mean or 0.0 for entry in own],
                [arms.index(entry.arm) + shift for entry in own],
                xerr=[
                    _arms_of([entry.low for entry in own], own, -1),
                    _arms_of([entry.high for entry in own], own, 1),
                ],
                fmt="o",
                markersize=4.5,
                capsize=2.5,
                linewidth=1.3,
                color=theme.series[number % len(theme.series)],
                label=variant or None,
            )
        axes.set_yticks(
            range(len(arms)), arms if place == 1 else [""] * len(arms), fontsize=SMALL, color=theme.text
        )
        axes.set_ylim(len(arms) - 0.5, -0.5)
    if len(variants) > 1:
        legend = figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(4, len(variants)),
            frameon=False,
            fontsize=SMALL,
            labelcolor=theme.text,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _arms_of(ends: Sequence[float], entries: Sequence[Entry], sign: int) -> list[float]:
    """Lengths from the means to some ends; 0 where there is one seed only and hence no interval."""
    return [
        0.0 if entry.count < 2 else sign * (end - (entry.mean or 0.0))
        for end, entry in zip(ends, entries, strict=True)
    ]


def _titles(variant: str, baseline: str | None) -> list[str]:
    name = _escaped(variant) or "mean (95 % interval)"
    return [name] if baseline is None else [name, f"minus {_escaped(baseline)}"]


def _cells(entry: Entry | None, seeds: int, baseline: str | None) -> list[str]:
    if entry is None or entry.mean is None:
        return [NONE] if baseline is None else [NONE, NONE]
    text = _number(entry.mean)
    if entry.count > 1:
        text += f" ({_number(entry.low)}–{_number(entry.high)})"
    if entry.count < seeds:
        text += f", {entry.count} of {seeds} runs"
    if baseline is None:
        return [text]
    if entry.difference is None:
        return [text, NONE]
    mean, low, high = entry.difference
    shown = f"{mean:+.3g}" if entry.count < 2 else f"{mean:+.3g} ({low:+.3g} to {high:+.3g})"
    return [text, f"**{shown}**" if entry.count > 1 and not low <= 0 <= high else shown]


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
