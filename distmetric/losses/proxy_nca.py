"""ProxyNCA loss: neighborhood components analysis with one proxy per class as the only neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.checks import check_positive
from distmetric.functional.class_rows import ClassScores
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, Reduction
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig


@dataclass(kw_only=True, frozen=True)
class ProxyNCALossConfig(ClassLossConfig):
    """Settings of `ProxyNCALoss`."""

    name: Literal["proxy_nca"] = "proxy_nca"
    softmax_scale: float = 1.0
    """What squared distances between unit vectors are multiplied by; 9 in the follow-up ProxyNCA++."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 1e-5 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ValueError: If it is not above 0.
        """
        super().__post_init__()
        check_positive(softmax_scale=self.softmax_scale)


class ProxyNCALoss(ClassLoss):
    """ProxyNCA: the probability that a softly chosen nearest proxy is that of the own class.

    Formula: L = mean_i -log( e^{-s |x_i - p_y|^2} / sum_c e^{-s |x_i - p_c|^2} ) with unit x and p, so that |x - p|^2
    is 2 - 2 cos and logits are 2 s cos. As in pytorch-metric-learning and ProxyNCA++ the sum runs over all classes; the
    first paper's leaves the own class out, which makes values below 0.

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        softmax_scale: s.
        reduction: Over anchors.

    Cost: 3 B C D and an exponential per entry in one pass; memory O((B + C) D) and max(64, D) x C values.

    Corner cases: a single class has loss 0.

    Source: Movshovitz-Attias, Toshev, Leung, Ioffe, Singh, "No Fuss Distance Metric Learning using Proxies", ICCV 2017,
    arXiv 1703.07464.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: float = 1.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        check_positive(softmax_scale=softmax_scale)
        super().__init__(num_classes, embedding_size, reduction=reduction)
        self.softmax_scale = softmax_scale

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor."""
        proxies, scale = self.unit_vectors(batch), 2 * self.softmax_scale
        own_logits = -scale * self.own_distances(batch, proxies, "dot_product")[:, 0]
        return [self.cross_entropy(batch, proxies, ClassScores(scale), own_logits, only_anchors=True)]

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"{super().extra_repr()}, softmax_scale={self.softmax_scale}"
