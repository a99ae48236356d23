"""Columns of equal label lie side by side once columns are sorted by label: no pair is compared to find them."""

from __future__ import annotations

import torch
from torch import Tensor


def label_ranges(labels: Tensor, sorted_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each label begins and ends among sorted ones: two (B,) int64 tensors; equal where it is absent."""
    first = torch.searchsorted(sorted_labels, labels)
    return first, torch.searchsorted(sorted_labels, labels, right=True)


def expanded_ranges(first: Tensor, last: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Write out ranges first_i .. last_i - 1: for each of their members i, ascending, and the member itself.

    No GPU is waited for where the `total` number of members is known on the host.
    """
    count = last - first
    ranges = torch.repeat_interleave(torch.arange(len(first), device=first.device), count, output_size=total)
    within = torch.arange(len(ranges), device=first.device) - (count.cumsum(0) - count)[ranges]
    return ranges, first[ranges] + within


def inverse(order: Tensor) -> Tensor:
    """At which place of a permutation each number is."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def positive_columns(labels: Tensor, column_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, (P,) int64 each, of all entries of equal label, by ascending row.

    Cost: N log N + P, for P such entries.
    """
    sorted_labels, order = torch.sort(column_labels, stable=True)
    rows, places = expanded_ranges(*label_ranges(labels, sorted_labels))
    return rows, order[places]
