"""Reductions of listed values by the anchor they belong to, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_counts(segments: Tensor, size: int) -> Tensor:
    """How many values each of `size` segments has, (size,) int64."""
    # bincount would wait for a GPU.
    return segments.new_zeros(size).scatter_add_(0, segments, torch.ones_like(segments))


def segment_sum(values: Tensor, segments: Tensor, size: int) -> Tensor:
    """Sum of the (P, ...) values of each segment, (size, ...); 0 for an empty one."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, segments, values)


def segment_extreme(values: Tensor, segments: Tensor, size: int, largest: bool) -> Tensor:
    """Largest or smallest value of each segment, without gradient, (size,); -inf or inf for an empty one."""
    start = values.new_full((size,), -torch.inf if largest else torch.inf)
    return start.scatter_reduce_(0, segments, values.detach(), "amax" if largest else "amin")


def segment_logsumexp(values: Tensor, segments: Tensor, size: int) -> Tensor:
    """Log of the sum of exponentials of each segment, (size,); -inf with gradient 0 for an empty one.

    Args:
        values: (P,) values.
        segments: (P,) int64, 0 <= segment < size.
        size: Number of segments.
    """
    shift = segment_extreme(values, segments, size, largest=True).nan_to_num_(neginf=0.0)
    sums = segment_sum((values - shift[segments]).exp(), segments, size)
    empty = sums == 0
    return torch.where(empty, -torch.inf, torch.where(empty, 1, sums).log() + shift)
