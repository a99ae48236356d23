"""Distances inside a joint batch, seen from a sample of its anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.functional.distances import at_least_float32, squared_distance_block
from distmetric.functional.joint_batch import JointBatch

# Distances are measured from at most this many own anchors, to at most that many columns for percentiles: a sample of
# the joint batch large enough for them, and small beside the loss.
MAX_ANCHORS, MAX_COLUMNS = 128, 4096


@dataclass(frozen=True)
class BatchDistances:
    """Distances from A sampled anchors.

    Args:
        positives: (P,) distances of all their positive pairs.
        negatives: (Q,) distances of their negative pairs, to a sample of the columns.
        farthest_positive: (A,) -inf where an anchor has none.
        nearest_negative: (A,) inf where an anchor has none.
    """

    positives: Tensor
    negatives: Tensor
    farthest_positive: Tensor
    nearest_negative: Tensor


@torch.no_grad()
def batch_distances(batch: JointBatch) -> BatchDistances:
    """Measure a batch from at most `MAX_ANCHORS` of this rank's anchors, evenly spread.

    Cost: A N D multiplications.
    """
    anchor_step = max(1, math.ceil(len(batch.anchors) / MAX_ANCHORS))
    anchors = at_least_float32(batch.anchors.detach()[::anchor_step])
    columns = at_least_float32(batch.columns.detach())
    labels = batch.labels[::anchor_step]
    own = None if batch.anchor_index is None else batch.anchor_index[::anchor_step]
    distances = squared_distance_block(anchors, columns).sqrt_()
    positive = labels[:, None] == batch.column_labels
    negative = ~positive
    if own is not None:
        positive.scatter_(1, own[:, None], False)
    column_step = max(1, math.ceil(len(columns) / MAX_COLUMNS))
    return BatchDistances(
        positives=distances[positive],
        negatives=distances[:, ::column_step][negative[:, ::column_step]],
        farthest_positive=distances.masked_fill(~positive, -torch.inf).amax(1),
        nearest_negative=distances.masked_fill(~negative, torch.inf).amin(1),
    )
