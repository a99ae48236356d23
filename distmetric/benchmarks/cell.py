"""One cell of a benchmark: what it measures, what its processes found, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar, Generic, Literal, TypeVar

Device = Literal["cpu", "cuda"]
Status = Literal["ok", "out of memory", "timed out", "not run", "failed"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the cells of all suites have in common.

    Args:
        processes: Processes that share the work, on the CPU if there are several.
        threads: CPU threads of each.
        steps: Least number of timed steps.
        device: Where they compute.
        memory_limit_bytes: Most memory that the steps of one process may take; None for any.
    """

    suite: ClassVar[str]

    processes: int = 1
    threads: int = 1
    steps: int = 5
    device: Device = "cpu"
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """What one process of a cell found.

    Args:
        seconds: Of each timed step.
        matmul_seconds: Of the bare matmul before each of them.
        base_bytes: Memory held before the first step, its inputs included.
        peak_bytes: Most memory held during the first step, beyond the base.
    """

    seconds: list[float]
    matmul_seconds: list[float]
    base_bytes: int
    peak_bytes: int


S = TypeVar("S", bound=Spec)
M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True)
class Outcome(Generic[S, M]):
    """How a cell ended, and what its processes found.

    Args:
        spec: What was to be measured.
        status: "ok", or why there is nothing.
        message: What was said about it.
        ranks: One measurement per process; none unless all is well.
        load: Load average of the machine before.
    """

    spec: S
    status: Status
    message: str = ""
    ranks: list[M] = field(default_factory=list)
    load: float | None = None

    @property
    def seconds(self) -> float:
        """Median over the steps, each as long as its slowest process."""
        return float(median(max(step) for step in zip(*(rank.seconds for rank in self.ranks), strict=True)))

    @property
    def times_matmul(self) -> float:
        """Median over steps and processes of a step's time over that of the bare matmul before it."""
        return median(
            step / matmul
            for rank in self.ranks
            for step, matmul in zip(rank.seconds, rank.matmul_seconds, strict=True)
        )

    @property
    def peak_bytes(self) -> int:
        """Most memory above the base, of the process that took most."""
        return max(rank.peak_bytes for rank in self.ranks)
