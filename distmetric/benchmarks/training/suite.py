"""The suite of trainings: our loop beside a bare one, what tracking and index cost, and how long a start takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from distmetric.benchmarks.suite import Suite, check_known
from distmetric.benchmarks.training import table
from distmetric.benchmarks.training.measure import MODELS, Model, TrainingSpec, What
from distmetric.benchmarks.training.table import TrainingOutcome
from distmetric.config.jobs import BenchmarkJob

_SIZES = (256,)
_AUGMENTS = ("none", "affine")


class TrainingSuite(Suite):
    """Implements `Suite`."""

    def plan(self, job: BenchmarkJob) -> list[TrainingSpec]:
        """All cells: both loops by model, size, number of processes and augmentation, then what is beside a step.

        Raises:
            ConfigError: If a model is not known.
        """
        check_known("models", job.models, MODELS)
        models: list[Model] = [name for name in get_args(Model) if job.models is None or name in job.models]
        sizes = sorted(set(job.sizes or _SIZES))
        specs = [
            self._spec(job, "beside", model, size, augment, processes)
            for size in sizes
            for model in models
            for processes in sorted(set(job.processes))
            for augment in _AUGMENTS
        ]
        specs += [self._spec(job, "tracking", model, sizes[0]) for model in models]
        if job.startup:
            specs += [self._spec(job, what, "conv", sizes[0]) for what in ("index", "startup")]
        return specs

    def label(self, spec: TrainingSpec) -> str:
        """A cell in words."""
        return table.label(spec)

    def metric_name(self, spec: TrainingSpec) -> str:
        """By what is measured, model, augmentation and processes."""
        return f"{spec.what}/{spec.model}_{spec.augment}_{spec.processes}"

    def summary(self, outcome: TrainingOutcome) -> dict[str, float]:
        """Times, and what follows from them."""
        return table.summary(outcome)

    def markdown(
        self,
        machine: Mapping[str, Any],
        outcomes: Sequence[TrainingOutcome],
        job: BenchmarkJob,  # noqa: ARG002
    ) -> str:
        """A table of the two loops, one of what is beside a step, one of the start."""
        return table.markdown(machine, outcomes)

    def _spec(
        self,
        job: BenchmarkJob,
        what: What,
        model: Model,
        size: int,
        augment: str = "affine",
        processes: int = 1,
    ) -> TrainingSpec:
        # One thread each, as Ray's workers have them.
        return TrainingSpec(*(what, model, augment, size), processes=processes, steps=job.steps)
