"""The suite of the index: every method at every size, on the CPU and on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distmetric.benchmarks import memory
from distmetric.benchmarks.cell import Device
from distmetric.benchmarks.index import table
from distmetric.benchmarks.index.data import size_of
from distmetric.benchmarks.index.measure import IndexSpec
from distmetric.benchmarks.index.methods import METHODS
from distmetric.benchmarks.index.table import IndexOutcome
from distmetric.benchmarks.suite import Suite, check_known, device_of, memory_limit, threads_of
from distmetric.config.jobs import BenchmarkJob

_SIZES = (5_000, 20_000)


class IndexSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[IndexSpec]:
        """All cells in the order in which they are measured: by size, and those of the CPU before those of the GPU.

        Raises:
            ConfigError: If a method is not known.
            InputError: If the file of embeddings is not one.
            ResourceError: If a GPU is wanted and not there.
        """
        check_known("methods", job.methods, METHODS)
        found = device_of(job)
        devices: list[Device] = ["cpu", "cuda"] if job.device == "auto" and found == "cuda" else [found]
        free = memory.free_bytes()
        shapes = [(size, job.dim) for size in sorted(set(job.sizes or _SIZES))]
        if job.embeddings is not None:
            shapes = [size_of(job.embeddings)]
        return [
            IndexSpec(
                *(method, size, dim),
                per_class=job.per_class,
                spread=job.spread,
                embeddings=job.embeddings,
                k=min(job.k, size - 1),
                lists=job.lists,
                probes=job.probes,
                threads=threads_of(job),
                steps=job.steps,
                device=device,
                memory_limit_bytes=memory_limit(job, device, 1, free),
            )
            for size, dim in shapes
            for device in devices
            for method in job.methods or METHODS
            if device == "cpu" or METHODS[method].on_gpu
        ]

    def known(self, spec: IndexSpec, done: Sequence[IndexOutcome]) -> IndexOutcome | None:
        """What took too much memory or time for fewer rows takes too much for more."""
        for outcome in done:
            its = outcome.spec
            hopeless = outcome.status in ("out of memory", "timed out") and its.size <= spec.size
            if hopeless and (its.method, its.device) == (spec.method, spec.device):
                return replace(outcome, spec=spec)
        return None

    def label(self, spec: IndexSpec) -> str:
        """A cell in words."""
        return table.label(spec)

    def metric_name(self, spec: IndexSpec) -> str:
        """By method, device and threads."""
        return f"{spec.method}/{spec.device}_{spec.threads}"

    def summary(self, outcome: IndexOutcome) -> dict[str, float]:
        """Times, memory, recall, and what the arithmetic of scale says."""
        return table.shown(outcome)

    def markdown(
        self, machine: Mapping[str, Any], outcomes: Sequence[IndexOutcome], job: BenchmarkJob
    ) -> str:
        """One table."""
        return table.markdown(machine, outcomes, job)
