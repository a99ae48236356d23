"""Triplet loss over the hardest pairs of the joint batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.distances import paired_distances
from distmetric.functional.hardest import hardest_pairs
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import ACTIVE_ABOVE, LossParts, PairLoss


@dataclass(kw_only=True, frozen=True)
class TripletLossConfig:
    """Settings of `TripletLoss`."""

    name: Literal["triplet"] = "triplet"
    strategy: Literal["batch_hard"] = "batch_hard"
    """Which triplets of the batch count: the farthest positive with the nearest negative of each anchor."""
    margin: float | Literal["soft"] = "soft"
    """Distance by which a negative must be farther than a positive, or "soft" for ln(1 + e^z)."""

    def __post_init__(self) -> None:
        """Check the margin.

        Raises:
            ValueError: If it is negative.
        """
        check_margin(self.margin)


def check_margin(margin: float | Literal["soft"]) -> None:
    """Raise ValueError unless the margin is "soft" or a finite number that is at least 0."""
    if margin != "soft" and not 0 <= float(margin) < math.inf:
        raise ValueError(f'margin={margin!r} is wrong: give a number from 0 on, or "soft"')


class TripletLoss(PairLoss):
    """Batch-hard triplet loss: each anchor with its farthest positive and its nearest negative.

    Formula: L = mean_a phi(max_{p} D_ap - min_{n} D_an), phi(z) = max(0, m + z), or ln(1 + e^z) for margin "soft".

    D is the plain euclidean distance, never squared: the gradient of D^2 fades as points meet, which makes the
    collapsed state attract. The mean is over all valid anchors, those with zero loss included.

    Args:
        margin: m in units of distance, or "soft".

    Cost: B N D to mine (no gradient), then 2 B distances with gradient; memory O(B + N) beside one block.

    Corner cases: anchors without positive or without negative are left out of sum and count; coinciding pairs have
    gradient 0. When everything collapses to one point the loss sits at m, or at ln 2 = 0.693 for the soft margin.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
    """

    def __init__(self, margin: float | Literal["soft"] = "soft") -> None:
        super().__init__()
        check_margin(margin)
        self.margin = margin

    def parts(self, batch: JointBatch) -> LossParts:
        """See `PairLoss.parts`; one term per valid anchor."""
        positive, negative, valid = hardest_pairs(batch)
        gap = paired_distances(batch.anchors, batch.columns[positive]) - paired_distances(
            batch.anchors, batch.columns[negative]
        )
        terms = self._phi(gap) * valid
        return LossParts(terms.sum(), valid.sum(), (terms.detach() > ACTIVE_ABOVE).sum())

    def _phi(self, gap: Tensor) -> Tensor:
        return F.softplus(gap) if self.margin == "soft" else F.relu(gap + float(self.margin))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"margin={self.margin!r}"
