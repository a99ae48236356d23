"""Contrastive loss: positive pairs together, negative pairs apart up to a margin."""

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
from distmetric.functional.row_sums import Row, sum_rows
from distmetric.functional.tuples import all_positive_pairs
from distmetric.losses.base import LossTerm, MetricLoss, Reduction, listed_sums


@dataclass(kw_only=True, frozen=True)
class ContrastiveLossConfig:
    """Settings of `ContrastiveLoss`."""

    name: Literal["contrastive"] = "contrastive"
    pos_margin: float = 0.0
    """Distance up to which a positive pair is near enough."""
    neg_margin: float = 1.0
    """Distance from which on a negative pair is far enough."""
    squared: bool = False
    """Halved squares of what exceeds the margins (Hadsell et al.) instead of the excess itself."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""
    reduction: Reduction = "nonzero_mean"
    """Mean over pairs that still push or pull (nonzero_mean), over all pairs (mean), or sum."""


class ContrastiveLoss(MetricLoss):
    """Contrastive loss, positive and negative pairs each averaged on their own.

    Formula: L = mean_{(i,j): y_i = y_j} g(D_ij - m_p) + mean_{(i,k): y_i != y_k} g(m_n - D_ik), with
    g(z) = max(0, z), or max(0, z)^2 / 2 if `squared`; by default the means are over terms above 0.

    Args:
        pos_margin: m_p, in units of distance.
        neg_margin: m_n, in units of distance.
        squared: The form of Hadsell et al.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: Of both means.

    Cost: 3 B N D for the negatives in one pass, and B (K - 1) D for the positives; memory O((B + N) D + B K) beside
    three blocks. The default is what pytorch-metric-learning's class of this name computes; it keeps N^2 matrices
    and index lists.

    Corner cases: pairs at distance 0 have gradient 0; no pair of a kind makes its mean 0 with a live graph.

    Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
    """

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        squared: bool = False,
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
        reduction: Reduction = "nonzero_mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.squared = squared

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term over positive pairs and one over negative pairs."""
        chosen = batch.tuples
        if chosen is None:
            positives = all_positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
            negative = sum_rows(batch, self.distance, self._negatives)
        else:
            positives = chosen.anchors_of_positives, chosen.positives
            far = listed_distances(batch, chosen.anchors_of_negatives, chosen.negatives, self.distance)
            negative = listed_sums(self._penalty(self.neg_margin - far))
        near = listed_distances(batch, *positives, self.distance)
        positive = listed_sums(self._penalty(near - self.pos_margin))
        return [self.reduced(positive), self.reduced(negative)]

    def _penalty(self, excess: Tensor) -> Tensor:
        return F.relu(excess).square() / 2 if self.squared else F.relu(excess)

    def _negatives(self, block: PairBlock) -> Row:
        excess = torch.sub(self.neg_margin, block.distances, out=block.scratch)
        block.fill_same_(excess, 0.0).relu_()
        values = excess.square().sum(1).div_(2) if self.squared else excess.sum(1)
        active = torch.sign(excess, out=block.gradient)
        num_active = active.sum(1)
        if block.gradient is not None:
            torch.neg(excess if self.squared else active, out=block.gradient)
        return Row(values, block.num_negatives, num_active)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"pos_margin={self.pos_margin}, neg_margin={self.neg_margin}, squared={self.squared}"
