"""Losses of other libraries: computed over the whole joint batch by every rank, since nobody can split them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, MetricLoss


@dataclass(kw_only=True, frozen=True)
class CustomLossConfig:
    """Settings of a loss of another library, or of your own: see `WholeBatchLoss`."""

    name: Literal["custom"] = "custom"
    target: str
    """Dotted path of a module called with (embeddings, labels, indices_tuple), as pytorch-metric-learning's losses."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""


class WholeBatchLoss(MetricLoss):
    """Any `loss(embeddings, labels, indices_tuple)` with pytorch-metric-learning's calling convention.

    Formula: L = loss(columns, column_labels), the same number on every rank. Its gradient by the columns comes back to
    their owners W times, once from every rank, and the mean over ranks of parameter gradients takes the factor away;
    the loss's own parameters have their true gradient on every rank. Hence exact, for both, without any factor.

    Args:
        loss: The other library's loss; it keeps its own normalization, distance and reduction.

    Raises:
        ValueError: If it already is a wrapper for distributed training.

    Cost: the loss's own, over N columns, on every rank: exact but not divided. Our losses divide the work.

    Corner cases: a loss that draws random numbers differs between ranks and is refused by `DistributedLoss`.
    """

    over_pairs = False

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        if type(loss).__name__ == "DistributedLossWrapper":
            raise ValueError("the loss is wrapped for distributed training already: pass the loss inside it")
        self.loss = loss

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.parts`; one term, the same on all ranks.

        Raises:
            ValueError: If the batch's columns are not the embeddings of all ranks.
        """
        if batch.gather_rows is None:
            raise ValueError("a loss of another library needs the batch itself as its columns")
        indices = None if batch.tuples is None else batch.tuples.indices()
        total = self.loss(batch.columns, batch.column_labels, indices)
        one = torch.ones((), device=total.device)
        return [LossTerm(total, one, one, (total.detach() != 0).sum())]
