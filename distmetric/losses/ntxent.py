"""NT-Xent: each positive of an anchor against all of its negatives in a softmax."""

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
from distmetric.functional.row_sums import Row, RowFunction, RowSums
from distmetric.functional.segments import segment_logsumexp
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import ACTIVE_ABOVE, Reduction, listed_sums
from distmetric.losses.exponential_rows import ExponentialRowLoss


@dataclass(kw_only=True, frozen=True)
class NTXentLossConfig:
    """Settings of `NTXentLoss`."""

    name: Literal["ntxent"] = "ntxent"
    temperature: float = 0.07
    """What similarities are divided by; the smaller, the more the nearest negatives count."""
    distance: Distance = "cosine"
    """cosine, dot_product (a.b), euclidean or squared_euclidean (both negated to be similarities)."""
    reduction: Reduction = "mean"
    """Mean over positive pairs (mean), over those that still push or pull (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the temperature.

        Raises:
            ValueError: If it is not above 0.
        """
        check_positive(temperature=self.temperature)


class NTXentLoss(ExponentialRowLoss):
    """Normalized temperature-scaled cross entropy, also known as InfoNCE.

    Formula, over all positive pairs in both directions, with N(a) the negatives of a:

        L = mean_{(a,p)} -log( e^{s_ap / T} / (e^{s_ap / T} + sum_{n in N(a)} e^{s_an / T}) )

    computed as log(1 + e^{l_a - s_ap / T}) with l_a the log of the sum over negatives, which all pairs of an anchor
    share: the cost is O(N^2 D) for any number of positives, and not O(K N^3).

    Args:
        temperature: T.
        distance: s is the cosine, the dot product, or the negated euclidean distance or its square.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: Over pairs.

    Raises:
        ValueError: If the temperature is not above 0.

    Cost: 3 B N D in one pass; memory O((B + N) D) beside three blocks. pytorch-metric-learning's class of this name
    has the same value and gradient and keeps matrices of positive by negative pairs, O(K N^3).

    Corner cases: other positives of the anchor are not in the denominator (in `SupConLoss` they are). A positive pair
    without negatives counts with a value of 0.

    Source: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020, arXiv 2002.05709.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        check_positive(temperature=temperature)
        self.temperature = temperature

    counted = "negatives"

    @property
    def power(self) -> float:
        """1 / T."""
        return 1 / self.temperature

    def anchor_rows(self, block: PairBlock) -> Row:
        """See `RowLoss.anchor_rows`; one term per directed positive pair."""
        return one_positive_rows(self.temperature)(block)

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """See `RowLoss.listed`."""
        near = listed_distances(batch, chosen.anchors_of_positives, chosen.positives, self.distance)
        far = listed_distances(batch, chosen.anchors_of_negatives, chosen.negatives, self.distance)
        pushes = segment_logsumexp(-far / self.temperature, chosen.anchors_of_negatives, len(batch.labels))
        return self.of_positives(chosen.anchors_of_positives, near, pushes, pushes > -torch.inf)

    def of_positives(self, anchors: Tensor, near: Tensor, logs: Tensor, can_count: Tensor) -> RowSums:  # noqa: ARG002
        """See `ExponentialRowLoss.of_positives`; pairs without negatives count, too."""
        return listed_sums(_log_one_plus_exp(logs[anchors] + near / self.temperature), ACTIVE_ABOVE)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"temperature={self.temperature}"


def one_positive_rows(temperature: float) -> RowFunction:
    """Every positive of an anchor, one at a time, against all of its negatives in a softmax.

    Formula: f(a) = sum_p log(1 + sum_n e^{(d_ap - d_an) / T}).

    Args:
        temperature: T.

    Returns:
        The row function. Cost beyond distances: B N, and B K for the positives; memory two blocks.
    """

    def anchor_rows(block: PairBlock) -> Row:
        positives = block.positives_of(block.distances, -torch.inf)
        band = block.distances[:, block.band]
        kept = band.clone()
        nearest = block.fill_same_(block.distances, torch.inf).amin(1)
        nearest.masked_fill_(block.num_negatives == 0, 0.0)
        powers = torch.add(
            nearest.div(temperature)[:, None], block.distances, alpha=-1 / temperature, out=block.scratch
        ).exp_()
        band.copy_(kept)
        sums = powers.sum(1)
        excess = (positives - nearest[:, None]).div_(temperature).add_(sums.log()[:, None])
        terms = _log_one_plus_exp(excess)
        if block.gradient is not None:
            slopes = excess.sigmoid_().div_(temperature)
            push = torch.where(sums > 0, slopes.sum(1) / sums, 0)
            torch.mul(powers, -push[:, None], out=block.gradient)
            block.gradient[:, block.band] += slopes
        return Row(terms.sum(1), block.num_positives, (terms > ACTIVE_ABOVE).sum(1))

    return anchor_rows


def _log_one_plus_exp(x: Tensor) -> Tensor:
    """Softplus without its linear part above 20, exact there too; 0 with gradient 0 at -inf."""
    return torch.logaddexp(x, torch.zeros_like(x))
