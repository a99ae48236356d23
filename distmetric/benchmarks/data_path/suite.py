"""The suite of the data path: every set of images, on one core and on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.benchmarks.data_path import table
from distmetric.benchmarks.data_path.measure import DataSpec
from distmetric.benchmarks.data_path.sets import SETS
from distmetric.benchmarks.data_path.table import DataOutcome
from distmetric.benchmarks.suite import Suite, check_known, threads_of
from distmetric.config.jobs import BenchmarkJob

_SIZES = (256,)


class DataSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[DataSpec]:
        """All cells: by size of the batch, each set of images on one core and on all that are wanted.

        Raises:
            ConfigError: If a set is not known.
        """
        check_known("images", job.images, SETS)
        return [
            DataSpec(images=images, size=size, threads=threads, steps=job.steps, prefetch=job.prefetch)
            for size in sorted(set(job.sizes or _SIZES))
            for images in job.images or SETS
            for threads in sorted({1, threads_of(job)})
        ]

    def label(self, spec: DataSpec) -> str:
        """A cell in words."""
        return table.label(spec)

    def metric_name(self, spec: DataSpec) -> str:
        """By images and cores."""
        return f"{spec.images}/{spec.threads}_cores"

    def summary(self, outcome: DataOutcome) -> dict[str, float]:
        """Images per second, of the loader and of its parts alone."""
        return table.shown(outcome)

    def markdown(
        self,
        machine: Mapping[str, Any],
        outcomes: Sequence[DataOutcome],
        job: BenchmarkJob,  # noqa: ARG002
    ) -> str:
        """One table."""
        return table.markdown(machine, outcomes)
