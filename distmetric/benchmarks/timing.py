"""How long a step takes, beside the yardstick that it is compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from distmetric.distributed.replica import Replica

_MATMUL_BYTES = 256 << 20  # of the result of the bare matmul that is kept at once
_WANTED_S, _MOST_STEPS = 1.0, 50  # short steps are repeated more often, for a steadier median


class BareMatmul:
    """The yardstick: one product (N, D) x (D, M) with its result in memory that is there already.

    Large results are computed block of rows by block of rows, into the same 256 MiB.
    """

    def __init__(
        self,
        size: int,
        num_columns: int,
        dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._rows = torch.randn(size, dim, device=device, dtype=dtype)
        self._columns = torch.randn(num_columns, dim, device=device, dtype=dtype)
        block = min(size, max(1, _MATMUL_BYTES // (dtype.itemsize * num_columns)))
        self._out = torch.empty(block, num_columns, device=device, dtype=dtype)

    def __call__(self) -> None:
        """Compute it once."""
        for rows in torch.split(self._rows, len(self._out)):
            torch.mm(rows, self._columns.t(), out=self._out[: len(rows)])


def time_beside(
    matmul: Callable[[], object],
    step: Callable[[], object],
    least: int,
    first_s: float,
    replica: Replica,
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Time a step again and again, each time right after the bare matmul that it is compared with.

    With several ranks all wait for each other before each of the two.

    Args:
        matmul: The yardstick.
        step: What is measured.
        least: How often at least; short steps are repeated for about a second.
        first_s: Seconds that a first step took.
        replica: Which of its ranks this process is.
        device: Where they compute.

    Returns:
        (seconds of the steps, seconds of the matmuls).
    """
    fitting = math.ceil(_WANTED_S / first_s)
    seconds, matmul_seconds = [], []
    for _ in range(int(replica.broadcast(max(least, min(fitting, _MOST_STEPS))))):
        matmul_seconds.append(timed(matmul, replica, device))
        seconds.append(timed(step, replica, device))
    return seconds, matmul_seconds


def timed(call: Callable[[], object], replica: Replica, device: torch.device) -> float:
    """Seconds of one call, begun by all ranks together, whatever it started on a GPU included."""
    replica.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
