"""Attribute classification: cross entropy of predicted attributes against the catalog's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import at_least_float32
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.attribute_loss import AttributeLoss, check_names, named
from distmetric.losses.base import LossTerm, live_zero

Kind = Literal["cross_entropy", "binary"]


@dataclass(kw_only=True, frozen=True)
class AttributeClassificationLossConfig:
    """Settings of `AttributeClassificationLoss`."""

    name: Literal["attribute_classification"] = "attribute_classification"
    attributes: list[str] = field(default_factory=list)
    """Attributes to learn, among those of model.attributes; [] for all of these."""
    kind: Kind = "cross_entropy"
    """Softmax cross entropy per attribute (cross_entropy), or a yes or no for each of its values (binary)."""
    label_smoothing: float = 0.0
    """Share of a target that is spread over all values (cross_entropy), or over yes and no (binary)."""

    def __post_init__(self) -> None:
        """Check names and smoothing.

        Raises:
            ValueError: If a name comes twice, or the smoothing is not below 1.
        """
        _check(self.attributes, self.label_smoothing)


def _check(attributes: Sequence[str], label_smoothing: float) -> None:
    check_names(attributes)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} is wrong: 0 <= label_smoothing < 1")


class AttributeClassificationLoss(AttributeLoss):
    """Cross entropy of attributes: what makes the model's attribute heads predict.

    Formula, over the rows i whose value t_ia of attribute a is known, with logits z_ia of V_a values:

        cross_entropy  mean_a mean_i -log softmax(z_ia)[t_ia]
        binary         mean over all (i, a, v) of BCE(sigmoid(z_iav), [v = t_ia])

    Args:
        attributes: Names; none for all that the batch has logits of.
        kind: Which of the two.
        label_smoothing: e. The target 1 becomes 1 - e, and e is spread evenly over all V_a values (cross_entropy) or
            over yes and no (binary).

    Attributes:
        last_accuracy: Scalar, fraction of the known values of the last joint batch that was predicted; NaN without.

    Cost: B V values; embeddings play no part.

    Corner cases: unknown values (-1) are left out of sum and count; an attribute that no row of the batch knows counts
    as 0 in mean_a. The two kinds have different scales: a binary term is divided by V_a as well.

    Source: the two attribute losses ("mce" and "bce") of Chen, Li, Jiang, Wang, "Attribute-aware Identity-hard Triplet
    Loss for Video-based Person Re-identification", arXiv 2006.07597.
    """

    def __init__(
        self, attributes: Sequence[str] = (), kind: Kind = "cross_entropy", label_smoothing: float = 0.0
    ) -> None:
        super().__init__(normalize_embeddings=False)
        check_choice("kind", kind, ("cross_entropy", "binary"))
        _check(attributes, label_smoothing)
        self.attributes = tuple(attributes)
        self.kind: Kind = kind
        self.label_smoothing = label_smoothing
        self.last_accuracy = torch.full((), torch.nan)

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per attribute, or one over the values of all of them."""
        names = self.attributes or tuple(batch.logits)
        self.last_accuracy = self._accuracy(batch, names)
        logits = [at_least_float32(part) for part in named(batch.logits, names, "logits", self)]
        targets = named(batch.attributes, names, "true values", self)
        sums = [self._sum(*pair) for pair in zip(logits, targets, strict=True)]
        if self.kind == "binary":
            total, count = (torch.stack(part).sum() for part in zip(*sums, strict=True))
            return [_term(total + live_zero(batch), count)]
        # So that embeddings, too, are part of the graph.
        first, *others = (_term(total, count, 1 / len(names)) for total, count in sums)
        return [first._replace(total=first.total + live_zero(batch)), *others]

    def metrics(self) -> dict[str, Tensor]:
        """`attribute_accuracy`: see `last_accuracy`."""
        return {"attribute_accuracy": self.last_accuracy}

    @torch.no_grad()
    def _accuracy(self, batch: JointBatch, names: Sequence[str]) -> Tensor:
        # Of all columns, which every rank has, so that it is the same on all of them.
        logits = named(batch.column_logits, names, "logits", self)
        targets = named(batch.column_attributes, names, "true values", self)
        pairs = list(zip(logits, targets, strict=True))
        right = [(part.argmax(1) == values).sum() for part, values in pairs]
        return torch.stack(right).sum() / torch.stack([(values >= 0).sum() for _, values in pairs]).sum()

    def _sum(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the rows whose value is known, and how many numbers it is the sum of."""
        known = targets >= 0
        if self.kind == "cross_entropy":
            total = F.cross_entropy(
                logits, targets, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
            )
            return total, known.sum()
        one_hot = F.one_hot(targets.clamp_min(0), logits.shape[1]).to(logits.dtype)
        wanted = one_hot * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return torch.where(known[:, None], losses, 0).sum(), known.sum() * logits.shape[1]

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"attributes={self.attributes}, kind={self.kind!r}, label_smoothing={self.label_smoothing}"


def _term(total: Tensor, count: Tensor, weight: float = 1.0) -> LossTerm:
    nothing = torch.zeros_like(count)
    return LossTerm(total, count, nothing, nothing, weight)
