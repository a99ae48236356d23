"""What came out of a study: a number of every run and measure, their means and intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distmetric.evaluation.calibration import DistanceHistogram
from distmetric.evaluation.confidence import mean_interval
from distmetric.tracking.journal import read_history
from distmetric.training.evaluations import read_evaluations

POSITIVE_VARIANCE = "positive_distance_variance"


@dataclass(frozen=True)
class MeasuredRun:
    """One training run of a study, when it has ended.

    Args:
        arm: What it is one of.
        variant: Under what; empty where a study has no variants.
        seed: Its seed.
        status: As the run ended: finished or failed; waiting before that.
        run_dir: Its folder.
        values: By measure what was found; without those that it has not.
        error: Why it failed; empty otherwise.
    """

    arm: str
    variant: str
    seed: int
    status: str
    run_dir: str
    values: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True)
class Interval:
    """A mean over runs, and where the mean of more of them may lie (95 %).

    Args:
        mean: Of the runs there are.
        low: Lower end.
        high: Upper end.
        count: How many runs.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class StudyCell:
    """A measure of an arm under a variant.

    Args:
        arm: Which.
        variant: Under what.
        measure: Of what.
        value: Over seeds; None where no run has it.
        difference: From the baseline under the same variant, seed by seed; None of the baseline itself and without.
    """

    arm: str
    variant: str
    measure: str
    value: Interval | None
    difference: Interval | None


def measured(run_dir: str, measures: Sequence[str]) -> dict[str, float]:
    """What a run's folder says of some measures.

    Args:
        run_dir: Folder of the run.
        measures: Metrics of an evaluation, of which the last one counts; `positive_distance_variance` of its pairs; or
            names in the run's history, of which the mean over the last quarter of their points counts.

    Returns:
        By measure a finite number; measures that the run does not have are left out.
    """
    records = read_evaluations(run_dir)
    last: dict[str, Any] = records[-1] if records else {"metrics": {}}
    history = read_history(run_dir)
    found: dict[str, float | None] = {}
    for measure in measures:
        if measure == POSITIVE_VARIANCE:
            found[measure] = _positive_variance(last.get("histogram"))
        elif measure in last["metrics"]:
            found[measure] = last["metrics"][measure]
        elif points := [value for _, value in history.get(measure, [])]:
            tail = points[-max(1, len(points) // 4) :]
            found[measure] = math.fsum(tail) / len(tail)
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def study_cells(
    runs: Sequence[MeasuredRun], measures: Sequence[str], baseline: str | None = None
) -> list[StudyCell]:
    """Means over seeds and differences from the baseline.

    Differences are taken between runs of the same variant and seed, which share their batches and initial weights where
    the arms allow it; their interval is that of these differences, and often narrower than those of the arms say.

    Args:
        runs: Of the study.
        measures: In the order of the table.
        baseline: Arm that the others are compared with.

    Returns:
        A cell for each variant, arm and measure, in the order of the runs.
    """
    values = {(run.variant, run.arm, run.seed): run.values for run in runs}
    seeds = list(dict.fromkeys(run.seed for run in runs))
    cells = []
    for variant, arm in dict.fromkeys((run.variant, run.arm) for run in runs):
        for measure in measures:
            of = {seed: values.get((variant, arm, seed), {}).get(measure) for seed in seeds}
            own = [value for value in of.values() if value is not None]
            pairs = []
            if baseline is not None and arm != baseline:
                base = {seed: values.get((variant, baseline, seed), {}).get(measure) for seed in seeds}
                pairs = [
                    value - other
                    for value, other in zip(of.values(), base.values(), strict=True)
                    if value is not None and other is not None
                ]
            cells.append(StudyCell(arm, variant, measure, _interval(own), _interval(pairs)))
    return cells


def _interval(values: Sequence[float]) -> Interval | None:
    return Interval(*mean_interval(values), len(values)) if values else None


def _positive_variance(histogram: Mapping[str, Any] | None) -> float | None:
    """Variance of the distances between images of the same class, to the width of the histogram's bins."""
    if histogram is None:
        return None
    found = DistanceHistogram.from_dict(histogram)
    counts = found.positive.double()
    if counts.sum() == 0:
        return None
    centers = (found.edges[1:] + found.edges[:-1]) / 2
    mean = (counts * centers).sum() / counts.sum()
    return float((counts * torch.square(centers - mean)).sum() / counts.sum())
