"""Circle loss: every pair weighted by how far its similarity is from where it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.checks import check_positive
from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, RowSums
from distmetric.functional.segments import segment_counts, segment_logsumexp
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import Reduction, RowLoss


@dataclass(kw_only=True, frozen=True)
class CircleLossConfig:
    """Settings of `CircleLoss`."""

    name: Literal["circle"] = "circle"
    m: float = 0.4
    """Relaxation: positives are wanted at a cosine of 1 + m and count as near from 1 - m on, negatives at -m and m."""
    gamma: float = 80.0
    """Scale; the larger, the more the hardest pairs count."""
    reduction: Reduction = "nonzero_mean"
    """Mean over anchors above 0 (nonzero_mean), over anchors with positives and negatives (mean), or sum."""

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ValueError: If it is not above 0.
        """
        check_positive(gamma=self.gamma)


class CircleLoss(RowLoss):
    """Circle loss of labeled pairs.

    Formula, with s the cosine and, for a pair's own weight, a_p = [1 + m - s_ap]_+ and a_n = [s_an + m]_+:

        L = mean_a log(1 + sum_n e^{gamma a_n (s_an - m)} sum_p e^{-gamma a_p (s_ap - 1 + m)})

    The weights a_p and a_n are constants in the gradient, as the paper defines it, which therefore is not the
    derivative of L. By default the mean is over anchors above 0, that is over all that have a positive and a negative.

    Args:
        m: Relaxation in units of the cosine.
        gamma: Scale.
        distance: "cosine", the only one the loss is defined for.
        normalize_embeddings: Without effect, as the cosine does it.
        reduction: Over anchors.

    Raises:
        ValueError: If the distance is not "cosine" or gamma not above 0.

    Cost: 3 B N D in one pass; memory O((B + N) D) beside three blocks. pytorch-metric-learning's class of this name
    has the same value and gradient.

    Corner cases: anchors without positive or without negative are left out of sum and count.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020,
    arXiv 2002.10857.
    """

    def __init__(
        self,
        m: float = 0.4,
        gamma: float = 80.0,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
        reduction: Reduction = "nonzero_mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        if distance != "cosine":
            raise ValueError(f"distance={distance!r} is wrong: CircleLoss is defined for the cosine only")
        check_positive(gamma=gamma)
        self.m = m
        self.gamma = gamma

    def anchor_rows(self, block: PairBlock) -> Row:
        """See `RowLoss.anchor_rows`; one term per anchor."""
        # With d = 1 - s a pair's weight is w = [d + m]_+ or [1 - d + m]_+, and its exponent gamma w (w - 2 m), which
        # is gamma ((w - m)^2 - m^2).
        valid = (block.num_positives > 0) & (block.num_negatives > 0)
        pull_weights = block.positives_of(block.distances, 0.0).add_(self.m).relu_()
        pulls = (pull_weights * (pull_weights - 2 * self.m) * self.gamma).masked_fill_(
            ~block.positive, -torch.inf
        )
        pull_sum = pulls.logsumexp(1)
        weights = torch.sub(1 + self.m, block.distances, out=block.gradient).relu_()
        pushes = torch.sub(weights, self.m, out=block.scratch).square_()
        shift = block.fill_same_(pushes, -torch.inf).amax(1).mul_(self.gamma).nan_to_num_(neginf=0.0)
        torch.add(-shift[:, None], pushes, alpha=self.gamma, out=pushes).exp_()
        sums = pushes.sum(1)
        total = pull_sum + sums.log() + (shift - self.gamma * self.m**2)
        values = torch.logaddexp(total, torch.zeros_like(total))
        if block.gradient is not None:
            slope = torch.where(valid, self.gamma * total.sigmoid(), 0)
            weights.mul_(pushes).mul_(torch.where(valid, -slope / sums, 0)[:, None])
            weights_of_pulls = (pulls - torch.where(valid, pull_sum, 0)[:, None]).exp_().mul_(pull_weights)
            block.gradient[:, block.band] += weights_of_pulls.mul_(slope[:, None])
        return Row(values, valid, values > 0)

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """See `RowLoss.listed`."""
        size, chosen = len(batch.labels), chosen.distinct(len(batch.column_labels))
        anchors, others = chosen.anchors_of_positives, chosen.anchors_of_negatives
        near = listed_distances(batch, anchors, chosen.positives, self.distance)
        far = 1 - listed_distances(batch, others, chosen.negatives, self.distance)
        total = segment_logsumexp(self._exponents(near), anchors, size) + (
            segment_logsumexp(self._exponents(far), others, size)
        )
        valid = (segment_counts(anchors, size) > 0) & (segment_counts(others, size) > 0)
        values = torch.logaddexp(total[valid], torch.zeros_like(total[valid]))
        return RowSums(values.sum(), valid.sum(), (values.detach() > 0).sum())

    def _exponents(self, excess: Tensor) -> Tensor:
        """Gamma [x + m]_+ (x - m), with the first factor a constant."""
        return self.gamma * F.relu(excess.detach() + self.m) * (excess - self.m)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"m={self.m}, gamma={self.gamma}"
