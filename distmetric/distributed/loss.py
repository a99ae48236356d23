"""A metric loss over the joint batch of all ranks, with exactly the gradient of one huge process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distmetric.distributed.gather import gather_batch
from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.tuples import Tuples
from distmetric.losses.base import LossTerm, MetricLoss, safe_count
from distmetric.losses.whole_batch import WholeBatchLoss
from distmetric.miners.base import Miner


class DistributedLoss(nn.Module):
    """Own anchors against all ranks' columns; the value is the joint batch's on every rank.

    Formula: with S_r the sum and n_r the count of a term on rank r, L = (sum_r S_r) / (sum_r n_r), summed over the
    terms of the loss. Each rank differentiates W S_r / n, so that the mean over ranks that DDP takes is the gradient of
    L. No factor is left for the user to multiply by, for the parameters of the model and for those of the loss alike.

    Args:
        loss: One of `distmetric.losses`, which stays usable on its own, or a loss of pytorch-metric-learning, which
            every rank then computes over the whole joint batch: as exact, but not divided.
        replica: Who this rank is; by default the current process group, or one lone process.
        miner: One of `distmetric.miners`, or a miner of pytorch-metric-learning, which every rank then runs over the
            whole joint batch.
        parts: Into how many parts of equal size, a multiple of the ranks, the joint batch is divided, each of which is
            compared within itself alone: what as many ranks do that gather nothing, for comparison with what all ranks
            together do. L is the mean over the parts then.

    Cost: 1/W of the pair work per rank, N D values gathered, four numbers a term reduced.

    Corner cases: ranks may have batches of different size, or none. What draws its own random numbers (some losses and
    miners of pytorch-metric-learning) would differ between ranks; that is noticed and refused.
    """

    def __init__(
        self,
        loss: MetricLoss | nn.Module,
        replica: Replica | None = None,
        miner: Miner | Callable[..., Any] | None = None,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.loss = loss if isinstance(loss, MetricLoss) else WholeBatchLoss(loss)
        self.replica = Replica.current() if replica is None else replica
        self.miner = miner
        if parts > 1 and parts % self.replica.world_size:
            raise ValueError(f"parts={parts} cannot be divided among {self.replica.world_size} ranks")
        self.parts = parts

    def forward(self, embeddings: Tensor, labels: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The loss of the joint batch.

        Args:
            embeddings: (B_r, D) this rank's embeddings; B_r may differ between ranks.
            labels: (B_r,) their labels.
            sizes: B_r of every rank where known, which saves a small exchange.

        Returns:
            Scalar, equal on all ranks.

        Raises:
            ValueError: If ranks disagree about what should be the same on all of them.
        """
        return self.joint(gather_batch(embeddings, labels, self.replica, sizes))[0]

    def joint(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        """The loss of a batch that has been gathered already, and the fraction of terms that are active."""
        return self._joint(batch, self.replica) if self.parts == 1 else self._within_parts(batch)

    def _joint(self, batch: JointBatch, replica: Replica) -> tuple[Tensor, Tensor]:
        is_whole, ranks = isinstance(self.loss, WholeBatchLoss), replica.world_size
        terms = self.loss.parts(self._mined(batch.whole() if is_whole else batch, replica))
        if is_whole:
            _check_equal(terms[0].total.detach(), 1e-4, "loss", self.loss.loss, replica)
        own = torch.stack([term.total for term in terms])
        totals, counts, num_terms, num_active = replica.sum_(_numbers(terms, ranks)).unbind()
        weights = torch.stack([own.new_full((), term.weight) for term in terms])
        weights = weights / safe_count(counts).to(own.dtype)
        share = (own * weights).sum() * ranks
        value = (totals.to(own.dtype) * weights).sum()
        return _joint_value(share, value.detach()), num_active.sum() / num_terms.sum().clamp_min(1)

    def _within_parts(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        """The mean over the parts of their losses, and of their fractions of active terms."""
        ranks, rows = self.replica.world_size, len(batch.anchors)
        own = self.parts // ranks
        if rows % own:
            raise ValueError(f"{rows} rows of a rank cannot be divided into {own} parts of one size")
        parts = [batch.alone_with(slice(first, first + rows // own)) for first in range(0, rows, rows // own)]
        losses, active = zip(*(self._joint(part, Replica()) for part in parts), strict=True)
        share = torch.stack(losses).mean()
        means = torch.stack([share.detach().double(), torch.stack(active).mean()])
        value, fraction = (self.replica.sum_(means) / ranks).unbind()
        return _joint_value(share, value.to(share.dtype)), fraction

    def set_step(self, step: int) -> None:
        """Tell loss and miner which step of the training comes next."""
        for part in (self.loss, self.miner):
            if isinstance(part, MetricLoss | Miner):
                part.set_step(step)

    def metrics(self) -> dict[str, Tensor]:
        """What the loss tells of itself after a step, see `MetricLoss.metrics`."""
        return self.loss.metrics()

    def _mined(self, batch: JointBatch, replica: Replica) -> JointBatch:
        if self.miner is None:
            return batch
        if isinstance(self.miner, Miner):
            return batch.with_tuples(self.miner.mine(batch))
        # Another library's miner knows nothing of own anchors: all ranks mine the whole batch and keep their share.
        whole = batch.whole()
        with torch.no_grad():
            tuples = Tuples.of(self.miner(whole.columns.detach(), whole.column_labels))
        _check_equal(tuples.fingerprint(), 0.0, "miner", self.miner, replica)
        assert batch.anchor_index is not None, "the joint batch of all ranks"
        first = int(batch.anchor_index[0]) if len(batch.anchor_index) else 0
        return batch.with_tuples(tuples.of_anchors(first, len(batch.anchors)))


def _check_equal(number: Tensor, tolerance: float, what: str, culprit: object, replica: Replica) -> None:
    """Refuse what should be equal on all ranks and is not; all of them come to the same verdict."""
    if replica.world_size == 1:
        return
    number = number.double()
    mean, square = (replica.sum_(torch.stack([number, number**2])) / replica.world_size).tolist()
    if max(square - mean**2, 0.0) ** 0.5 > tolerance * abs(mean) + 1e-6:
        raise ValueError(
            f"the {what} {type(culprit).__name__} gives every rank something else for the same batch (does it "
            "draw random numbers?), so the gradient would be nobody's: use one of distmetric instead"
        )


class _JointValue(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _share: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _joint_value(share: Tensor, value: Tensor) -> Tensor:
    """The value of the joint batch, to the last bit equal on all ranks, with the gradient of this rank's share."""
    result: Tensor = _JointValue.apply(share, value)  # type: ignore[no-untyped-call]
    return result


def _numbers(terms: list[LossTerm], ranks: int) -> Tensor:
    """Totals, counts, numbers of terms and of active terms, (4, T) in float64."""

    def row(values: Iterable[Tensor]) -> Tensor:
        return torch.stack([value.detach().double() for value in values])

    # A plain sum is divided by 1, which the ranks make up together.
    fraction = torch.full((), 1 / ranks, dtype=torch.float64, device=terms[0].total.device)
    return torch.stack(
        [
            row(term.total for term in terms),
            row(fraction if term.denominator is None else term.denominator for term in terms),
            row(term.num_terms for term in terms),
            row(term.num_active for term in terms),
        ]
    )
