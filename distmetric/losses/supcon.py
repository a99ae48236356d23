"""Supervised contrastive loss: every anchor's positives against all other columns in one softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.checks import check_positive
from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, RowSums
from distmetric.functional.segments import segment_counts, segment_logsumexp, segment_sum
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import Reduction
from distmetric.losses.exponential_rows import ExponentialRowLoss


@dataclass(kw_only=True, frozen=True)
class SupConLossConfig:
    """Settings of `SupConLoss`."""

    name: Literal["supcon"] = "supcon"
    temperature: float = 0.1
    """What similarities are divided by; the smaller, the more the nearest columns count."""
    distance: Distance = "cosine"
    """cosine, dot_product (a.b), euclidean or squared_euclidean (both negated to be similarities)."""
    reduction: Reduction = "nonzero_mean"
    """Mean over anchors above 0 (nonzero_mean), over anchors with positives and negatives (mean), or sum."""

    def __post_init__(self) -> None:
        """Check the temperature.

        Raises:
            ValueError: If it is not above 0.
        """
        check_positive(temperature=self.temperature)


class SupConLoss(ExponentialRowLoss):
    """Supervised contrastive loss, in the form that averages outside of the logarithm.

    Formula: L = mean_a -1/|P(a)| sum_{p in P(a)} log( e^{s_ap / T} / sum_{c != a} e^{s_ac / T} ), with P(a) the
    positives of a and c over all of its positives and negatives; by default the mean is over anchors above 0.

    Args:
        temperature: T.
        distance: s is the cosine, the dot product, or the negated euclidean distance or its square.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: Over anchors.

    Raises:
        ValueError: If the temperature is not above 0.

    Cost: 3 B N D in one pass; memory O((B + N) D) beside three blocks. pytorch-metric-learning's class of this name
    has the same value and gradient and keeps some ten N^2 matrices.

    Corner cases: anchors without positive or without negative are left out. A miner's list may give an anchor
    positives only, which then compete with each other; without any negative in the joint batch's list the loss is 0.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362 (L_out).
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
        reduction: Reduction = "nonzero_mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        check_positive(temperature=temperature)
        self.temperature = temperature

    counted = "others"

    @property
    def power(self) -> float:
        """1 / T."""
        return 1 / self.temperature

    def anchor_rows(self, block: PairBlock) -> Row:
        """See `RowLoss.anchor_rows`; one term per anchor."""
        valid = (block.num_positives > 0) & (block.num_negatives > 0)
        nearest = block.distances.amin(1)
        nearest.masked_fill_(nearest == torch.inf, 0.0)
        # e^{(nearest - d) / T}: the largest is 1, and that of the anchor itself, at an infinite distance, is 0.
        powers = torch.add(
            nearest.div(self.temperature)[:, None],
            block.distances,
            alpha=-1 / self.temperature,
            out=block.scratch,
        ).exp_()
        sums = powers.sum(1)
        gaps = (block.distances[:, block.band] - nearest[:, None]).masked_fill_(~block.positive, 0.0)
        share = valid / (self.temperature * block.num_positives.clamp_min(1).to(nearest.dtype))
        values = torch.where(valid, gaps.sum(1) * share + sums.log(), 0).relu_()
        if block.gradient is not None:
            push = torch.where(valid, -1 / (self.temperature * sums), 0)
            torch.mul(powers, push[:, None], out=block.gradient)
            block.gradient[:, block.band] += share[:, None] * block.positive
        return Row(values, valid, values > 0)

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """See `RowLoss.listed`."""
        size, chosen = len(batch.labels), chosen.distinct(len(batch.column_labels))
        anchors, others = chosen.anchors_of_positives, chosen.anchors_of_negatives
        near = listed_distances(batch, anchors, chosen.positives, self.distance)
        far = listed_distances(batch, others, chosen.negatives, self.distance)
        logits = torch.cat([near, far]) / -self.temperature
        normalizers = segment_logsumexp(logits, torch.cat([anchors, others]), size)
        can_count = _any_of_all_ranks(segment_counts(others, size), batch).expand(size)
        return self.of_positives(anchors, near, normalizers, can_count)

    def of_positives(self, anchors: Tensor, near: Tensor, logs: Tensor, can_count: Tensor) -> RowSums:
        """See `ExponentialRowLoss.of_positives`."""
        num_positives = segment_counts(anchors, len(logs))
        valid = (num_positives > 0) & can_count
        mean_near = segment_sum(near, anchors, len(logs)) / num_positives.clamp_min(1)
        values = torch.where(valid, logs + mean_near / self.temperature, 0).relu()
        return RowSums(values.sum(), valid.sum(), (values.detach() > 0).sum())

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"temperature={self.temperature}"


def _any_of_all_ranks(counts: Tensor, batch: JointBatch) -> Tensor:
    return (counts if batch.gather_rows is None else batch.gather_rows(counts)).any()
