"""Farthest positive and nearest negative of every anchor, searched block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.fused_rows import fused_hardest, is_fused
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import SortedPairs

_CHUNK = 64  # columns of which only the extreme is looked at first


class HardestPairs(NamedTuple):
    """Hardest pairs of B anchors among N columns.

    Attributes:
        positive: (B,) int64 column of the farthest positive; meaningless where `valid` is False.
        negative: (B,) int64 column of the nearest negative; meaningless where `valid` is False.
        valid: (B,) bool, whether the anchor has at least one positive and one negative.
    """

    positive: Tensor
    negative: Tensor
    valid: Tensor


@torch.no_grad()
def hardest_pairs(batch: JointBatch, distance: Distance = "euclidean") -> HardestPairs:
    """Find, without gradient, the farthest positive and the nearest negative column of each anchor.

    Formula: p(a) = argmax_{y_c = y_a, c != a} d(x_a, x_c), n(a) = argmin_{y_c != y_a} d(x_a, x_c).

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        distance: What makes a pair far; the euclidean distance and its square choose the same.

    Returns:
        Indices and validity, O(B). Cost: B N D multiplications and two blocks of `BLOCK_BYTES`. Ties go to one of
        the tied columns. An anchor without positive or without negative is not valid.
    """
    if is_fused(batch):
        return HardestPairs(*fused_hardest(batch, distance))
    positive, negative = (torch.zeros_like(batch.labels) for _ in range(2))
    valid = torch.zeros_like(batch.labels, dtype=torch.bool)
    # Roots keep the order and need not be taken.
    for block in SortedPairs(batch, "squared_euclidean" if distance == "euclidean" else distance).blocks():
        farthest = block.positives_of(block.distances, -torch.inf)
        if farthest.shape[1]:
            positive[block.rows] = block.columns[farthest.argmax(1) + block.band.start]
        negative[block.rows] = block.columns[argmin(block.fill_same_(block.distances, torch.inf))]
        valid[block.rows] = (block.num_positives > 0) & (block.num_negatives > 0)
    return HardestPairs(positive, negative, valid)


def argmin(values: Tensor) -> Tensor:
    """Column of the smallest entry of each row of (b, N) values, (b,) int64; much faster than `Tensor.argmin` on a CPU.

    A minimum is one vectorized pass; only the chunk that holds it is then searched for where it is.
    """
    rows, columns = values.shape
    whole = columns - columns % _CHUNK
    if columns < 4 * _CHUNK:
        return values.argmin(1)
    chunks = values[:, :whole].reshape(rows, -1, _CHUNK)
    smallest, chunk = chunks.amin(2).min(1)
    within = chunks[torch.arange(rows, device=values.device), chunk].argmin(1)
    found: Tensor = chunk * _CHUNK + within
    if whole == columns:
        return found
    tail, place = values[:, whole:].min(1)
    return torch.where(tail < smallest, whole + place, found)
