"""N-pair loss: one pair of every class, each positive against those of the other classes in a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import label_ranges
from distmetric.functional.row_sums import sum_rows
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import LossTerm, MetricLoss, Reduction
from distmetric.losses.ntxent import one_positive_rows


@dataclass(kw_only=True, frozen=True)
class NPairsLossConfig:
    """Settings of `NPairsLoss`."""

    name: Literal["n_pairs"] = "n_pairs"
    distance: Distance = "dot_product"
    """dot_product (a.b), cosine, euclidean or squared_euclidean (both negated to be similarities)."""
    reduction: Reduction = "mean"
    """Mean over pairs (mean), over those that still push or pull (nonzero_mean), or sum."""


class NPairsLoss(MetricLoss):
    """Multi-class N-pair loss.

    Formula, with one anchor a_c and one positive p_c of each of the M classes that have two rows or more:

        L = mean_c log(1 + sum_{k != c} e^{s(a_c, p_k) - s(a_c, p_c)})

    The anchor is the first row of its class in the joint batch and the positive the second, whichever ranks they are
    on; other rows have no part. Of a miner's list, the first anchor of each class that has a positive, with the first
    of its positives. pytorch-metric-learning takes the same pairs, except that in a list which is not sorted by anchor
    it goes by the order of the list. Against a reference set, which it refuses, the positives are the first of their
    class there.

    Args:
        distance: s is the dot product, the cosine, or the negated euclidean distance or its square.
        normalize_embeddings: Whether to compare unit vectors, as pytorch-metric-learning does by default; the paper
            compares raw embeddings and adds a penalty on their length, which this loss leaves to weight decay.
        reduction: Over pairs.

    Cost: 3 M^2 D / W, and B log B to find the pairs; memory O((B + N) D) beside three blocks.

    Corner cases: with a single class that has a pair the loss is 0. A `CrossBatchMemory` around it is refused.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016.
    """

    over_pairs = False  # a pair has both of its ends in the batch

    def __init__(
        self,
        *,
        distance: Distance = "dot_product",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per class that has a pair and its anchor on this rank.

        Raises:
            ValueError: If the columns are a memory: it may hold the anchors themselves, and its rows are no pairs.
        """
        joint = batch.gather_rows is not None
        if not joint and (batch.anchor_index is not None or batch.world_size > 1):
            raise ValueError("NPairsLoss takes its pairs from the batch and cannot use a memory")
        labels = batch.column_labels if joint else batch.labels
        partners = _partners(batch)
        anchors = _first_of_each_label(labels, (partners >= 0).nonzero()[:, 0])
        own = anchors
        if batch.anchor_index is not None:
            own = torch.isin(batch.anchor_index, anchors).nonzero()[:, 0]
        pairs = JointBatch(
            batch.anchors[own], batch.labels[own], batch.columns[partners[anchors]], labels[anchors], None
        )
        return [self.reduced(sum_rows(pairs, self.distance, one_positive_rows(1.0)))]


def _partners(batch: JointBatch) -> Tensor:
    """For every anchor of all ranks, (N,) int64, the column of the positive it would be paired with, or -1."""
    if batch.tuples is not None:
        own = _first_listed(batch.tuples, len(batch.labels))
        return own if batch.gather_rows is None else batch.gather_rows(own)
    if batch.gather_rows is None:
        return _first_of_same_label(batch.labels, batch.column_labels, None)
    itself = torch.arange(len(batch.column_labels), device=batch.labels.device)
    return _first_of_same_label(batch.column_labels, batch.column_labels, itself)


def _first_of_same_label(labels: Tensor, column_labels: Tensor, itself: Tensor | None) -> Tensor:
    """The first column of each row's label, but for the row `itself`, (B,) int64; -1 where there is none."""
    sorted_labels, order = torch.sort(column_labels, stable=True)
    first, last = label_ranges(labels, sorted_labels)
    none = order.new_full((2,), -1)
    order = torch.cat([order, none])
    if itself is not None:
        first = first + (order[first] == itself)
    return torch.where(first < last, order[first], -1)


def _first_listed(tuples: Tuples, size: int) -> Tensor:
    """The first positive that is listed for each of `size` anchors, (size,) int64; -1 where there is none."""
    anchors, positives = tuples.anchors_of_positives, tuples.positives
    entry = torch.arange(len(anchors), device=anchors.device)
    earliest = entry.new_full((size,), len(anchors)).scatter_reduce_(0, anchors, entry, "amin")
    return torch.cat([positives, positives.new_full((1,), -1)])[earliest]


def _first_of_each_label(labels: Tensor, places: Tensor) -> Tensor:
    """Of ascending places, (P,) int64, the first of each label."""
    sorted_labels, order = torch.sort(labels[places], stable=True)
    first = torch.ones_like(sorted_labels, dtype=torch.bool)
    first[1:] = sorted_labels[1:] != sorted_labels[:-1]
    return places[order[first]]
