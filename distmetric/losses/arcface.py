"""ArcFace loss: cross entropy over classes with a margin on the angle to the own class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.checks import check_positive
from distmetric.functional.class_rows import ClassScores
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, Reduction
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig


@dataclass(kw_only=True, frozen=True)
class ArcFaceLossConfig(ClassLossConfig):
    """Settings of `ArcFaceLoss`."""

    name: Literal["arcface"] = "arcface"
    margin: float = 28.6
    """Angle in degrees by which the own class must be nearer than the others; 28.6 is half a radian."""
    scale: float = 64.0
    """What cosines are multiplied by in the softmax over classes."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 1e-5 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of its range.
        """
        super().__post_init__()
        _check(self.margin, self.scale)


def _check(margin: float, scale: float) -> None:
    check_positive(scale=scale)
    if not 0 <= margin <= 180:
        raise ValueError(f"margin={margin} is wrong: give degrees, from 0 to 180")


class ArcFaceLoss(ClassLoss):
    """ArcFace: additive angular margin.

    Formula, with theta_ic the angle between anchor i and the vector of class c:

        t_i = cos(theta_iy + m) where theta_iy + m <= pi, else cos(theta_iy) - m sin(m)
        L   = mean_i -log( e^{s t_i} / (e^{s t_i} + sum_{c != y_i} e^{s cos(theta_ic)}) )

    The second case keeps t falling where cos(theta + m) would rise again; between the two t jumps down by
    cos(m) + m sin(m) - 1, 0.12 by default.

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        margin: m, in degrees.
        scale: s.
        reduction: Over anchors.

    Cost: 3 B C D and an exponential per entry in one pass; memory O((B + C) D) and max(64, D) x C values.

    Corner cases: value and gradient are finite everywhere; where an anchor coincides with the vector of its class, or
    is its opposite, the angle has gradient 0. Small angles are as exact in float32 as large ones. A single class has
    loss 0.

    Source: Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
    arXiv 1801.07698.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        _check(margin, scale)
        super().__init__(num_classes, embedding_size, reduction=reduction)
        self.margin = margin
        self.scale = scale

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor."""
        vectors = self.unit_vectors(batch)
        # Of the squared chord and not of the cosine, whose rounding errors near 1 are as large as small angles.
        chords = self.own_distances(batch, vectors, "squared_euclidean")[:, 0]
        own_logits = self.scale * self._with_margin(chords)
        return [self.cross_entropy(batch, vectors, ClassScores(self.scale), own_logits)]

    def _with_margin(self, chords: Tensor) -> Tensor:
        margin = math.radians(self.margin)
        cosine = 1 - chords / 2
        squared_sine = chords * (1 - chords / 4)
        # The inner `where` keeps the root's infinite derivative at 0 out of the graph.
        bent = squared_sine > 0
        sine = torch.where(bent, torch.where(bent, squared_sine, 1).sqrt(), 0)
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        return torch.where(cosine >= -math.cos(margin), turned, cosine - margin * math.sin(margin))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"{super().extra_repr()}, margin={self.margin}, scale={self.scale}"
