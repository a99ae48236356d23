"""Time and memory of one cell of the losses, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.losses.cells import (
    CELLS,
    DIM,
    PER_CLASS,
    Side,
    build,
    clustered,
    columns,
    fill_memory,
)
from distmetric.benchmarks.memory import PeakMemory, limit_growth
from distmetric.benchmarks.timing import BareMatmul, time_beside
from distmetric.distributed.parallel import average_gradients
from distmetric.distributed.replica import Replica


@dataclass(frozen=True)
class LossSpec(Spec):
    """What one cell measures.

    Args:
        loss: Key of `CELLS`.
        side: Whose implementation.
        size: N, embeddings in the batch of all processes together.
    """

    suite: ClassVar[str] = "losses"

    loss: str
    side: Side
    size: int


@dataclass(frozen=True)
class LossMeasurement(Measurement):
    """What one process of a cell found: mining, forward and backward from a leaf of embeddings.

    The matmul is N x M x D; class vectors belong to the base.

    Args:
        value: The loss.
    """

    value: float


class Step:
    """One training step of a loss, as far as the loss is concerned: from embeddings to all gradients.

    Args:
        spec: The loss and its side.
        size: N, over all ranks.
        replica: Which share of the N rows is this process's.
        device: Where to compute.

    Attributes:
        embeddings: This process's share of the last step's batch, with its gradient.
    """

    embeddings: Tensor

    def __init__(self, spec: LossSpec, size: int, replica: Replica, device: torch.device) -> None:
        self._spec, self._replica = spec, replica
        self.criterion: nn.Module = build(spec.loss, spec.side, size, replica).to(device)
        # With a memory every step brings another batch, back only when the memory has forgotten it.
        kept = columns(spec.loss, size) // size if CELLS[spec.loss].fills_memory else 0
        share = slice(replica.rank, None, replica.world_size)
        self._batches = [
            (rows[share].to(device, copy=True).requires_grad_(), labels[share].to(device, copy=True))
            for rows, labels in (clustered(size, seed) for seed in range(kept + 1))
        ]
        fill_memory(self.criterion, self._batches[1:])
        self._next = 0

    def __call__(self) -> Tensor:
        """Compute the loss and its gradients; returns its value, that of the batch of all ranks."""
        self.embeddings, labels = self._batches[self._next]
        self._next = (self._next + 1) % len(self._batches)
        self.embeddings.grad = None
        self.criterion.zero_grad()
        value: Tensor = self.criterion(self.embeddings, labels)
        value.backward()  # type: ignore[no-untyped-call]
        if self._spec.side == "ours":
            average_gradients(self.criterion.parameters(), self._replica)
            return value.detach()
        return value.detach() / self._replica.world_size  # which its wrapper has multiplied by


def measure_loss(spec: LossSpec, replica: Replica | None = None) -> LossMeasurement:
    """Measure a cell in this process.

    Peak memory is that of the first step, in a process that has seen only a batch of the smallest size before. Then
    steps are timed, each right after the bare matmul that it is compared with.

    Args:
        spec: What to measure.
        replica: Which of its ranks this process is.
    """
    replica = replica or Replica()
    device = torch.device(spec.device)
    Step(spec, min(spec.size, 8 * PER_CLASS * replica.world_size), replica, device)()
    step = Step(spec, spec.size, replica, device)
    matmul = BareMatmul(spec.size, columns(spec.loss, spec.size), DIM, device)
    matmul()  # also starts the threads, whose stacks are not to count
    if spec.memory_limit_bytes is not None:
        limit_growth(spec.memory_limit_bytes, device)
    memory = PeakMemory(device)
    started = time.perf_counter()
    value = step().item()
    peak = memory.above_base()
    first_s = time.perf_counter() - started
    seconds, matmul_seconds = time_beside(matmul, step, spec.steps, first_s, replica, device)
    return LossMeasurement(seconds, matmul_seconds, memory.base, peak, value)
