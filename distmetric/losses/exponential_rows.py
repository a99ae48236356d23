"""Losses that see all pushes on an anchor through one number, the log of a sum of exponentials."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from distmetric.functional.fused_rows import Counted, fused_logsumexp, is_fused
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import few_positive_pairs, listed_distances
from distmetric.functional.row_sums import RowSums
from distmetric.losses.base import LossTerm, RowLoss


class ExponentialRowLoss(RowLoss):
    """A `RowLoss` whose term is a function of l_a = log sum_c e^{-power d_ac} and of the distances to positives.

    Where kernels can find the first (`is_fused`) and positives are few enough to be listed, its terms come from these
    two; elsewhere from `anchor_rows`, which is the same function block by block.

    Attributes:
        counted: Which columns c of an anchor are summed over.
    """

    counted: ClassVar[Counted]

    @property
    def power(self) -> float | None:
        """What distances are multiplied by in the exponent; None where the loss has no such form."""
        raise NotImplementedError

    def of_positives(self, anchors: Tensor, near: Tensor, logs: Tensor, can_count: Tensor) -> RowSums:
        """The sum of the anchors' terms, differentiable.

        Args:
            anchors: (P,) int64 anchors of positive pairs.
            near: (P,) their distances.
            logs: (B,) l of the anchors; -inf where nothing is summed over.
            can_count: (B,) bool, whether an anchor has the negatives that make it count.
        """
        raise NotImplementedError

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`."""
        power = self.power
        if batch.tuples is not None or power is None or not is_fused(batch):
            return super().terms(batch)
        pairs = few_positive_pairs(batch)
        if pairs is None:
            return super().terms(batch)
        logs = fused_logsumexp(batch, power, self.distance, self.counted)
        near = listed_distances(batch, pairs.anchors, pairs.columns, self.distance)
        return [self.reduced(self.of_positives(pairs.anchors, near, logs, pairs.num_negatives > 0))]
