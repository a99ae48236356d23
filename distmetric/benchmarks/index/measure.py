"""Time, memory and recall of one cell of the index, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.index.data import load
from distmetric.benchmarks.index.methods import METHODS, Settings
from distmetric.benchmarks.memory import PeakMemory, give_back_free, held_on_gpu, limit_growth
from distmetric.benchmarks.timing import BareMatmul, time_beside, timed
from distmetric.distributed.replica import Replica

_WARM_ROWS = 512
_COPIED_BYTES = 256 << 20  # more than any cache holds


@dataclass(frozen=True)
class IndexSpec(Spec):
    """What one cell measures.

    Args:
        method: Key of `METHODS`.
        size: N, rows of the data set.
        dim: D.
        per_class: Rows of a class, where they are drawn.
        spread: Standard deviation per coordinate of a row around its center, where they are drawn.
        embeddings: Parquet file of the rows; None where they are drawn.
        k: Neighbors of every row.
        lists: Lists of an ivf index; None for four times the square root of N.
        probes: Lists that a query looks at.
    """

    suite: ClassVar[str] = "index"

    method: str
    size: int
    dim: int
    per_class: int = 4
    spread: float = 0.1
    embeddings: str | None = None
    k: int = 50
    lists: int | None = None
    probes: int = 32


@dataclass(frozen=True)
class IndexMeasurement(Measurement):
    """What a cell found: a step is the work for all N rows, and the matmul N x N x D.

    Args:
        k: Neighbors that are found of each row, or class.
        build_seconds: Of what is done once before.
        backend: Who worked, in words.
        recall: Share of the right answers that were found, by "recall_at_k", on a sample of rows.
        scanned: Share of all N x N distances that were computed, where the method prunes.
        fell_back: Whether it gave pruning up.
        num_classes: C.
        bytes_per_second: Of copying memory, read and written.
    """

    k: int
    build_seconds: float
    backend: str
    recall: dict[str, float]
    scanned: float | None
    fell_back: bool | None
    num_classes: int
    bytes_per_second: float


def measure_index(spec: IndexSpec, replica: Replica | None = None) -> IndexMeasurement:
    """Measure a cell in this process.

    Peak memory is that of the building and the first search, with the rows themselves in the base.

    Args:
        spec: What to measure.
        replica: Of one process.

    Raises:
        ResourceError: If the method needs something that is not there.
    """
    replica, device = replica or Replica(), torch.device(spec.device)
    rows = load(spec.size, spec.dim, spec.per_class, spec.spread, spec.embeddings, device)
    method = METHODS[spec.method].make
    settings = Settings(spec.k, spec.lists, spec.probes, spec.device, spec.threads)
    method(
        rows.few(_WARM_ROWS), settings
    ).run()  # libraries are loaded and threads started, which is not to count
    matmul = BareMatmul(spec.size, spec.size, spec.dim, device)
    matmul()
    if spec.memory_limit_bytes is not None:
        limit_growth(spec.memory_limit_bytes, device)
    give_back_free()
    memory, held = PeakMemory(device), held_on_gpu(device)
    started = time.perf_counter()
    work = method(rows, settings)
    build_s = time.perf_counter() - started
    work.run()
    peak = max(memory.above_base(), held_on_gpu(device) - held)
    first_s = time.perf_counter() - started - build_s
    seconds, matmul_seconds = time_beside(matmul, work.run, spec.steps, first_s, replica, device)
    return IndexMeasurement(
        seconds,
        matmul_seconds,
        memory.base,
        peak,
        work.k,
        build_s,
        work.backend,
        work.recall(),
        work.scanned,
        work.fell_back,
        rows.num_classes,
        _copy_speed(replica, device),
    )


def _copy_speed(replica: Replica, device: torch.device) -> float:
    """Bytes read and written per second when memory is copied."""
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    fastest = min(timed(lambda: target.copy_(source), replica, device) for _ in range(3))
    return 2 * _COPIED_BYTES / fastest
