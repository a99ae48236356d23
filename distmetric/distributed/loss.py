"""A pair loss over the joint batch of all ranks, with exactly the gradient of one huge process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distmetric.distributed.gather import gather_batch
from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import PairLoss


class DistributedLoss(nn.Module):
    """Own anchors against all ranks' columns; the value is the joint batch's on every rank.

    Formula: with S_r the sum and n_r the number of this rank's terms, L = (sum_r S_r) / (sum_r n_r). Each rank
    differentiates W S_r / n, so that the mean over ranks that DDP takes is the gradient of L. No factor is left
    for the user to multiply by, for the parameters of the model and for those of the loss alike.

    Args:
        loss: A pair loss, which stays usable on its own.
        replica: Who this rank is; by default the current process group, or one lone process.

    Cost: 1/W of the pair work per rank, N D values gathered, two scalars reduced.
    """

    def __init__(self, loss: PairLoss, replica: Replica | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.replica = Replica.current() if replica is None else replica

    def forward(self, embeddings: Tensor, labels: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The loss of the joint batch.

        Args:
            embeddings: (B_r, D) this rank's embeddings; B_r may differ between ranks.
            labels: (B_r,) their labels.
            sizes: B_r of every rank where known, which saves a small exchange.

        Returns:
            Scalar, equal on all ranks.
        """
        return self.joint(gather_batch(embeddings, labels, self.replica, sizes))[0]

    def joint(self, batch: JointBatch) -> tuple[Tensor, Tensor]:
        """The loss of a batch that has been gathered already, and the fraction of terms that are active."""
        total, num_terms, num_active = self.loss.parts(batch)
        sums = torch.stack([total.detach().double(), num_terms.double(), num_active.double()])
        joint_total, joint_terms, joint_active = self.replica.sum_(sums).unbind()
        terms = joint_terms.clamp_min(1)
        own = total * (self.replica.world_size / terms).to(total.dtype)
        value = (joint_total / terms).to(total.dtype)
        # The value of the joint batch with the gradient of this rank's share.
        return own + (value - own).detach(), joint_active / terms


def average_gradients(parameters: Iterable[nn.Parameter], replica: Replica) -> None:
    """Replace gradients by their mean over the ranks, for parameters that DDP does not look after."""
    if replica.world_size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        replica.sum_(parameter.grad).div_(replica.world_size)
