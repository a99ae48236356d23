"""Lifted structured loss: every positive pair against all negatives of both its ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.nearest_negatives import negative_logsumexp
from distmetric.functional.segments import segment_logsumexp
from distmetric.functional.tuples import all_positive_pairs
from distmetric.losses.base import ACTIVE_ABOVE, LossTerm, MetricLoss, Reduction, listed_sums, live_zero


@dataclass(kw_only=True, frozen=True)
class LiftedStructureLossConfig:
    """Settings of `LiftedStructureLoss`."""

    name: Literal["lifted_structure"] = "lifted_structure"
    neg_margin: float = 1.0
    """Distance up to which a negative pushes noticeably (alpha of the paper)."""
    pos_margin: float = 0.0
    """Distance below which a positive pair no longer pulls."""
    squared: bool = True
    """Halved squares of the hinge (Song et al.), or the hinge itself (as Hermans et al. write it)."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""
    reduction: Reduction = "mean"
    """Mean over positive pairs (mean), over those above 0 (nonzero_mean), or sum over both directions of each."""


class LiftedStructureLoss(MetricLoss):
    """Lifted structured feature embedding, the smooth upper bound that its authors optimize.

    Formula, over the set P of positive pairs, with l_i = log sum_{k: y_k != y_i} exp(alpha - D_ik):

        J_ij = logaddexp(l_i, l_j) + D_ij - beta,    L = 1 / (2 |P|) sum_{(i,j) in P} max(0, J_ij)^2

    computed as the mean over both directions of every pair of max(0, J)^2 / 2, which is the same number. The value
    of a pair needs only its distance and two row values, so the cost is O(N^2 D) instead of O(K N^3).

    Args:
        neg_margin: alpha, in units of distance.
        pos_margin: beta, in units of distance.
        squared: False for max(0, J) itself.
        distance: D; the paper's is the plain euclidean one.
        normalize_embeddings: Whether to compare unit vectors, as pytorch-metric-learning does; the paper does not.
        reduction: Over both directions of every pair.

    Cost: B N D forward, 3 B N D backward, plus B (K - 1) D for the pairs; memory O((B + N) D + B K) beside three
    blocks.

    Corner cases: pairs without any negative are left out; no pair gives 0 with a live graph. On unit vectors with
    alpha = 1 the hinge never closes once there are two negatives (D is at most 2), so the loss has no zero there;
    on raw embeddings it closes as norms grow. Against a reference set or a memory, the negatives of a pair's far end
    are those among the anchors (of all ranks).

    Source: Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding",
    arXiv 1511.06452.
    """

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        squared: bool = True,
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.squared = squared

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per directed positive pair."""
        if batch.tuples is None:
            own, others = self._all_negatives(batch)
            anchors, columns = all_positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
        else:
            own, others = self._listed_negatives(batch)
            anchors, columns = batch.tuples.anchors_of_positives, batch.tuples.positives
        # Without a negative at either end there is no term (and logaddexp has no derivative there).
        kept = torch.maximum(own.detach()[anchors], others.detach()[columns]) > -torch.inf
        anchors, columns = anchors[kept], columns[kept]
        pushes = torch.logaddexp(own[anchors], others[columns])
        lifted = pushes + listed_distances(batch, anchors, columns, self.distance) - self.pos_margin
        hinge = F.relu(lifted)
        sums = listed_sums(hinge.square() / 2 if self.squared else hinge, ACTIVE_ABOVE)
        return [self.reduced(sums._replace(total=sums.total + live_zero(batch)))]

    def _all_negatives(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        own = negative_logsumexp(batch, self.neg_margin, self.distance)
        if batch.gather_rows is not None:
            return own, batch.gather_rows(own)
        everyone, labels = batch.joint_anchors, batch.joint_labels
        if everyone is None or labels is None:
            everyone, labels = batch.anchors, batch.labels
        # Only columns that are somebody's positive are the far end of a pair.
        ends = torch.isin(batch.column_labels, batch.labels).nonzero()[:, 0]
        mirrored = replace(
            batch,
            anchors=batch.columns[ends],
            labels=batch.column_labels[ends],
            columns=everyone,
            column_labels=labels,
            anchor_index=None,
            host_labels=None,
        )
        others = own.new_full((len(batch.column_labels),), -torch.inf)
        return own, others.index_copy(0, ends, negative_logsumexp(mirrored, self.neg_margin, self.distance))

    def _listed_negatives(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        """The chosen negatives of both ends, as far as the far end is an anchor too."""
        chosen = batch.tuples
        assert chosen is not None
        far = listed_distances(batch, chosen.anchors_of_negatives, chosen.negatives, self.distance)
        own = segment_logsumexp(self.neg_margin - far, chosen.anchors_of_negatives, len(batch.labels))
        if batch.gather_rows is None:
            return own, own.new_full((len(batch.column_labels),), -torch.inf)
        return own, batch.gather_rows(own)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"neg_margin={self.neg_margin}, pos_margin={self.pos_margin}, squared={self.squared}"
