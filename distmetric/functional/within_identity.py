"""Within an identity: whom an anchor resembles most and least by something else than its embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from distmetric.functional.distances import block_bytes, paired_distances
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import expanded_ranges, label_ranges
from distmetric.functional.segments import segment_extreme
from distmetric.functional.tuples import Tuples

SideDistance = Callable[[Tensor, Tensor], Tensor]
"""Turns (P, S) rows and (P, S) rows into their (P,) distances."""


def value_differences(first: Tensor, second: Tensor) -> Tensor:
    """Hamming distance of rows of attribute values; an unknown value is half a difference, so that it decides nothing.

    Args:
        first: (P, S) int64 values, below 0 where unknown.
        second: (P, S) int64 values, below 0 where unknown.

    Returns:
        (P,) float32 numbers of attributes that differ.
    """
    unknown = (first < 0) | (second < 0)
    return torch.where(unknown, 0.5, (first != second).float()).sum(1)


@torch.no_grad()
def identity_extremes(
    batch: JointBatch, side: Tensor, column_side: Tensor, distance: SideDistance = paired_distances
) -> Tuples:
    """Find, among the columns of each anchor's own label, the nearest and the farthest in a side distance A.

    Formula: ip(a) = argmin_{y_c = y_a, c != a} A(a, c), in(a) = argmax_{y_c = y_a, c != a} A(a, c).

    Args:
        batch: Whose labels and whose anchors among the columns; its embeddings play no part.
        side: (B, S) what the anchors are compared by: predicted logits, true values, time, place.
        column_side: (N, S) the same of the columns.
        distance: A, for listed pairs; euclidean by default.

    Returns:
        Pairs, anchors ascending: the nearest as positives, the farthest as negatives, although both have the
        anchor's label. Several where they tie, none for an anchor that is alone with its label; the order of the
        columns decides nothing. Cost: N log N + P S for the P pairs of equal label; memory O(B), the pairs that
        are returned, and a few blocks of `BLOCK_BYTES`.
    """

    def blocks() -> Iterator[tuple[Tensor, ...]]:
        for rows, columns in _same_label_pairs(batch, width=side.shape[1]):
            values = distance(side[rows], column_side[columns])
            chosen = (
                values == segment_extreme(values, rows, len(side), largest)[rows] for largest in (False, True)
            )
            yield tuple(part[kept] for kept in chosen for part in (rows, columns))

    near_rows, nearest, far_rows, farthest = collected(blocks(), 4, batch.labels)
    return Tuples(near_rows, nearest, far_rows, farthest, triplets=False)


def _same_label_pairs(batch: JointBatch, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of equal label but an anchor with itself, some anchors at a time: rows and columns."""
    sorted_labels, order = torch.sort(batch.column_labels, stable=True)
    first, last = label_ranges(batch.labels, sorted_labels)
    counts = last - first
    at_once = max(1, block_bytes(order.device) // (8 * max(1, width)))
    # A block ends where another `at_once` pairs are full; one more row of pairs may be in it.
    full = counts.cumsum(0).sub_(1).div_(at_once, rounding_mode="floor")
    sizes = torch.unique_consecutive(full, return_counts=True)[1].tolist()
    for anchors in torch.split(torch.arange(len(counts), device=order.device), sizes):
        block_rows, places = expanded_ranges(first[anchors], last[anchors])
        rows, columns = anchors[block_rows], order[places]
        if batch.anchor_index is not None:
            other = columns != batch.anchor_index[rows]
            rows, columns = rows[other], columns[other]
        yield rows, columns
