"""The suite of scaling: steps by processes and images, rebuilds of the index by rows, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.benchmarks.scaling import table
from distmetric.benchmarks.scaling.measure import ScalingSpec
from distmetric.benchmarks.scaling.table import ScalingOutcome
from distmetric.benchmarks.suite import Suite
from distmetric.config.jobs import BenchmarkJob

_SIZES = (128, 256, 512)
_ROWS_PER_IMAGE = (8, 16, 32)  # of the index, in those of the largest batch of a process


class ScalingSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[ScalingSpec]:
        """All cells: steps by number of processes and images of each, then rebuilds of the index."""
        sizes = sorted(set(job.sizes or _SIZES))
        steps = [
            ScalingSpec(*("step", size), processes=processes, steps=job.steps)
            for processes in sorted(set(job.processes))
            for size in sizes
        ]
        return [
            *steps,
            *(ScalingSpec(*("build", times * sizes[-1]), steps=job.steps) for times in _ROWS_PER_IMAGE),
        ]

    def label(self, spec: ScalingSpec) -> str:
        """A cell in words."""
        return table.label(spec)

    def metric_name(self, spec: ScalingSpec) -> str:
        """By kind and processes."""
        return f"{spec.kind}/{spec.processes}"

    def summary(self, outcome: ScalingOutcome) -> dict[str, float]:
        """Times and memory."""
        return table.summary(outcome)

    def markdown(
        self, machine: Mapping[str, Any], outcomes: Sequence[ScalingOutcome], job: BenchmarkJob
    ) -> str:
        """What was measured, fitted and predicted."""
        return table.markdown(machine, outcomes, job.cluster)

    def conclusions(
        self, machine: Mapping[str, Any], outcomes: Sequence[ScalingOutcome], job: BenchmarkJob
    ) -> dict[str, Any]:
        """The fitted costs, their errors and the predictions."""
        return table.conclusions(outcomes, machine["cores"], job.cluster)
