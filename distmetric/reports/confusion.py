"""Which classes are taken for which others, counted from nearest neighbors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distmetric.reports.history import Numbers
from distmetric.reports.page import Cell, RawCell, Section, table
from distmetric.reports.thumbnails import Images, pick, thumbnail

SHOWN = 10
"""Pairs of classes in the table."""


@dataclass(frozen=True)
class ConfusedPair:
    """A class whose queries find another class.

    Attributes:
        label: the class of the queries.
        other: the class of their nearest neighbors.
        count: how many queries of the class find the other.
        size: how many images the class has.
        distance: mean distance of these queries to their nearest neighbors.
        query: the one of them that is nearest to its neighbor.
        neighbor: that neighbor.
    """

    label: int
    other: int
    count: int
    size: int
    distance: float
    query: int
    neighbor: int


def confused_pairs(
    labels: NDArray[np.integer], neighbors: NDArray[np.int64], distances: Numbers
) -> list[ConfusedPair]:
    """Count, for every two classes, the queries of one whose nearest neighbor is of the other.

    Args:
        labels: (N,) integer classes.
        neighbors: (N,) nearest other row of every row.
        distances: (N,) its distance.

    Returns:
        The ordered pairs of classes with at least one such query: most queries first, then by mean distance, then
        by label. Cost: a sort of N.
    """
    queries = np.flatnonzero(labels[neighbors] != labels)
    if not len(queries):
        return []
    classes, sizes = np.unique(labels, return_counts=True)
    ends = np.stack([labels[queries], labels[neighbors[queries]]], axis=1)
    pairs, place, counts = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    means = np.bincount(place, distances[queries]) / counts
    # The nearest query of every pair is the first one of it in this order.
    order = np.lexsort((queries, distances[queries], place))
    nearest = queries[order[np.searchsorted(place[order], np.arange(len(pairs)))]]
    found = zip(
        pairs.tolist(),
        counts.tolist(),
        sizes[np.searchsorted(classes, pairs[:, 0])].tolist(),
        means,
        nearest,
        strict=True,
    )
    listed = [
        ConfusedPair(label, other, count, size, float(mean), int(query), int(neighbors[query]))
        for (label, other), count, size, mean, query in found
    ]
    return sorted(listed, key=lambda pair: (-pair.count, pair.distance, pair.label, pair.other))


def confusion_section(
    labels: NDArray[np.integer],
    neighbors: NDArray[np.int64],
    distances: Numbers,
    names: Sequence[str],
    images: Images | None,
) -> Section:
    """The section that lists the most confused pairs of classes.

    Args:
        labels: (N,) integer classes.
        neighbors: (N,) nearest other row of every row.
        distances: (N,) its distance.
        names: (N,) name of every row's class.
        images: (N, C, H, W) uint8; no pictures without.

    Returns:
        The section, without parts where no nearest neighbor is of another class.
    """
    pairs = confused_pairs(labels, neighbors, distances)
    if not pairs:
        return Section("Confused classes", "", ())
    shown, total = pairs[:SHOWN], sum(pair.count for pair in pairs)
    some = f", of which the {SHOWN} most frequent are shown" if len(shown) < len(pairs) else ""
    lead = (
        f"Images whose nearest neighbor is of another class: {total:,} of {len(labels):,}. Pairs of classes among "
        f"them: {len(pairs):,}{some}, each with its closest example, an image and its nearest neighbor."
    )
    head = ["Class, taken for", *(["Example"] if images is not None else []), "How many", "How far"]
    rows = [
        [
            Cell(names[pair.query], f"→ {names[pair.neighbor]}"),
            *([_example(pair, names, images)] if images is not None else []),
            Cell(f"{pair.count:,}", f"of {pair.size:,} images", "number"),
            Cell(f"{pair.distance:.3g}", "mean distance", "number"),
        ]
        for pair in shown
    ]
    return Section("Confused classes", lead, [table(head, rows, "pairs")])


def _example(pair: ConfusedPair, names: Sequence[str], images: Images) -> RawCell:
    first, second = pick(images, np.array([pair.query, pair.neighbor]))
    shots = thumbnail(first, f"an image of {names[pair.query]}")
    shots += thumbnail(second, f"its nearest neighbor, of {names[pair.neighbor]}")
    return RawCell(f'<div class="shots">{shots}</div>')
