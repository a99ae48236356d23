"""Distances inside a joint batch, seen from a sample of its anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmetric.functional.distances import at_least_float32, squared_distance_block
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import label_ranges

# Distances are measured from about this many anchors, over all ranks, to at most that many columns for percentiles: a
# sample of the joint batch large enough for them, and small beside the loss. Of an anchor's positives the first ones
# are looked at, since columns that are evenly spread would hardly meet any.
MAX_ANCHORS, MAX_COLUMNS, MAX_POSITIVES = 128, 4096, 64


@dataclass(frozen=True)
class BatchDistances:
    """Distances from A sampled anchors.

    Args:
        positives: (A, P) distances to positives, wherever `is_positive`; of an anchor with more than `MAX_POSITIVES`
            the first so many.
        is_positive: (A, P) bool.
        negatives: (A, M) distances to a sample of the columns, negatives wherever `is_negative`.
        is_negative: (A, M) bool.
        farthest_positive: (A,) -inf where an anchor has none.
        nearest_negative: (A,) inf where an anchor has none.
    """

    positives: Tensor
    is_positive: Tensor
    negatives: Tensor
    is_negative: Tensor
    farthest_positive: Tensor
    nearest_negative: Tensor


@torch.no_grad()
def batch_distances(batch: JointBatch) -> BatchDistances:
    """Measure a batch from this rank's share of `MAX_ANCHORS` anchors, evenly spread.

    Cost: A N D multiplications. Nothing is read back from the device where the batch knows its labels on the host.
    """
    anchor_step = max(1, math.ceil(len(batch.anchors) * batch.world_size / MAX_ANCHORS))
    anchors = at_least_float32(batch.anchors.detach()[::anchor_step])
    columns = at_least_float32(batch.columns.detach())
    labels = batch.labels[::anchor_step].contiguous()
    own = None if batch.anchor_index is None else batch.anchor_index[::anchor_step, None]
    distances = squared_distance_block(anchors, columns).sqrt_()
    positive = labels[:, None] == batch.column_labels
    negative = ~positive
    if own is not None:
        positive.scatter_(1, own, False)
    places, is_positive = _positive_places(batch, labels, own)
    column_step = max(1, math.ceil(len(columns) / MAX_COLUMNS))
    return BatchDistances(
        positives=distances.gather(1, places),
        is_positive=is_positive,
        negatives=distances[:, ::column_step],
        is_negative=negative[:, ::column_step],
        farthest_positive=distances.masked_fill(~positive, -torch.inf).amax(1),
        nearest_negative=distances.masked_fill(~negative, torch.inf).amin(1),
    )


def _positive_places(batch: JointBatch, labels: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """(A, P) columns among which each anchor's positives are, and (A, P) bool, which of them it has."""
    most = int(np.unique(batch.on_host().columns, return_counts=True)[1].max(initial=0))
    sorted_labels, order = torch.sort(batch.column_labels, stable=True)
    first, last = label_ranges(labels, sorted_labels)
    number = torch.arange(min(most, MAX_POSITIVES + 1), device=labels.device)
    places = first[:, None] + number
    columns = order[places.clamp_max(len(order) - 1)]
    exists = places < last[:, None]
    return columns, exists if own is None else exists & (columns != own)
