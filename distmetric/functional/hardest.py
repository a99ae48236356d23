"""Farthest positive and nearest negative of every anchor, searched block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distmetric.functional.distances import at_least_float32, row_blocks, squared_distance_block
from distmetric.functional.joint_batch import JointBatch


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
def hardest_pairs(batch: JointBatch) -> HardestPairs:
    """Find, without gradient, the farthest positive and the nearest negative column of each anchor.

    Formula: p(a) = argmax_{y_c = y_a, c != a} |x_a - x_c|, n(a) = argmin_{y_c != y_a} |x_a - x_c|.

    Args:
        batch: Anchors (B, D) and columns (N, D); float16 and bfloat16 are compared in float32.

    Returns:
        Indices and validity, O(B). Cost: B N D multiplications and one block of `BLOCK_BYTES`. Ties go to one of
        the tied columns. An anchor without positive or without negative is not valid.
    """
    anchors, columns = at_least_float32(batch.anchors), at_least_float32(batch.columns)
    column_squares = columns.square().sum(1)
    size = len(anchors)
    positive = torch.empty(size, dtype=torch.int64, device=anchors.device)
    negative = torch.empty_like(positive)
    valid = torch.empty(size, dtype=torch.bool, device=anchors.device)
    for rows in row_blocks(size, len(columns), anchors):
        distances = squared_distance_block(anchors[rows], columns, column_squares)
        same = batch.labels[rows, None] == batch.column_labels
        nearest, negative[rows] = distances.masked_fill(same, torch.inf).min(1)
        if batch.anchor_index is not None:
            same.scatter_(1, batch.anchor_index[rows, None], False)
        farthest, positive[rows] = distances.masked_fill_(~same, -torch.inf).max(1)
        valid[rows] = (nearest < torch.inf) & (farthest > -torch.inf)
    return HardestPairs(positive, negative, valid)
