"""Positive pairs, found by sorting labels instead of scanning an N x N mask."""

from __future__ import annotations

import torch
from torch import Tensor


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
        Cost: N log N + P. An anchor that is alone with its label has no pair.
    """
    sorted_labels, order = torch.sort(column_labels, stable=True)
    first = torch.searchsorted(sorted_labels, labels)
    counts = torch.searchsorted(sorted_labels, labels, right=True) - first
    anchors = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), counts)
    within = torch.arange(len(anchors), device=labels.device) - (counts.cumsum(0) - counts)[anchors]
    columns = order[first[anchors] + within]
    if anchor_index is None:
        return anchors, columns
    others = columns != anchor_index[anchors]
    return anchors[others], columns[others]
