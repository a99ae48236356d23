"""Lifted structured loss: every positive pair against all negatives of both its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from distmetric.functional.distances import paired_distances
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.logsumexp import negative_logsumexp
from distmetric.functional.positives import positive_pairs
from distmetric.losses.base import ACTIVE_ABOVE, LossParts, PairLoss


@dataclass(kw_only=True, frozen=True)
class LiftedStructureLossConfig:
    """Settings of `LiftedStructureLoss`."""

    name: Literal["lifted_structure"] = "lifted_structure"
    neg_margin: float = 1.0
    """Distance up to which a negative pushes noticeably (alpha of the paper)."""
    pos_margin: float = 0.0
    """Distance below which a positive pair no longer pulls."""


class LiftedStructureLoss(PairLoss):
    """Lifted structured feature embedding, the smooth upper bound that its authors optimize.

    Formula, over the set P of positive pairs, with l_i = log sum_{k: y_k != y_i} exp(alpha - D_ik):

        J_ij = logaddexp(l_i, l_j) + D_ij - beta,    L = 1 / (2 |P|) sum_{(i,j) in P} max(0, J_ij)^2

    computed as the mean over both directions of every pair of max(0, J)^2 / 2, which is the same number. The value
    of a pair needs only its distance and two row values, so the cost is O(N^2 D) instead of O(K N^3).

    Args:
        neg_margin: alpha, in units of distance.
        pos_margin: beta, in units of distance.

    Cost: B N D forward, 3 B N D backward, plus B (K - 1) D for the pairs; memory O((B K + N) D) beside one block.

    Corner cases: pairs without any negative are left out; no pair gives 0 with a live graph. On unit vectors with
    alpha = 1 the hinge never closes once there are two negatives (D is at most 2), so the loss has no zero there;
    on raw embeddings it closes as norms grow. Distances are plain euclidean; normalize the embeddings or do not.

    Source: Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding",
    arXiv 1511.06452.
    """

    def __init__(self, neg_margin: float = 1.0, pos_margin: float = 0.0) -> None:
        super().__init__()
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin

    def parts(self, batch: JointBatch) -> LossParts:
        """See `PairLoss.parts`; one term per directed positive pair."""
        own = negative_logsumexp(
            batch.anchors, batch.columns, batch.labels, batch.column_labels, self.neg_margin
        )
        if batch.anchor_index is None:
            others = negative_logsumexp(
                batch.columns, batch.anchors, batch.column_labels, batch.labels, self.neg_margin
            )
        else:
            others = batch.gather_rows(own)
        anchors, columns = positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
        # Both ends of a pair share their class, so where one has no negative neither has the other.
        with_negatives = (own.detach()[anchors] > -torch.inf) & (others.detach()[columns] > -torch.inf)
        anchors, columns = anchors[with_negatives], columns[with_negatives]
        distances = paired_distances(batch.anchors[anchors], batch.columns[columns])
        lifted = torch.logaddexp(own[anchors], others[columns]) + distances - self.pos_margin
        terms = F.relu(lifted).square() / 2
        # Rows that met no pair stay in the graph, so that every rank takes part in the backward communication.
        total = terms.sum() + 0.0 * (own.nan_to_num(neginf=0.0).sum() + others.nan_to_num(neginf=0.0).sum())
        num_terms = torch.tensor(len(terms), device=terms.device)
        return LossParts(total, num_terms, (terms.detach() > ACTIVE_ABOVE).sum())

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"neg_margin={self.neg_margin}, pos_margin={self.pos_margin}"
