"""Distances of positive and of negative pairs over the evaluations of a run, and the threshold between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from distmetric.reports.album import Album
from distmetric.reports.figures import legend_below
from distmetric.reports.history import Numbers, Record, in_order
from distmetric.reports.page import Section
from distmetric.reports.theme import FIGURE_WIDTH, LIGHT, SMALL, Theme, single_axes

RIDGES = 6
"""Evaluations that are drawn."""


@dataclass(frozen=True)
class PairDistances:
    """How far apart pairs of the same class and of different classes are, in one evaluation.

    Attributes:
        step: steps that the weights had done.
        edges: (bins + 1,) distances.
        positive: (bins,) pairs of the same class.
        negative: (bins,) pairs of different classes.
        threshold: distance up to which a pair is taken for one of the same class; None where none was calibrated.
        far: share of negative pairs within the threshold.
        tar: share of positive pairs within it.
    """

    step: int
    edges: Numbers
    positive: Numbers
    negative: Numbers
    threshold: float | None = None
    far: float = 0.0
    tar: float = 0.0

    @classmethod
    def of(cls, record: Record) -> "PairDistances | None":
        """What an evaluation record says of distances; None where it says nothing, or knows no pair of either kind."""
        histogram: Mapping[str, Any] | None = record.get("histogram")
        if not histogram:
            return None
        found = (np.asarray(histogram[name], np.float64) for name in ("edges", "positive", "negative"))
        edges, positive, negative = found
        if not (positive.any() and negative.any()):
            return None
        known: Mapping[str, Any] = record.get("calibration") or {}
        return cls(
            *(int(record["step"]), edges, positive, negative),
            threshold=known.get("threshold"),
            far=known.get("far", 0.0),
            tar=known.get("tar", 0.0),
        )

    @property
    def means(self) -> tuple[float, float]:
        """Mean distance of positive and of negative pairs, as far as bins tell."""
        centers = (self.edges[1:] + self.edges[:-1]) / 2
        positive, negative = (
            float(centers @ counts / counts.sum()) for counts in (self.positive, self.negative)
        )
        return positive, negative

    def densities(self) -> tuple[Numbers, Numbers]:
        """(bins,) densities of positive and of negative pairs, each of area one."""
        widths = np.diff(self.edges)
        positive, negative = (counts / (counts.sum() * widths) for counts in (self.positive, self.negative))
        return positive, negative

    def operating_points(self) -> tuple[Numbers, Numbers]:
        """(bins + 1,) shares of negative and of positive pairs within each edge: the ROC curve."""
        negative, positive = (
            np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
            for counts in (self.negative, self.positive)
        )
        return negative, positive


def distances_section(evaluations: Sequence[Record], album: Album) -> Section:
    """The section of distances: ridges over the evaluations, and the ROC curve of the last one.

    Args:
        evaluations: records of evaluations, in any order; those without a histogram are passed over.
        album: where figures go.

    Returns:
        The section, without parts where no record has a histogram.
    """
    known = [found for record in in_order(evaluations) if (found := PairDistances.of(record)) is not None]
    lead = (
        "All pairs of evaluated images: how far apart those of the same class are, and those of different "
        "classes. Training pulls the two apart; what still overlaps cannot be told apart by distance."
    )
    if not known:
        return Section("Distances", lead, ())
    told = "; ".join(
        f"at step {each.step:,} positive pairs are {each.means[0]:.3g} apart on average and negative pairs "
        f"{each.means[1]:.3g}"
        for each in (known[:1] + known[-1:])[: len(known)]
    )
    caption = "Distances of positive and negative pairs, from the first evaluation (top) to the last."
    parts = [album.chart("distances", partial(ridges, known), f"{caption} {told}.", caption)]
    last = known[-1]
    caption = "Positive pairs accepted against negative pairs accepted, for every threshold, at the last evaluation."
    parts.append(album.chart("roc", partial(roc, last), f"{caption} {_operating(last)}", caption))
    return Section("Distances", lead, [f'<div class="panels">{"".join(parts)}</div>'])


def ridges(known: Sequence[PairDistances], theme: Theme = LIGHT) -> Figure:
    """Draw the densities of positive and negative distances of some evaluations, one ridge below the other.

    Args:
        known: evaluations by step, at least one; of more than `RIDGES` some are drawn, evenly spaced.
        theme: colors.

    Returns:
        The figure; the last ridge is the lowest, and has the threshold if there is one.
    """
    chosen = [known[at] for at in np.unique(np.linspace(0, len(known) - 1, RIDGES).round().astype(int))]
    figure, axes = single_axes(
        FIGURE_WIDTH, 2.1 + 0.4 * len(chosen), theme, "Distances of pairs", left=0.85, bottom=1.0
    )
    top = max(float(max(side.max() for side in each.densities())) for each in chosen)
    for place, each in enumerate(chosen):
        _ridge(axes, each, float(len(chosen) - 1 - place), 1.6 / top, place, theme)
    axes.set_yticks(range(len(chosen))[::-1], [f"{each.step:,}" for each in chosen])
    axes.set_ylabel("step", color=theme.muted, fontsize=SMALL)
    axes.set_xlabel("distance", color=theme.muted, fontsize=SMALL)
    axes.grid(visible=False)
    _threshold(axes, chosen[-1], theme)
    legend_below(axes, theme, columns=2)
    return figure


def histogram(each: PairDistances, title: str, limits: tuple[float, float], theme: Theme = LIGHT) -> Figure:
    """Draw the densities of one evaluation by themselves.

    Args:
        each: the evaluation.
        title: any text.
        limits: of the axis of distances, so that several figures can share it.
        theme: colors.

    Returns:
        The figure.
    """
    figure, axes = single_axes(FIGURE_WIDTH, 2.6, theme, title, left=0.15, bottom=1.0)
    _ridge(axes, each, 0.0, 1 / max(float(side.max()) for side in each.densities()), 0, theme)
    axes.set_yticks([])
    axes.set_xlim(*limits)
    axes.set_xlabel("distance", color=theme.muted, fontsize=SMALL)
    _threshold(axes, each, theme)
    legend_below(axes, theme, columns=2)
    return figure


def roc(each: PairDistances, theme: Theme = LIGHT) -> Figure:
    """Draw the share of positive pairs accepted against that of negative pairs, on a logarithmic axis.

    Args:
        each: an evaluation.
        theme: colors.

    Returns:
        The figure, with the calibrated threshold marked; points without any negative pair are left out.
    """
    far, tar = each.operating_points()
    figure, axes = single_axes(FIGURE_WIDTH, 3.6, theme, "Accepted pairs (ROC)", left=0.85)
    seen = far > 0
    axes.plot(far[seen], tar[seen], color=theme.colors["first"], linewidth=2, marker="o", markersize=2.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_xlabel("negative pairs accepted", color=theme.muted, fontsize=SMALL)
    axes.set_ylabel("positive pairs accepted", color=theme.muted, fontsize=SMALL)
    if each.threshold is not None and each.far > 0:
        axes.plot(each.far, each.tar, "D", color=theme.colors["second"], markersize=7, label="threshold")
        axes.legend(frameon=False, labelcolor=theme.text, fontsize=SMALL, loc="lower right")
    return figure


def _ridge(axes: Axes, each: PairDistances, base: float, scale: float, order: int, theme: Theme) -> None:
    for density, color, name in zip(
        each.densities(), ("third", "second"), ("same class", "different classes"), strict=True
    ):
        centers, hue = (each.edges[1:] + each.edges[:-1]) / 2, theme.colors[color]
        height = base + scale * density
        label = name if order == 0 else None
        axes.fill_between(
            centers, base, height, color=hue, alpha=0.35, linewidth=0, zorder=2 + order, label=label
        )
        axes.plot(centers, height, color=hue, linewidth=1.5, zorder=2 + order)


def _threshold(axes: Axes, each: PairDistances, theme: Theme) -> None:
    """Mark the threshold in the lowest ridge."""
    if each.threshold is not None:
        axes.plot(
            [each.threshold] * 2,
            [0, 1.1],
            color=theme.text,
            linewidth=1.3,
            linestyle=(0, (4, 2)),
            zorder=50,
            label=f"threshold {each.threshold:.3g}",
        )


def _operating(each: PairDistances) -> str:
    if each.threshold is None:
        return ""
    return (
        f"The threshold {each.threshold:.3g} accepts {100 * each.tar:.1f}% of the positive pairs and "
        f"{100 * each.far:.3g}% of the negative ones."
    )
