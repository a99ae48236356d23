"""What was measured of the trainings, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.table import NONE, busy, document, duration, failures, header, table
from distmetric.benchmarks.training.measure import TrainingMeasurement, TrainingSpec

GOAL = 0.93
"""Least throughput, as a fraction of the bare loop's."""
SHARE_GOAL = 0.02
"""Most that tracking, and pushing to the index, may add to a step."""

_BESIDE = (
    "`ours` is the loop of `jobs/train.py` with all that a worker does in a step: loader, augmentation, gather, loss, "
    "checks, measurements and their history; `bare` is a PyTorch loop with the same model, weights, batches and loss, "
    "whose float images wait in memory. They take turns of ten steps in one process; times are medians of a step, "
    f"`throughput` the median of bare / ours of neighboring turns (the goal is {GOAL} or more), once by the clock on "
    "the wall and once by CPU time of all threads, which other work on the machine disturbs less. `loss` is the "
    "largest relative difference between the two loops' losses in the first ten steps. One thread per process; N is "
    "the batch of all processes together."
)
_TOLD = (
    "Beside the step, as shares of it (the goal is at most "
    f"{SHARE_GOAL:.0%} each): `noted` is what the training's own thread spends in the tracker, `written` and "
    "`delivered` the CPU time of the threads that write the history and bring it to MLflow (with jobs/train.py in the "
    "driver's process), and `pushed` is the phase in which a step hands its embeddings to the index, of a run of "
    "jobs/train.py with hard neighbors."
)
_STARTUP = (
    "From the command `jobs/train.py experiment=quickstart` to the end of the first step, with two workers and a Ray "
    "of its own; means of the starts after a first one."
)
_PARTS = {
    "python": "Python, and what it needs to read settings",
    "settings": "settings composed and checked",
    "imports": "PyTorch, Ray and the rest imported",
    "checks": "data opened, everything checked that can be",
    "ray": "Ray started",
    "tracking": "run folder and MLflow opened",
    "index": "index started, where there is one",
    "workers": "workers started and joined",
    "worker": "parts of a worker built, images decoded",
    "first_step": "first step",
}

TrainingOutcome = Outcome[TrainingSpec, TrainingMeasurement]


def label(spec: TrainingSpec) -> str:
    """A cell in words."""
    many = f", {spec.processes} processes" if spec.processes > 1 else ""
    of = f"{spec.model}, N = {spec.size}, augment={spec.augment}{many}"
    kinds = {
        "beside": f"ours and bare: {of}",
        "tracking": f"tracking: {of}",
        "index": f"pushes to the index: N = {spec.size}",
        "startup": "start of jobs/train.py",
    }
    return kinds[spec.what]


def summary(outcome: TrainingOutcome) -> dict[str, float]:
    """What the tables show of a cell, by name; nothing where it was not measured."""
    if outcome.status != "ok":
        return {}
    found, spec = {"median_seconds": outcome.seconds}, outcome.spec
    if spec.what == "beside":
        found |= {
            "bare_median_seconds": median(_slowest(outcome, "bare_seconds")),
            "throughput": _ratio(outcome, "bare_seconds", "seconds"),
            "cpu_throughput": _ratio(outcome, "bare_cpu_seconds", "cpu_seconds"),
            "loss_difference": max(rank.loss_difference for rank in outcome.ranks),
        }
    elif spec.what == "tracking":
        found |= {f"{name}_share": value / outcome.seconds for name, value in outcome.ranks[0].parts.items()}
    elif spec.what == "index":
        found["pushed_share"] = outcome.ranks[0].parts["index"] / outcome.seconds
    else:
        found |= {f"{name}_seconds": value for name, value in outcome.ranks[0].parts.items()}
        found["cpu_seconds"] = median(outcome.ranks[0].cpu_seconds)
    return found


def markdown(machine: Mapping[str, Any], outcomes: Sequence[TrainingOutcome]) -> str:
    """The tables, below a line that says what they were measured on.

    Args:
        machine: As `describe_machine` gives it.
        outcomes: Of all cells so far.
    """
    parts = ["# Training: ours beside a bare loop", header(machine)]
    by_kind = {
        kind: [each for each in outcomes if each.spec.what == kind]
        for kind in ("beside", "tracking", "index", "startup")
    }
    if found := by_kind["beside"]:
        titles = ["model", "N", "augment", "processes", "ours", "bare", "throughput", "by CPU time", "loss"]
        parts += [_BESIDE, table(titles, map(_beside_row, found))]
    if found := [*by_kind["tracking"], *by_kind["index"]]:
        titles = ["what", "step", "noted", "written", "delivered", "pushed"]
        parts += ["## Beside the step", _TOLD, table(titles, map(_told_row, found))]
    if found := by_kind["startup"]:
        parts += ["## Start", _STARTUP, *map(_startup_table, found)]
    failed = failures(outcomes, label)
    return document(parts, [*busy(machine, outcomes), *failed])


def _slowest(outcome: TrainingOutcome, name: str) -> list[float]:
    """Of each block, the time of the process that took longest."""
    return [max(block) for block in zip(*(getattr(rank, name) for rank in outcome.ranks), strict=True)]


def _ratio(outcome: TrainingOutcome, of: str, to: str) -> float:
    pairs = zip(_slowest(outcome, of), _slowest(outcome, to), strict=True)
    return median(first / second for first, second in pairs)


def _beside_row(outcome: TrainingOutcome) -> list[str]:
    spec, found = outcome.spec, summary(outcome)
    names = [spec.model, str(spec.size), spec.augment, str(spec.processes)]
    if not found:
        return [*names, outcome.status, *[NONE] * 4]
    return [
        *names,
        duration(found["median_seconds"]),
        duration(found["bare_median_seconds"]),
        f"{found['throughput']:.3f}",
        f"{found['cpu_throughput']:.3f}",
        f"{found['loss_difference']:.1g}",
    ]


def _told_row(outcome: TrainingOutcome) -> list[str]:
    spec, found = outcome.spec, summary(outcome)
    name = "tracking, " + spec.model if spec.what == "tracking" else "index, conv, 2 workers"
    if not found:
        return [name, outcome.status, *[NONE] * 4]
    shares = (found.get(f"{share}_share") for share in ("noted", "written", "delivered", "pushed"))
    return [
        name,
        duration(found["median_seconds"]),
        *(NONE if share is None else f"{share:.2%}" for share in shares),
    ]


def _startup_table(outcome: TrainingOutcome) -> str:
    if outcome.status != "ok":
        return f"{outcome.status}: {outcome.message}"
    (measured,) = outcome.ranks
    lines = [[_PARTS.get(name, name), duration(seconds)] for name, seconds in measured.parts.items()]
    lines.append([f"all, median of {len(measured.seconds)}", duration(median(measured.seconds))])
    lines.append(["CPU time of all processes until then", duration(median(measured.cpu_seconds))])
    return table(["what", "time"], lines)
