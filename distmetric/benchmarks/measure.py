"""Time and memory of one cell, in a process of its own.

    python -m distmetric.benchmarks.measure '{"loss": "batch_hard", "side": "ours", "size": 1024}'

The last line is a JSON object, a `Measurement`, or {"out_of_memory": MESSAGE}.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from distmetric.benchmarks.losses import CELLS, DIM, PER_CLASS, Side, build, clustered, columns, fill_memory
from distmetric.benchmarks.memory import PeakMemory, is_out_of_memory, limit_growth
from distmetric.distributed.loss import average_gradients
from distmetric.distributed.replica import Replica, join_from_environment, leave

_MATMUL_BYTES = 256 << 20  # of the result of the bare matmul that is kept at once
_WANTED_S, _MOST_STEPS = 1.0, 50  # short steps are repeated more often, for a steadier median


@dataclass(frozen=True)
class Spec:
    """What one cell measures.

    Args:
        loss: Key of `CELLS`.
        side: Whose implementation.
        size: N, embeddings in the batch of all processes together.
        processes: Processes that share the batch, on the CPU if there are several.
        threads: CPU threads of each.
        steps: Least number of timed steps.
        device: "cpu" or "cuda".
        memory_limit_bytes: Most memory that the steps of one process may take; None for any.
    """

    loss: str
    side: Side
    size: int
    processes: int = 1
    threads: int = 1
    steps: int = 5
    device: str = "cpu"
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """What one process of a cell found.

    Args:
        seconds: Of each timed step: mining, forward and backward from a leaf of embeddings.
        matmul_seconds: Of the bare N x M x D matmul before each of them.
        base_bytes: Memory held before the first step, inputs and class vectors included.
        peak_bytes: Most memory held during the first step, beyond the base.
        value: The loss.
    """

    seconds: list[float]
    matmul_seconds: list[float]
    base_bytes: int
    peak_bytes: int
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

    def __init__(self, spec: Spec, size: int, replica: Replica, device: torch.device) -> None:
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


class BareMatmul:
    """The yardstick: one float32 product (N, D) x (D, M) with its result in memory that is there already.

    Large results are computed block of rows by block of rows, into the same 256 MiB.
    """

    def __init__(self, size: int, num_columns: int, device: torch.device) -> None:
        self._rows = torch.randn(size, DIM, device=device)
        self._columns = torch.randn(num_columns, DIM, device=device)
        block = min(size, max(1, _MATMUL_BYTES // (4 * num_columns)))
        self._out = torch.empty(block, num_columns, device=device)

    def __call__(self) -> None:
        """Compute it once."""
        for rows in torch.split(self._rows, len(self._out)):
            torch.mm(rows, self._columns.t(), out=self._out[: len(rows)])


def measure(spec: Spec, replica: Replica | None = None) -> Measurement:
    """Measure a cell in this process.

    Peak memory is that of the first step, in a process that has seen only a batch of the smallest size before. Then
    steps are timed, each right after the bare matmul that it is compared with; with several ranks all wait for each
    other before each of the two.

    Args:
        spec: What to measure.
        replica: Which of its ranks this process is.
    """
    replica = replica or Replica()
    device = torch.device(spec.device)
    Step(spec, min(spec.size, 8 * PER_CLASS * replica.world_size), replica, device)()
    step = Step(spec, spec.size, replica, device)
    matmul = BareMatmul(spec.size, columns(spec.loss, spec.size), device)
    matmul()  # also starts the threads, whose stacks are not to count
    if spec.memory_limit_bytes is not None:
        limit_growth(spec.memory_limit_bytes, device)
    memory = PeakMemory(device)
    started = time.perf_counter()
    value = step().item()
    peak = memory.above_base()
    fitting = math.ceil(_WANTED_S / (time.perf_counter() - started))
    seconds, matmul_seconds = [], []
    for _ in range(int(replica.broadcast(max(spec.steps, min(fitting, _MOST_STEPS))))):
        matmul_seconds.append(_timed(matmul, replica, device))
        seconds.append(_timed(step, replica, device))
    return Measurement(seconds, matmul_seconds, memory.base, peak, value)


def main(arguments: Sequence[str]) -> int:
    """Measure what the JSON object in the first argument says, as the rank that the environment says.

    A second argument is the id of the process that waits for the result, without which this one ends too.
    """
    spec = Spec(**json.loads(arguments[0]))
    if len(arguments) > 1:
        threading.Thread(target=_end_with_parent, args=(int(arguments[1]),), daemon=True).start()
    torch.set_num_threads(spec.threads)
    try:
        found = asdict(measure(spec, join_from_environment()))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(f"{type(error).__name__} {error}"):
            raise
        print(json.dumps({"out_of_memory": " ".join(str(error).split())[:300]}), flush=True)
        # Other ranks may wait for this one in a collective: to leave the group in order would be to wait for them.
        os._exit(0)
    leave()
    print(json.dumps(found), flush=True)
    return 0


def _timed(call: Callable[[], object], replica: Replica, device: torch.device) -> float:
    replica.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _end_with_parent(parent: int) -> None:
    """Leave when the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
