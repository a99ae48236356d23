"""What a suite of measurements is, and what the planning of all of them has in common."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from distmetric.benchmarks.cell import Device, Outcome
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError, ResourceError

_FREE_SHARE = 0.8  # of the free memory, that a cell may take where no limit is given


class Suite(Protocol):
    """One suite: which cells there are, and how they are shown."""

    def plan(self, job: BenchmarkJob) -> Sequence[Any]:
        """Its cells, each a `Spec` with its `size`, in the order in which they are measured.

        Raises:
            UserError: If something is asked for that is not known, or not there.
        """

    def known(
        self,
        spec: Any,  # noqa: ARG002
        done: Sequence[Outcome[Any, Any]],  # noqa: ARG002
    ) -> Outcome[Any, Any] | None:
        """How a cell ends that need not be run after those that have been; None for one that has to, as all have."""
        return None

    def label(self, spec: Any) -> str:
        """A cell in words."""

    def metric_name(self, spec: Any) -> str:
        """What the metrics of a cell begin with in a tracker, where its size is the step."""

    def summary(self, outcome: Outcome[Any, Any]) -> dict[str, float]:
        """What the tables show of a cell, by name; nothing where it was not measured."""

    def markdown(
        self, machine: Mapping[str, Any], outcomes: Sequence[Outcome[Any, Any]], job: BenchmarkJob
    ) -> str:
        """The tables of all cells so far."""

    def conclusions(
        self,
        machine: Mapping[str, Any],  # noqa: ARG002
        outcomes: Sequence[Outcome[Any, Any]],  # noqa: ARG002
        job: BenchmarkJob,  # noqa: ARG002
    ) -> dict[str, Any]:
        """What follows from all cells so far, for the raw numbers; nothing unless a suite says so."""
        return {}


def check_known(key: str, names: Collection[str] | None, known: Collection[str]) -> None:
    """Raise ConfigError for the first name that is not one of those that can be measured."""
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise ConfigError(f"{key}={name} is not measured: {fix}")


def threads_of(job: BenchmarkJob) -> int:
    """CPU threads of a cell in one process."""
    return torch.get_num_threads() if job.threads is None else job.threads


def device_of(job: BenchmarkJob) -> Device:
    """Where one process alone computes: cuda where a GPU is there and wanted, else cpu.

    Raises:
        ResourceError: If a GPU is wanted and none is there.
    """
    there = torch.cuda.is_available()
    if job.device == "cuda" and not there:
        raise ResourceError("device=cuda needs a GPU that torch can use, and there is none: set device=cpu")
    return "cuda" if there and job.device != "cpu" else "cpu"


def memory_limit(job: BenchmarkJob, device: str, processes: int, free: int) -> int | None:
    """Bytes that each process of a cell may take; None for all that a GPU has.

    Args:
        job: Its `memory_limit_gib` is of all processes of a cell together.
        device: Where the cell computes.
        processes: How many share the memory.
        free: Bytes that the machine has free.
    """
    if job.memory_limit_gib is not None:
        return int(job.memory_limit_gib * 2**30 / processes)
    return int(_FREE_SHARE * free / processes) if device == "cpu" else None
