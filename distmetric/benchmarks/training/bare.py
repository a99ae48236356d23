"""The peer: the training loop that one writes oneself, with the same model, batches and loss, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distmetric.distributed.replica import Replica


class Batch(NamedTuple):
    """What the loop is given.

    Attributes:
        images: (B, C, H, W) float32, of this rank.
        labels: (N,) of all ranks.
        ids: (B,) keys of the images' variations.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor


class BareLoop:
    """Forward, supervised contrastive loss over all ranks, backward, AdamW: no loader, no measurements, no checks.

    Args:
        model: Images -> embeddings of length one.
        learning_rate: Of all parameters, constant.
        temperature: Of the loss.
        replica: Who this rank is; with more than one, gradients are averaged by DDP.
        vary: (images, step=, ids=) -> varied images; None leaves them.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        temperature: float,
        replica: Replica,
        vary: Callable[..., Tensor] | None = None,
    ) -> None:
        self._temperature, self._replica, self._vary = temperature, replica, vary
        self._model = model.train()
        if replica.world_size > 1:
            self._model = DistributedDataParallel(model)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
        )

    def run(self, batches: Sequence[Batch], first_step: int) -> list[Tensor]:
        """Take a step on each batch; returns the losses, not read back."""
        losses = []
        for step, (images, labels, ids) in enumerate(batches, start=first_step):
            varied = images if self._vary is None else self._vary(images, step=step, ids=ids)
            loss = supervised_contrastive(self._gather(self._model(varied)), labels, self._temperature)
            self._optimizer.zero_grad(set_to_none=True)
            # Every rank has the whole loss, of which its own rows carry 1 / W of the gradient after DDP's mean.
            (loss * self._replica.world_size).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            losses.append(loss.detach())
        return losses

    def _gather(self, rows: Tensor) -> Tensor:
        if self._replica.world_size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self._replica.world_size)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self._replica.rank] = rows
        return torch.cat(parts)


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L = mean_a -1/|P(a)| sum_{p in P(a)} log( e^{s_ap / T} / sum_{c != a} e^{s_ac / T} ), with all N^2 at once.

    Args:
        embeddings: (N, D) of length one.
        labels: (N,); everybody has a positive.
        temperature: T.
    """
    similarities = embeddings @ embeddings.t() / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    log_shares = torch.log_softmax(similarities.masked_fill(itself, -torch.inf), 1)
    return -(log_shares.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()
