"""The suite of the losses: both libraries in turn, at every size, alone and sharing a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distmetric.benchmarks import memory
from distmetric.benchmarks.cell import Device
from distmetric.benchmarks.losses import table
from distmetric.benchmarks.losses.cells import CELLS, Side, require_peer
from distmetric.benchmarks.losses.measure import LossSpec
from distmetric.benchmarks.losses.table import LossOutcome
from distmetric.benchmarks.suite import Suite, check_known, device_of, memory_limit, threads_of
from distmetric.benchmarks.table import summary
from distmetric.config.jobs import BenchmarkJob

_SIZES = (1024, 8192)


class LossSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[LossSpec]:
        """All cells in the order in which they are measured: by size, and the two libraries take turns at being first.

        Cells of several processes are on the CPU with one thread each, and so is one of one process that they are
        compared with.

        Raises:
            ConfigError: If a loss is not known.
            ResourceError: If pytorch-metric-learning or a GPU is wanted and not there.
        """
        check_known("losses", job.losses, CELLS)
        if job.peers:
            require_peer()
        sides: list[Side] = ["ours", "peer"] if job.peers else ["ours"]
        specs: list[LossSpec] = []
        free = memory.free_bytes()
        for size in sorted(set(job.sizes or _SIZES)):
            for (processes, threads, device), only_ranks in _shapes(job).items():
                for turn, loss in enumerate(job.losses or CELLS):
                    base = LossSpec(
                        *(loss, "ours", size),
                        processes=processes,
                        threads=threads,
                        steps=job.steps,
                        device=device,
                        memory_limit_bytes=memory_limit(job, device, processes, free),
                    )
                    spans = CELLS[loss].peer_spans_ranks or not only_ranks
                    found = [replace(base, side=side) for side in sides if side == "ours" or spans]
                    specs += reversed(found) if turn % 2 else found
        return specs

    def known(self, spec: LossSpec, done: Sequence[LossOutcome]) -> LossOutcome | None:
        """What a library cannot do with all threads, it cannot do with fewer or, repeating it all, on every rank."""
        if spec.side == "ours":
            return None
        key = (spec.side, spec.loss, spec.size, spec.device)
        for outcome in done:
            its = outcome.spec
            hopeless = outcome.status in ("out of memory", "timed out")
            if hopeless and (its.side, its.loss, its.size, its.device) == key:
                return replace(outcome, spec=spec)
        return None

    def label(self, spec: LossSpec) -> str:
        """A cell in words."""
        return table.label(spec)

    def metric_name(self, spec: LossSpec) -> str:
        """By loss, library, device, processes and threads."""
        return table.metric_name(spec)

    def summary(self, outcome: LossOutcome) -> dict[str, float]:
        """Time and memory."""
        return summary(outcome)

    def markdown(self, machine: Mapping[str, Any], outcomes: Sequence[LossOutcome], job: BenchmarkJob) -> str:
        """A table of one process alone, and one for every number of processes."""
        return table.markdown(machine, outcomes, job.peers)


def _shapes(job: BenchmarkJob) -> dict[tuple[int, int, Device], bool]:
    """Processes, threads and device of the cells, and whether they are only there for cells of several processes."""
    shapes: dict[tuple[int, int, Device], bool] = {}
    if 1 in job.processes:
        shapes[1, threads_of(job), device_of(job)] = False
    for processes in sorted(set(job.processes) - {1}):
        shapes.setdefault((1, 1, "cpu"), True)
        shapes[processes, 1, "cpu"] = True
    return shapes
