"""Time and memory of one cell of the kernels, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.data import clusters
from distmetric.benchmarks.memory import PeakMemory, limit_growth
from distmetric.benchmarks.timing import BareMatmul, time_beside
from distmetric.distributed.replica import Replica
from distmetric.functional import JointBatch, fused_rows, hardest_pairs
from distmetric.losses import LiftedStructureLoss, SupConLoss

Work = Literal["batch_hard", "lifted", "supcon"]
Way = Literal["kernels", "blocks"]
Precision = Literal["bfloat16", "float32"]

MATMULS: dict[Work, int] = {"batch_hard": 1, "lifted": 3, "supcon": 3}
"""Matrix multiplications that the work consists of: mining has one, a value with its gradient three."""

_PER_CLASS, _SPREAD = 4, 0.1 * math.sqrt(128)


@dataclass(frozen=True)
class KernelSpec(Spec):
    """What one cell measures.

    Args:
        work: Mining without gradient, or forward and backward of a loss.
        way: By kernels, or block by block as where there is no Triton.
        size: N, anchors and columns.
        dim: D.
        precision: Type in which the embeddings come, and of the bare matmul.
    """

    suite: ClassVar[str] = "kernels"

    work: Work
    way: Way
    size: int
    dim: int
    precision: Precision


@dataclass(frozen=True)
class KernelMeasurement(Measurement):
    """What a cell found; the matmul is N x N x D, once.

    Args:
        value: The loss, or the mean column of the nearest negatives.
    """

    value: float


def measure_kernels(spec: KernelSpec, replica: Replica | None = None) -> KernelMeasurement:
    """Measure a cell in this process: memory at the second step, since the first one compiles, then time.

    Args:
        spec: What to measure.
        replica: Which rank this process is; there is one.
    """
    device, dtype = torch.device(spec.device), getattr(torch, spec.precision)
    if spec.way == "blocks":
        fused_rows.DEVICES = ()
    rows, labels = clusters(spec.size, spec.dim, _PER_CLASS, _SPREAD / math.sqrt(spec.dim), seed=0)
    step = _step(spec.work, rows.to(device, dtype).requires_grad_(), labels.to(device))
    matmul = BareMatmul(spec.size, spec.size, spec.dim, device, dtype)
    matmul()
    step()
    if spec.memory_limit_bytes is not None:
        limit_growth(spec.memory_limit_bytes, device)
    memory = PeakMemory(device)
    started = time.perf_counter()
    value = step().item()
    peak, first_s = memory.above_base(), time.perf_counter() - started
    seconds, matmul_seconds = time_beside(matmul, step, spec.steps, first_s, replica or Replica(), device)
    return KernelMeasurement(seconds, matmul_seconds, memory.base, peak, value)


def _step(work: Work, embeddings: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    if work == "batch_hard":
        with torch.no_grad():
            batch = JointBatch.alone(embeddings, labels).prepared(normalize=True)
        return lambda: hardest_pairs(batch).negative.double().mean()
    loss = LiftedStructureLoss() if work == "lifted" else SupConLoss()

    def differentiate() -> Tensor:
        embeddings.grad = None
        value: Tensor = loss(embeddings, labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return differentiate
