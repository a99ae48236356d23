"""The suite of the kernels: kernels and blocks in turn, for the work and the sizes that have a goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.kernels.measure import MATMULS, KernelMeasurement, KernelSpec, Precision, Way, Work
from distmetric.benchmarks.suite import Suite, device_of, memory_limit, threads_of
from distmetric.benchmarks.table import NONE, busy, document, duration, failures, header, summary, table
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ResourceError
from distmetric.functional.fused_rows import has_triton

_SIZES: dict[Work, int] = {"batch_hard": 131_072, "lifted": 65_536, "supcon": 65_536}
_DIMS = (128, 512)
_GOALS: dict[Work, str] = {
    "batch_hard": "60 %",
    "lifted": "40 % in 2048 MiB",
    "supcon": "40 % in 2048 MiB",
}
_METHOD = (
    "Mining without gradient (batch_hard, one matrix multiplication), or forward and backward of a loss from a leaf of "
    "embeddings (three), over N anchors and as many columns of length one, clustered, four to a class. `share` is the "
    "time of so many bare matmuls N x N x D of the same type, each measured right before its step, over that of the "
    "step: what is reached of the rate of the matmul. `MiB` is what torch allocated at most beyond embeddings and "
    "matmul. bfloat16 embeddings have a goal."
)

KernelOutcome = Outcome[KernelSpec, KernelMeasurement]


class KernelSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[KernelSpec]:
        """All cells, kernels before blocks.

        Raises:
            ResourceError: If there is no GPU, or no Triton.
        """
        if device_of(job) != "cuda":
            raise ResourceError("suite=kernels needs a GPU, and there is none or device=cpu: run it on one")
        if not has_triton():
            raise ResourceError("suite=kernels needs triton, which is not installed: pip install triton")
        limit = memory_limit(job, "cuda", 1, free=0)  # of a GPU, what the host has free says nothing
        precisions: tuple[Precision, ...] = get_args(Precision)
        ways: tuple[Way, ...] = get_args(Way)
        return [
            KernelSpec(
                *(work, way, size, dim, precision),
                threads=threads_of(job),
                steps=job.steps,
                device="cuda",
                memory_limit_bytes=limit,
            )
            for work in MATMULS
            for size in sorted(set(job.sizes or [_SIZES[work]]))
            for dim in _DIMS
            for precision in precisions
            for way in ways
        ]

    def label(self, spec: KernelSpec) -> str:
        """A cell in words."""
        return f"{spec.work} by {spec.way}, N = {spec.size}, D = {spec.dim}, {spec.precision}"

    def metric_name(self, spec: KernelSpec) -> str:
        """By work, way, D and type."""
        return f"{spec.work}/{spec.way}_{spec.dim}_{spec.precision}"

    def summary(self, outcome: KernelOutcome) -> dict[str, float]:
        """Time, memory, and the share of the matmul's rate."""
        found = summary(outcome)
        return found | ({"matmul_share": _share(outcome)} if found else {})

    def markdown(
        self,
        machine: Mapping[str, Any],
        outcomes: Sequence[KernelOutcome],
        job: BenchmarkJob,  # noqa: ARG002
    ) -> str:
        """One table."""
        titles = ["work", "N", "D", "type", "by", "time", "share", "MiB", "goal"]
        parts = [
            "# Rows of distances on a GPU",
            header(machine),
            _METHOD,
            table(titles, map(_line, outcomes)),
        ]
        return document(parts, [*busy(machine, outcomes), *failures(outcomes, self.label)])


def _share(outcome: KernelOutcome) -> float:
    return MATMULS[outcome.spec.work] / outcome.times_matmul


def _line(outcome: KernelOutcome) -> list[str]:
    spec = outcome.spec
    has_goal = spec.precision == "bfloat16" and spec.way == "kernels" and spec.size == _SIZES[spec.work]
    goal = _GOALS[spec.work] if has_goal else NONE
    line = [spec.work, str(spec.size), str(spec.dim), spec.precision, spec.way]
    if outcome.status != "ok":
        return [*line, outcome.status, NONE, NONE, goal]
    shown = duration(outcome.seconds), f"{100 * _share(outcome):.0f} %", f"{outcome.peak_bytes / 2**20:.0f}"
    return [*line, *shown, goal]
