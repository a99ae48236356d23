"""CosFace loss: cross entropy over classes with a margin on the cosine of the own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.checks import check_positive
from distmetric.functional.class_rows import ClassScores
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, Reduction
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig


@dataclass(kw_only=True, frozen=True)
class CosFaceLossConfig(ClassLossConfig):
    """Settings of `CosFaceLoss`."""

    name: Literal["cosface"] = "cosface"
    margin: float = 0.35
    """Cosine that the own class must have more than the others."""
    scale: float = 64.0
    """What cosines are multiplied by in the softmax over classes."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 1e-5 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ValueError: If it is not above 0.
        """
        super().__post_init__()
        check_positive(scale=self.scale)


class CosFaceLoss(ClassLoss):
    """CosFace: additive cosine margin; with margin 0 the normalized softmax.

    Formula: L = mean_i -log( e^{s (cos_iy - m)} / (e^{s (cos_iy - m)} + sum_{c != y_i} e^{s cos_ic}) ), with cos_ic
    that of the angle between anchor i and the vector of class c.

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        margin: m, in units of cosine.
        scale: s.
        reduction: Over anchors.

    Cost: 3 B C D and an exponential per entry in one pass; memory O((B + C) D) and max(64, D) x C values.

    Corner cases: a single class has loss 0.

    Source: Wang, Wang, Zhou, Ji, Gong, Zhou, Li, Liu, "CosFace: Large Margin Cosine Loss for Deep Face Recognition",
    CVPR 2018, arXiv 1801.09414.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        check_positive(scale=scale)
        super().__init__(num_classes, embedding_size, reduction=reduction)
        self.margin = margin
        self.scale = scale

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor."""
        vectors = self.unit_vectors(batch)
        cosine = -self.own_distances(batch, vectors, "dot_product")[:, 0]
        own_logits = self.scale * (cosine - self.margin)
        return [self.cross_entropy(batch, vectors, ClassScores(self.scale), own_logits)]

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"{super().extra_repr()}, margin={self.margin}, scale={self.scale}"
