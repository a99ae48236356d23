"""Triplet loss over the joint batch: hardest, semi-hard or all triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import Distance
from distmetric.functional.hardest import hardest_pairs
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.row_sums import RowSums, sum_rows
from distmetric.functional.triplet_rows import check_margin, nearest_beyond, triplet_rows
from distmetric.losses.base import ACTIVE_ABOVE, LossTerm, MetricLoss, Reduction, listed_sums

Strategy = Literal["batch_hard", "batch_all", "semi_hard", "semi_hard_nearest"]
STRATEGIES: tuple[Strategy, ...] = ("batch_hard", "batch_all", "semi_hard", "semi_hard_nearest")


@dataclass(kw_only=True, frozen=True)
class TripletLossConfig:
    """Settings of `TripletLoss`."""

    name: Literal["triplet"] = "triplet"
    strategy: Strategy = "batch_hard"
    """Which triplets count: batch_hard (farthest positive, nearest negative), batch_all, semi_hard (negatives farther
    than the positive, by less than the margin), semi_hard_nearest (the nearest such for every positive)."""
    margin: float | Literal["soft"] = "soft"
    """Distance by which a negative must be farther than a positive, or "soft" for ln(1 + e^z)."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean (FaceNet), cosine (1 - cos) or dot_product (-a.b)."""
    reduction: Reduction = "mean"
    """Mean over triplets (mean), over those above 0 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check that strategy and margin fit.

        Raises:
            ValueError: If they do not.
        """
        _check(self.strategy, self.margin)


def _check(strategy: Strategy, margin: float | Literal["soft"]) -> None:
    check_margin(margin)
    if strategy == "semi_hard" and margin == "soft":
        raise ValueError('margin="soft" has no semi-hard triplets: give strategy="semi_hard" a number')


class TripletLoss(MetricLoss):
    """Triplet loss: an anchor's positives nearer than its negatives.

    Formula, phi(z) = max(0, m + z), or ln(1 + e^z) for margin "soft":

        batch_hard         mean_a phi(max_p D_ap - min_n D_an)
        batch_all          mean_{a,p,n} phi(D_ap - D_an)
        semi_hard          mean over all triplets with D_ap < D_an < D_ap + m of phi(D_ap - D_an)
        semi_hard_nearest  mean_{a,p} phi(D_ap - D_an), n the nearest with D_an > D_ap, else the farthest of all

    D is the plain euclidean distance by default: the gradient of its square fades as points meet, which makes the
    collapsed state attract. FaceNet uses the square on unit vectors.

    Args:
        margin: m in units of distance, or "soft".
        strategy: Which triplets.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.
        reduction: "mean" includes triplets of value 0, "nonzero_mean" does not.

    Cost: batch_hard and semi_hard_nearest B N D to mine (no gradient), then two distances a triplet with gradient;
    batch_all and semi_hard 3 B N D + B K N in one pass. Memory O((B + N) D) beside three blocks.

    Corner cases: anchors without positive or without negative are left out of sum and count; coinciding pairs have
    gradient 0. When everything collapses to one point the loss sits at m, or at ln 2 = 0.693 for the soft margin.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737;
    semi-hard: Schroff, Kalenichenko, Philbin, "FaceNet", arXiv 1503.03832.
    """

    def __init__(
        self,
        margin: float | Literal["soft"] = "soft",
        strategy: Strategy = "batch_hard",
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        check_choice("strategy", strategy, STRATEGIES)
        _check(strategy, margin)
        self.margin = margin
        self.strategy: Strategy = strategy

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per triplet."""
        active_above = ACTIVE_ABOVE if self.margin == "soft" else 0.0
        if batch.tuples is None and self.strategy in ("batch_all", "semi_hard"):
            rows = triplet_rows(self.margin, self.strategy == "semi_hard", active_above)
            return [self.reduced(sum_rows(batch, self.distance, rows))]
        if batch.tuples is None and self.strategy == "batch_hard":
            return [self.reduced(self._hardest_sums(batch, active_above))]
        listed = batch.tuples
        chosen = nearest_beyond(batch, self.distance) if listed is None else listed.as_triplets()
        return [self.reduced(listed_sums(self._phi(self._gaps(batch, *chosen)), active_above))]

    def _hardest_sums(self, batch: JointBatch, active_above: float) -> RowSums:
        positive, negative, valid = hardest_pairs(batch, self.distance)
        # Masked and not listed: how many are valid is known to the device alone, and nobody waits for it.
        anchors = torch.arange(len(valid), device=valid.device)
        terms = self._phi(self._gaps(batch, anchors, positive, negative))
        terms = torch.where(valid, terms, torch.zeros_like(terms))
        return RowSums(terms.sum(), valid.sum(), ((terms.detach() > active_above) & valid).sum())

    def _gaps(self, batch: JointBatch, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        near = listed_distances(batch, anchors, positives, self.distance)
        return near - listed_distances(batch, anchors, negatives, self.distance)

    def _phi(self, gap: Tensor) -> Tensor:
        return F.softplus(gap) if self.margin == "soft" else F.relu(gap + float(self.margin))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"margin={self.margin!r}, strategy={self.strategy!r}"
