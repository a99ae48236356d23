"""Attribute-aware identity-hard triplet loss: images of one identity, whatever their attributes, equally near."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.segments import segment_counts, segment_sum
from distmetric.functional.tuples import Tuples
from distmetric.functional.within_identity import identity_extremes, value_differences
from distmetric.losses.attribute_loss import AttributeLoss, check_names, named
from distmetric.losses.base import LossTerm, Reduction, listed_sums

Side = Literal["logits", "labels"]


@dataclass(kw_only=True, frozen=True)
class AttributeIdentityHardTripletLossConfig:
    """Settings of `AttributeIdentityHardTripletLoss`."""

    name: Literal["attribute_identity_hard"] = "attribute_identity_hard"
    attributes: list[str] = field(default_factory=list)
    """Group of attributes that images of an identity are compared by; [] for all that the run has."""
    side: Side = "logits"
    """Compare predicted logits of model.attributes (logits), or the catalog's values, which need no heads (labels)."""
    margin: float = 0.0
    """Distance by which the attribute-farthest must be nearer than the attribute-nearest."""
    include_self: bool = False
    """Whether an anchor is its own attribute-nearest, as in the released code: the farthest is then simply pulled."""
    distance: Distance = "cosine"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""
    reduction: Reduction = "mean"
    """Mean over anchors (mean), over those above 0 (nonzero_mean), or sum."""

    def __post_init__(self) -> None:
        """Check names and margin.

        Raises:
            ValueError: If a name comes twice, or the margin is not finite.
        """
        _check(self.attributes, self.margin)


def _check(attributes: Sequence[str], margin: float) -> None:
    check_names(attributes)
    if not math.isfinite(margin):
        raise ValueError(f"margin={margin} is wrong: give a finite number")


class AttributeIdentityHardTripletLoss(AttributeLoss):
    """Triplets within an identity: the image with the most different attributes as near as that with the most similar.

    Formula, with A the distance of attributes and F that of embeddings, among the images of the anchor's identity:

        ip(a) = argmin_{y_i = y_a, i != a} A(a, i),    in(a) = argmax_{y_i = y_a, i != a} A(a, i)
        L = mean_a max(0, F(a, in) - F(a, ip) + m)

    and F(a, a) instead of F(a, ip) if `include_self`. Nobody of another identity enters: use it beside a loss that
    separates identities (conf/loss/aitl.yaml), or everything collapses into one point.

    Args:
        attributes: Names of the group that A compares; none for all that the batch has.
        side: "logits": A is the euclidean distance of the predicted logits of the group, side by side, without
            gradient; "labels": the number of true values that differ, an unknown one counting half.
        margin: m, in units of F.
        include_self: The form of the released code. Its same-identity mask holds the anchor, which is nearest to
            itself: F(a, a) = 0, and the loss is F(a, in).
        distance: F.
        normalize_embeddings: Whether to compare unit vectors; "cosine" always does.
        reduction: Over anchors.

    Cost: N log N + B K (S + D) for K images of an identity and S attribute values; nothing of size B N.

    Corner cases: an identity with one image is left out of sum and count. With two, ip and in are the same image and
    the paper's form is m with gradient 0. Images that tie in A, as with true values they do, count with the mean of
    their F. Pairs at distance 0 have gradient 0. What a miner has chosen is not looked at: it concerns identities.

    Source: Chen, Li, Jiang, Wang, "Attribute-aware Identity-hard Triplet Loss for Video-based Person
    Re-identification", arXiv 2006.07597.
    """

    def __init__(
        self,
        attributes: Sequence[str] = (),
        side: Side = "logits",
        margin: float = 0.0,
        include_self: bool = False,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance, normalize_embeddings, reduction)
        check_choice("side", side, ("logits", "labels"))
        _check(attributes, margin)
        self.attributes = tuple(attributes)
        self.side: Side = side
        self.margin = margin
        self.include_self = include_self

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor that has others of its identity."""
        chosen = self.extremes(batch)
        alone = segment_counts(chosen.anchors_of_negatives, len(batch.labels)) == 0
        farthest = self._mean_distance(batch, chosen.anchors_of_negatives, chosen.negatives)
        if self.include_self and batch.anchor_index is not None:
            itself = torch.arange(len(alone), device=alone.device)
            nearest = listed_distances(batch, itself, batch.anchor_index, self.distance)
        else:
            nearest = self._mean_distance(batch, chosen.anchors_of_positives, chosen.positives)
        excess = F.relu(farthest - nearest + self.margin)[~alone]
        return [self.reduced(listed_sums(excess))]

    def extremes(self, batch: JointBatch) -> Tuples:
        """The nearest and the farthest of each anchor's identity by attributes; see `identity_extremes`.

        Raises:
            ValueError: If the batch lacks an attribute of the group, of its anchors or of its columns.
        """
        if self.side == "logits":
            side, column_side = self._group(batch, "logits")
            return identity_extremes(batch, side, column_side)
        side, column_side = self._group(batch, "attributes")
        return identity_extremes(batch, side, column_side, value_differences)

    def _group(self, batch: JointBatch, kind: Literal["logits", "attributes"]) -> tuple[Tensor, Tensor]:
        """The group of the anchors and of the columns, (B, S) and (N, S)."""
        given = (
            (batch.logits, batch.column_logits)
            if kind == "logits"
            else (batch.attributes, batch.column_attributes)
        )
        names = self.attributes or tuple(given[0])
        what = "logits" if kind == "logits" else "true values"
        anchors, columns = (torch.column_stack(named(part, names, what, self)).detach() for part in given)
        if len(anchors) != len(batch.anchors) or len(columns) != len(batch.columns):
            raise ValueError(
                f"{type(self).__name__} needs attributes of all {len(batch.columns)} columns, but has those of "
                f"{len(columns)}: it cannot be used over a memory or a reference set"
            )
        return anchors, columns

    def _mean_distance(self, batch: JointBatch, anchors: Tensor, columns: Tensor) -> Tensor:
        """Mean of the distances of each anchor's listed pairs, (B,); 0 where it has none."""
        distances = listed_distances(batch, anchors, columns, self.distance)
        size = len(batch.labels)
        return segment_sum(distances, anchors, size) / segment_counts(anchors, size).clamp_min(1)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        shown = f"attributes={self.attributes}, side={self.side!r}, margin={self.margin}"
        return f"{shown}, include_self={self.include_self}"
