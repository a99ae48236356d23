"""Columns of equal label lie side by side once columns are sorted by label: no pair is compared to find them."""

from __future__ import annotations

import torch
from torch import Tensor


def label_ranges(labels: Tensor, sorted_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each label begins and ends among sorted ones: two (B,) int64 tensors; equal where it is absent."""
    first = torch.searchsorted(sorted_labels, labels)
    return first, torch.searchsorted(sorted_labels, labels, right=True)


def positive_columns(labels: Tensor, column_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, (P,) int64 each, of all entries of equal label, by ascending row.

    Cost: N log N + P, for P such entries.
    """
    sorted_labels, order = torch.sort(column_labels, stable=True)
    first, last = label_ranges(labels, sorted_labels)
    count = last - first
    rows = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), count)
    within = torch.arange(len(rows), device=labels.device) - (count.cumsum(0) - count)[rows]
    return rows, order[first[rows] + within]
