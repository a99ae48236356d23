"""Farthest positive and nearest negative of every anchor, searched block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distmetric.functional.distances import at_least_float32, row_blocks
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_index import LabelIndex


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
    same = LabelIndex(batch.column_labels).columns_of(batch.labels)
    positives = same.positives(batch.anchor_index)
    positive, negative = (torch.empty_like(batch.labels) for _ in range(2))
    for rows in row_blocks(len(anchors), len(columns), anchors):
        # An anchor's own square is the same in its whole row and does not change which column is the extreme one.
        distances = torch.addmm(column_squares, anchors[rows], columns.T, alpha=-2.0)
        to_same = distances.gather(1, same.columns[rows]).masked_fill_(~positives[rows], -torch.inf)
        positive[rows] = same.columns[rows].gather(1, to_same.argmax(1, keepdim=True)).squeeze(1)
        negative[rows] = same[rows].fill_(distances, torch.inf).argmin(1)
    return HardestPairs(positive, negative, positives.any(1) & (same.counts < len(columns)))
