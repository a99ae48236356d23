"""Multi-similarity loss: soft sums over positives and over negatives of every anchor, with its miner built in."""

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
from distmetric.functional.segments import segment_logsumexp
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import Reduction
from distmetric.losses.exponential_rows import ExponentialRowLoss


@dataclass(kw_only=True, frozen=True)
class MultiSimilarityLossConfig:
    """Settings of `MultiSimilarityLoss`."""

    name: Literal["multi_similarity"] = "multi_similarity"
    alpha: float = 2.0
    """How much the least similar positives count before the others."""
    beta: float = 50.0
    """How much the most similar negatives count before the others."""
    base: float = 0.5
    """Similarity (for euclidean ones: distance) that divides near from far."""
    epsilon: float | None = None
    """Slack of the miner: only negatives nearer than the farthest positive plus this count, and only positives farther
    than the nearest negative minus this (0.1 in the paper). null: all pairs count."""
    distance: Distance = "cosine"
    """cosine, dot_product (a.b), euclidean or squared_euclidean."""
    reduction: Reduction = "mean"
    """Mean over all anchors (mean), over those above 0 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the scales.

        Raises:
            ValueError: If one of them is not above 0.
        """
        check_positive(alpha=self.alpha, beta=self.beta)


class MultiSimilarityLoss(ExponentialRowLoss):
    """Multi-similarity loss with the multi-similarity miner in the same pass.

    Formula, with base lambda and over all anchors:

        L = mean_a 1/alpha log(1 + sum_p e^{-alpha (s_ap - lambda)}) + 1/beta log(1 + sum_n e^{beta (s_an - lambda)})

    where, with an epsilon, p is over positives with s_ap < max_n s_an + epsilon and n over negatives with
    s_an > min_p s_ap - epsilon only. For euclidean distances D, lambda is a distance too: s - lambda is lambda - D.

    Args:
        alpha: Scale of positives, 1 / units of similarity.
        beta: Scale of negatives.
        base: lambda.
        epsilon: Slack of the miner; None for all pairs. Where another miner has chosen, its list is what counts.
        distance: s is the cosine or the dot product, or else see above.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: Over anchors; the mean counts those that no pair is chosen for, with a value of 0.

    Raises:
        ValueError: If alpha or beta is not above 0.

    Cost: 3 B N D in one pass, with or without epsilon; memory O((B + N) D) beside three blocks.
    pytorch-metric-learning's class of this name, with its `MultiSimilarityMiner(epsilon)`, has the same value and
    gradient; the miner sorts two N^2 matrices.

    Corner cases: without epsilon, anchors without positive keep the part of their negatives and the other way round;
    with it they are 0. What the miner chooses is constant in the gradient.

    Source: Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep Metric
    Learning", CVPR 2019, arXiv 1904.06627.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = None,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        check_positive(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    @property
    def base_distance(self) -> float:
        """The base as a distance: exponents are alpha (D - base_distance) and beta (base_distance - D)."""
        return {"cosine": 1 - self.base, "dot_product": -self.base}.get(self.distance, self.base)

    counted = "negatives"

    @property
    def power(self) -> float | None:
        """beta; None with an epsilon, which chooses among the pushes."""
        return self.beta if self.epsilon is None else None

    def anchor_rows(self, block: PairBlock) -> Row:
        """See `RowLoss.anchor_rows`; one term per anchor."""
        band = block.distances[:, block.band]
        kept = band.clone()
        nearest = block.fill_same_(block.distances, torch.inf).amin(1)
        chosen = block.positive
        if self.epsilon is not None:
            chosen = chosen & (kept + self.epsilon > nearest[:, None])
        pulls, pull_shift = self._positive_powers(kept, chosen)
        pushes, push_shift = self._negative_powers(block, kept, nearest)
        band.copy_(kept)
        pull_sums, push_sums = pulls.sum(1), pushes.sum(1)
        values = (
            _log_one_plus(pull_sums, pull_shift) / self.alpha
            + _log_one_plus(push_sums, push_shift) / self.beta
        )
        if block.gradient is not None:
            push_total = push_sums + (-push_shift).exp()
            torch.mul(pushes, -push_total.reciprocal()[:, None], out=block.gradient)
            block.gradient[:, block.band] += pulls / (pull_sums + (-pull_shift).exp())[:, None]
        return Row(values, torch.ones_like(values), values > 0)

    def _positive_powers(self, band: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """e^{y - shift} in the band with y = alpha (d - base), 0 where not chosen, and shift = max(0, max y)."""
        exponents = ((band - self.base_distance) * self.alpha).masked_fill_(~chosen, -torch.inf)
        shift = F.pad(exponents, (0, 1)).amax(1)
        return exponents.sub_(shift[:, None]).exp_(), shift

    def _negative_powers(self, block: PairBlock, band: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """e^{y - shift}, (b, N), with y = beta (base - d), 0 where not chosen, and shift = max(0, max y).

        `block.distances` has infinity at columns of the anchor's label, whose distances are in `band`.
        """
        shift = (self.base_distance - nearest).mul_(self.beta).clamp_min_(0.0)
        if self.epsilon is None:
            start = self.base_distance * self.beta - shift
            exponents = torch.add(start[:, None], block.distances, alpha=-self.beta, out=block.scratch)
            return exponents.exp_(), shift
        farthest = F.pad(band.masked_fill(~block.positive, -torch.inf), (0, 1), value=-torch.inf).amax(1)
        limit = farthest + self.epsilon
        shift.masked_fill_(nearest >= limit, 0.0)
        start = (
            (self.base_distance - limit).mul_(self.beta).sub_(shift).masked_fill_(limit == -torch.inf, 0.0)
        )
        # The threshold is one vectorized pass where a mask over all columns is several slow ones.
        room = torch.sub(limit[:, None], block.distances, out=block.scratch)
        F.threshold(room, 0.0, -torch.inf, inplace=True)
        return torch.add(start[:, None], room, alpha=self.beta, out=room).exp_(), shift

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """See `RowLoss.listed`."""
        size, chosen = len(batch.labels), chosen.distinct(len(batch.column_labels))
        anchors, others = chosen.anchors_of_positives, chosen.anchors_of_negatives
        near = listed_distances(batch, anchors, chosen.positives, self.distance)
        far = listed_distances(batch, others, chosen.negatives, self.distance)
        pushes = segment_logsumexp(far * -self.beta, others, size)
        return self.of_positives(anchors, near, pushes, pushes > -torch.inf)

    def of_positives(self, anchors: Tensor, near: Tensor, logs: Tensor, can_count: Tensor) -> RowSums:  # noqa: ARG002
        """See `ExponentialRowLoss.of_positives`; all anchors count."""
        size = len(logs)
        pulls = segment_logsumexp((near - self.base_distance) * self.alpha, anchors, size)
        pushes = logs + self.base_distance * self.beta
        zero = torch.zeros_like(pulls)
        values = torch.logaddexp(pulls, zero) / self.alpha + torch.logaddexp(pushes, zero) / self.beta
        number = torch.full((), size, device=values.device)
        return RowSums(values.sum(), number, (values.detach() > 0).sum())

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"alpha={self.alpha}, beta={self.beta}, base={self.base}, epsilon={self.epsilon}"


def _log_one_plus(sums: Tensor, shift: Tensor) -> Tensor:
    """log(1 + e^shift sums) for shift >= 0: all digits where the sum is tiny, and no overflow where it is huge."""
    return (sums + torch.expm1(-shift)).log1p() + shift
