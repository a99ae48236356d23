"""SoftTriple loss: cross entropy over classes of several centers each, and its limit HardTriple."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from distmetric.functional.checks import check_choice, check_positive
from distmetric.functional.class_rows import ClassScores
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.losses.base import LossTerm, Reduction
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig, ClassVectors
from distmetric.losses.class_shards import class_shard

Assignment = Literal["soft", "hard"]


@dataclass(kw_only=True, frozen=True)
class SoftTripleLossConfig(ClassLossConfig):
    """Settings of `SoftTripleLoss`."""

    name: Literal["soft_triple"] = "soft_triple"
    centers_per_class: int = 10
    """Learned centers of a class; the regularizer merges those that it has no use for."""
    la: float = 20.0
    """Scale of the similarities in the softmax over classes (lambda of the paper)."""
    gamma: float = 0.1
    """Temperature of the soft assignment to the centers of a class, in units of cosine."""
    margin: float = 0.01
    """Cosine that the own class must have more than the others (delta of the paper)."""
    tau: float = 0.2
    """Weight of the mean distance between centers of a class; 0 is pytorch-metric-learning's default."""
    assignment: Assignment = "soft"
    """Softmax over the centers of a class (SoftTriple), or its nearest one (HardTriple)."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 1e-5 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of its range.
        """
        super().__post_init__()
        _check(self.centers_per_class, self.la, self.gamma, self.tau)


def _check(centers_per_class: int, la: float, gamma: float, tau: float) -> None:
    check_positive(centers_per_class=centers_per_class, la=la, gamma=gamma)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau={tau} is wrong: give a weight from 0 on")


class SoftTripleLoss(ClassLoss):
    """SoftTriple loss: no triplets, but k learned centers for each of C classes.

    Formula, with s_icj the cosine of anchor i and center j of class c:

        S_ic = sum_j q_j s_icj, q = softmax_j(s_icj / gamma)      ("hard": S_ic = max_j s_icj)
        L    = mean_i -log( e^{la (S_iy - margin)} / (e^{la (S_iy - margin)} + sum_{c != y_i} e^{la S_ic}) ) + tau R
        R    = 1 / (C k (k - 1)) sum_c sum_{j < l} |w_cj - w_cl|, half the mean distance between centers of a class

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        centers_per_class: k.
        la: Scale lambda.
        gamma: Temperature, in units of cosine.
        margin: delta, in units of cosine.
        tau: Weight of R, which is left out for k = 1. pytorch-metric-learning has none by default, and the same with
            `weight_regularizer=SparseCentersRegularizer(C, k), weight_reg_weight=tau`.
        assignment: "soft", or "hard" for HardTriple.
        reduction: Of the first part.

    Attributes:
        weight: (C k, D) centers, those of a class next to each other.

    Cost: 3 B C k D and an exponential per entry in one pass, C k^2 D for R, which the ranks divide among them; memory
    O((B + C k) D) and max(64, D) x C k values.

    Corner cases: centers that coincide have a gradient of 0 in R, whose value is exact there too (the authors' code
    adds 1e-5 under the root); those of a class that tie for the maximum share its gradient. A single class has a first
    part of 0. A center far from an anchor of its own class, s < S - gamma, is pushed away from it. Where negatives are
    sampled, R is a mean over the classes that were kept.

    Source: Qian, Shang, Sun, Hu, Li, Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019,
    arXiv 1909.05235.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        *,
        tau: float = 0.2,
        assignment: Assignment = "soft",
        reduction: Reduction = "mean",
    ) -> None:
        _check(centers_per_class, la, gamma, tau)
        check_choice("assignment", assignment, ("soft", "hard"))
        super().__init__(num_classes, embedding_size, centers_per_class, reduction)
        self.centers_per_class = centers_per_class
        self.la = la
        self.gamma = gamma
        self.margin = margin
        self.tau = tau
        self.assignment: Assignment = assignment

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor, and this rank's share of R."""
        centers = self.unit_vectors(batch)
        scores = ClassScores(
            self.la, self.centers_per_class, self.gamma if self.assignment == "soft" else None
        )
        own = scores.of_listed(-self.own_distances(batch, centers, "dot_product"))
        entropy = self.cross_entropy(batch, centers, scores, self.la * (own - self.margin))
        if self.tau == 0 or self.centers_per_class == 1:
            return [entropy]
        return [entropy, self._spread(centers, batch)]

    def _spread(self, centers: ClassVectors, batch: JointBatch) -> LossTerm:
        """R, a mean over classes, of which this rank adds those that it looks after."""
        k, device = self.centers_per_class, centers.rows.device
        own = range(centers.number)
        if self.has_all_classes:
            own = class_shard(centers.number, batch.rank, batch.world_size)
        starts = torch.arange(own.start, own.stop, device=device)[:, None] * k
        one, other = torch.triu_indices(k, k, 1, device=device)
        classes = JointBatch(centers.rows, starts, centers.rows, starts, None)
        lengths = listed_distances(classes, (starts + one).flatten(), (starts + other).flatten(), "euclidean")
        nothing = torch.zeros((), device=device)
        number = torch.full((), len(own), device=device)
        return LossTerm(lengths.sum() / (k * (k - 1)), number, nothing, nothing, weight=self.tau)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return (
            f"{super().extra_repr()}, centers_per_class={self.centers_per_class}, la={self.la}, gamma={self.gamma}, "
            f"margin={self.margin}, tau={self.tau}, assignment={self.assignment!r}"
        )
