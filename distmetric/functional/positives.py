"""Positive pairs, found by sorting labels instead of scanning an N x N mask."""

from __future__ import annotations

from torch import Tensor

from distmetric.functional.label_index import LabelIndex


def positive_pairs(
    labels: Tensor, column_labels: Tensor, anchor_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """List all (anchor, column) pairs of equal label, without the pairs of an anchor with itself.

    Args:
        labels: (B,) int64 labels of the anchors.
        column_labels: (N,) int64 labels of the columns.
        anchor_index: (B,) column of each anchor itself, or None for disjoint sets.

    Returns:
        Two (P,) int64 tensors, rows of anchors (ascending) and of columns. P is B (K - 1) for K rows a class.
        Cost: N log N + B K for the largest class of K. An anchor that is alone with its label has no pair.
    """
    same = LabelIndex(column_labels).columns_of(labels)
    positive = same.positives(anchor_index)
    anchors = positive.nonzero()[:, 0]
    return anchors, same.columns[positive]
