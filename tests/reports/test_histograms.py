"""Distances of pairs, drawn from evaluation records."""

from __future__ import annotations

import numpy as np
import pytest

from distmetric.reports.album import Album
from distmetric.reports.histograms import RIDGES, PairDistances, distances_section, histogram, ridges, roc
from drawings import reaches
from html_page import Page


def record(step: int, *, calibrated: bool = True) -> dict:
    """Positive pairs at 0.5 and 1.5, negative ones at 2.5 and 3.5, in bins of one."""
    return {
        "step": step,
        "metrics": {},
        "calibration": {"threshold": 2.25, "target_far": 0.1, "far": 0.08, "tar": 1.0}
        if calibrated
        else None,
        "histogram": {"edges": [0, 1, 2, 3, 4], "positive": [3, 1, 0, 0], "negative": [0, 0, 10, 30]},
    }


def test_densities_have_area_one_and_means_are_those_of_the_bins() -> None:
    found = PairDistances.of(record(7))
    assert found is not None
    assert [side.tolist() for side in found.densities()] == [[0.75, 0.25, 0, 0], [0, 0, 0.25, 0.75]]
    assert found.means == (0.75, 3.25)
    uneven = PairDistances(0, np.array([0, 1, 4.0]), np.array([1.0, 1]), np.array([0, 5.0]))
    assert [float(side @ np.diff(uneven.edges)) for side in uneven.densities()] == [1, 1]


def test_the_roc_curve_passes_through_every_edge() -> None:
    found = PairDistances.of(record(7))
    far, tar = found.operating_points()
    assert far.tolist() == [0, 0, 0, 0.25, 1]
    assert tar.tolist() == [0, 0.75, 1, 1, 1]
    (axes,) = roc(found).axes
    curve, threshold = axes.lines
    assert curve.get_xydata().tolist() == [[0.25, 1], [1, 1]]
    assert threshold.get_xydata().tolist() == [[0.08, 1.0]]


def test_records_without_both_kinds_of_pairs_are_passed_over() -> None:
    empty = {"edges": [0, 1], "positive": [0], "negative": [4]}
    for one in ({"step": 1}, {"step": 1, "histogram": None}, {"step": 1, "histogram": empty}):
        assert PairDistances.of(one) is None
    assert distances_section([{"step": 1, "metrics": {}}], Album()).parts == ()


@pytest.mark.parametrize("count", [1, 2, 6, 50])
def test_ridges_go_from_the_first_evaluation_to_the_last(count: int) -> None:
    known = [PairDistances.of(record(100 * step)) for step in range(1, count + 1)]
    figure = ridges(known)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == min(count, RIDGES)
    assert labels[0] == "100"
    assert labels[-1] == f"{100 * count:,}"
    assert axes.get_yticks().tolist() == sorted(axes.get_yticks(), reverse=True)
    heights = {round(float(line.get_ydata().min()), 6) for line in axes.lines[:-1]}
    assert heights == set(map(float, range(len(labels))))
    assert reaches(figure) <= 0


def test_the_threshold_stands_in_the_last_ridge_only() -> None:
    known = [PairDistances.of(record(step)) for step in (1, 2)]
    line = ridges(known).axes[0].lines[-1]
    assert list(line.get_xdata()) == [2.25, 2.25]
    assert line.get_ydata()[0] == 0
    assert line.get_label() == "threshold 2.25"
    bare = [PairDistances.of(record(1, calibrated=False))]
    assert not any("threshold" in one.get_label() for one in ridges(bare).axes[0].lines)


def test_single_histograms_share_their_axis() -> None:
    figure = histogram(PairDistances.of(record(1)), "$A$", (0, 9))
    assert figure.axes[0].get_xlim() == (0, 9)
    assert figure.axes[0].get_title(loc="left") == "$A$"
    assert reaches(figure) <= 0


def test_the_section_says_in_words_what_it_shows() -> None:
    section = distances_section([record(200), record(100)], Album())
    ridge, curve = Page(section.html()).all("img")
    assert (
        "at step 100 positive pairs are 0.75 apart on average and negative pairs 3.25; at step 200"
        in ridge["alt"]
    )
    assert (
        "The threshold 2.25 accepts 100.0% of the positive pairs and 8% of the negative ones." in curve["alt"]
    )
