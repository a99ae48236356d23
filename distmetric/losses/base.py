"""What every loss is: sums over own anchors, so that W ranks can add theirs up to the joint batch's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import DISTANCES, Distance
from distmetric.functional.joint_batch import JointBatch, single_batch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, RowSums, sum_rows
from distmetric.functional.tuples import Tuples

Reduction = Literal["mean", "nonzero_mean", "sum"]
"""Mean over all terms, mean over the terms that are not 0, or their sum."""

ACTIVE_ABOVE = 1e-5  # below this a term is over, also for soft margins that never reach 0


class LossTerm(NamedTuple):
    """One rank's share of a loss, before the division by what the ranks count together.

    The joint batch's loss is the sum over its terms of weight * (sum_r total_r) / (sum_r denominator_r). A part that is
    the same on all ranks, such as a regularizer of the loss's parameters, has a denominator of 1.

    Attributes:
        total: Scalar with gradient, the sum over this rank's anchors.
        denominator: Scalar without gradient, what this rank adds to the count that divides; None for a plain sum.
        num_terms: Scalar without gradient, how many terms were summed (0 where that says nothing).
        num_active: Scalar without gradient, how many of them still push or pull.
        weight: What this term of the loss is multiplied by.
    """

    total: Tensor
    denominator: Tensor | None
    num_terms: Tensor
    num_active: Tensor
    weight: float = 1.0


class MetricLoss(nn.Module):
    """A loss over a joint batch: one term or a few, each a sum over anchors divided by a count.

    Args:
        distance: What losses over pairs compare.
        normalize_embeddings: Whether embeddings are scaled to length one first, as pytorch-metric-learning does
            by default. "cosine" always does.
        reduction: "mean" over all terms, "nonzero_mean" over those above 0, or "sum".

    Attributes:
        over_pairs: Whether the loss compares anchors with columns, whatever these are, so that it can look at a memory.

    Raises:
        ValueError: If one of them is not known.
    """

    over_pairs: ClassVar[bool] = True

    def __init__(
        self,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_choice("distance", distance, DISTANCES)
        check_choice("reduction", reduction, ("mean", "nonzero_mean", "sum"))
        self.distance: Distance = distance
        self.normalize_embeddings = normalize_embeddings
        self.reduction: Reduction = reduction

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        """This rank's share of the loss of a joint batch.

        Args:
            batch: Anchors (B, D) and columns (N, D).

        Returns:
            The terms of the loss. With nothing to compare a total is 0 and has a live graph.
        """
        return self.terms(batch.prepared(self.normalize_embeddings or self.distance == "cosine"))

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `parts`; the embeddings of `batch` are in float32 or wider, and of length one where asked."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of one process's batch.

        Args:
            embeddings: (B, D) embeddings.
            labels: (B,) integer labels.
            indices_tuple: What a miner has chosen, (anchors, positives, negatives) or (anchors, positives, anchors,
                negatives); indices of `embeddings` and, except for anchors, of `ref_emb` where it is given. By
                default all pairs count, or those that the loss finds itself.
            ref_emb: (N, D) embeddings to take positives and negatives from instead of the batch itself.
            ref_labels: (N,) labels of `ref_emb`.

        Returns:
            Scalar; 0 with a live graph where the batch has no valid term.

        Raises:
            ValueError: If shapes do not fit together.
        """
        tuples = None if indices_tuple is None else Tuples.of(indices_tuple)
        return loss_value(self.parts(single_batch(embeddings, labels, ref_emb, ref_labels, tuples)))

    def set_step(self, step: int) -> None:
        """Tell the loss, and those inside it, which step of the training comes next."""
        for child in self.children():
            if isinstance(child, MetricLoss):
                child.set_step(step)

    def metrics(self) -> dict[str, Tensor]:
        """What the loss tells of itself after a step: scalars without gradient, NaN where there is nothing to tell.

        The names are the same at every step, and the values on every rank.
        """
        return {}

    def reduced(self, sums: RowSums, weight: float = 1.0) -> LossTerm:
        """The term that sums over rows make under this loss's reduction."""
        count = {"mean": sums.num_terms, "nonzero_mean": sums.num_active, "sum": None}[self.reduction]
        return LossTerm(sums.total, count, sums.num_terms, sums.num_active, weight)


class RowLoss(MetricLoss):
    """A loss whose term of an anchor looks at the row of its distances only, or at those that a miner has listed."""

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`."""
        if batch.tuples is None:
            return [self.reduced(sum_rows(batch, self.distance, self.anchor_rows))]
        return [self.reduced(self.listed(batch, batch.tuples))]

    def anchor_rows(self, block: PairBlock) -> Row:
        """The anchors' terms and their derivative by every distance in their rows, see `sum_rows`."""
        raise NotImplementedError

    def listed(self, batch: JointBatch, chosen: Tuples) -> RowSums:
        """The sum of the anchors' terms over listed pairs, differentiable."""
        raise NotImplementedError


def loss_value(terms: list[LossTerm]) -> Tensor:
    """The loss of a process that is on its own."""
    values = []
    for total, count, _, _, weight in terms:
        denominator = 1 if count is None else safe_count(count).to(total.dtype)
        values.append(weight * (total / denominator))
    return torch.stack(values).sum()


def safe_count(count: Tensor) -> Tensor:
    """A denominator: 1 where nothing was counted, so that a total of 0 stays 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def listed_sums(terms: Tensor, active_above: float = 0.0) -> RowSums:
    """Sum (T,) terms, counting them and those above `active_above`."""
    number = torch.full((), len(terms), device=terms.device)
    return RowSums(terms.sum(), number, (terms.detach() > active_above).sum())


def check_classes(batch: JointBatch, num_classes: int, embedding_size: int) -> None:
    """Check a batch for a loss that was made for certain classes.

    Raises:
        ValueError: If a label is not one of them, or embeddings have another length.
    """
    if batch.anchors.shape[1] != embedding_size:
        raise ValueError(
            f"embeddings have length {batch.anchors.shape[1]}, but the loss was made with "
            f"embedding_size={embedding_size}"
        )
    labels = batch.on_host().columns
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}, "
            f"but the loss was made with num_classes={num_classes}: number the classes from 0"
        )


def live_zero(batch: JointBatch) -> Tensor:
    """0 with a graph to all embeddings, so that every rank takes part in the communication of backward."""
    return 0.0 * (batch.anchors.sum() + batch.columns.sum())
