"""Generalized lifted structured loss: soft farthest positive against soft nearest negative of every anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, RowSums
from distmetric.functional.segments import segment_counts, segment_logsumexp
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import Reduction
from distmetric.losses.exponential_rows import ExponentialRowLoss


@dataclass(kw_only=True, frozen=True)
class GeneralizedLiftedStructureLossConfig:
    """Settings of `GeneralizedLiftedStructureLoss`."""

    name: Literal["generalized_lifted_structure"] = "generalized_lifted_structure"
    neg_margin: float = 1.0
    """Distance up to which a negative pushes noticeably."""
    pos_margin: float = 0.0
    """Distance below which positives pull less."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 0 (nonzero_mean), or sum."""


class GeneralizedLiftedStructureLoss(ExponentialRowLoss):
    """Generalized lifted structured loss.

    Formula: L = mean_a [ log sum_{p != a, y_p = y_a} e^{D_ap - beta} + log sum_{n: y_n != y_a} e^{alpha - D_an} ]_+

    Args:
        neg_margin: alpha, in units of distance.
        pos_margin: beta, in units of distance.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: Over anchors.

    Cost: 3 B N D in one pass; memory O((B + N) D) beside three blocks.

    Corner cases: anchors without positive or without negative are left out of sum and count. On unit vectors with
    alpha = 1 the hinge hardly ever closes. Pairs at distance 0 have gradient 0.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
    """

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin

    counted = "negatives"
    power = 1.0

    def anchor_rows(self, block: PairBlock) -> Row:
        """See `RowLoss.anchor_rows`; one term per anchor."""
        valid = (block.num_positives > 0) & (block.num_negatives > 0)
        positives = block.positives_of(block.distances, -torch.inf)
        to_positives = positives.logsumexp(1)
        pushes = torch.sub(self.neg_margin, block.distances, out=block.scratch)
        shift = block.fill_same_(pushes, -torch.inf).amax(1).nan_to_num_(neginf=0.0)
        sums = pushes.sub_(shift[:, None]).exp_().sum(1)
        lifted = to_positives - self.pos_margin + shift + sums.log()
        values = torch.where(valid, F.relu(lifted), 0)
        active = values > 0
        if block.gradient is not None:
            torch.mul(pushes, torch.where(active, -1 / sums, 0)[:, None], out=block.gradient)
            pull = (positives - to_positives.masked_fill(~active, torch.inf)[:, None]).exp_()
            block.gradient[:, block.band] += pull
        return Row(values, valid, active)

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """See `RowLoss.listed`."""
        size, chosen = len(batch.labels), chosen.distinct(len(batch.column_labels))
        anchors, others = chosen.anchors_of_positives, chosen.anchors_of_negatives
        near = listed_distances(batch, anchors, chosen.positives, self.distance)
        far = listed_distances(batch, others, chosen.negatives, self.distance)
        logs = segment_logsumexp(-far, others, size)
        return self.of_positives(anchors, near, logs, segment_counts(others, size) > 0)

    def of_positives(self, anchors: Tensor, near: Tensor, logs: Tensor, can_count: Tensor) -> RowSums:
        """See `ExponentialRowLoss.of_positives`."""
        size = len(logs)
        valid = (segment_counts(anchors, size) > 0) & can_count
        to_positives = segment_logsumexp(near - self.pos_margin, anchors, size)
        lifted = torch.where(valid, to_positives, 0) + torch.where(valid, logs + self.neg_margin, 0)
        values = F.relu(lifted)
        return RowSums(values.sum(), valid.sum(), (values.detach() > 0).sum())

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"neg_margin={self.neg_margin}, pos_margin={self.pos_margin}"
