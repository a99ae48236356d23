"""The tables of a soak, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.benchmarks.soak.plan import KINDS
from distmetric.benchmarks.soak.suite import CHECKPOINT_EVERY, ROUND_STEPS, SoakResult
from distmetric.benchmarks.soak.training import Hit
from distmetric.benchmarks.table import document, duration, header, table

_TITLES = (
    "fault",
    "injected",
    "survived",
    "steps lost, mean",
    "steps lost, most",
    "until further than before, mean",
    "most",
)


def markdown(machine: Mapping[str, Any], result: SoakResult) -> str:
    """What was injected and what it has cost, the final equality, and what the faults are."""
    kinds = [kind for kind in KINDS if any(hit.kind == kind for hit in result.hits)]
    lines = [_line(f"`{kind}`", [hit for hit in result.hits if hit.kind == kind]) for kind in kinds]
    if result.hits:
        lines.append(_line("all", result.hits))
    parts = [
        header(machine, ("ray",)),
        _summary(result),
        table(_TITLES, lines),
        table(("at the end", ""), _end(result)),
    ]
    return document(parts, [*(f"- `{kind}`: {KINDS[kind]}." for kind in kinds), *_notes(result)])


def summary(result: SoakResult) -> dict[str, float]:
    """The same in a few numbers."""
    return {
        "faults_injected": len(result.hits),
        "faults_survived": sum(hit.survived for hit in result.hits),
        "steps": result.steps,
        "steps_lost": sum(hit.steps_lost for hit in result.hits),
        "equal_state": float(not result.different),
        "equal_history": float(result.history.is_none),
        "corrupted_checkpoints": len(result.corrupted),
        "lost_records": result.history.lost,
    }


def _line(title: str, hits: Sequence[Hit]) -> list[str]:
    lost, seconds = ([getattr(hit, name) for hit in hits] for name in ("steps_lost", "seconds"))
    survived = sum(hit.survived for hit in hits)
    return [
        *(title, str(len(hits)), str(survived), f"{sum(lost) / len(hits):.1f}", str(max(lost))),
        *(duration(sum(seconds) / len(hits)), duration(max(seconds))),
    ]


def _summary(result: SoakResult) -> str:
    return (
        f"Two workers, hard neighbors from index=stream, proxies and a memory, MLflow; {duration(result.seconds)} of "
        f"training with faults, {result.steps:,} steps; the driver was started {result.attempts} times. A checkpoint "
        f"every {CHECKPOINT_EVERY} steps; steps lost are known to within a round of {ROUND_STEPS} steps."
    )


def _end(result: SoakResult) -> list[list[str]]:
    history = result.history
    return [
        ["final state equal to that of an uninterrupted run, bit for bit", _yes(not result.different)],
        ["tensors and numbers of it that were compared", f"{result.tensors:,}"],
        ["history equal", _yes(history.is_none)],
        ["records of it that were compared", f"{history.compared:,}"],
        ["records lost / different / too many", f"{history.lost} / {history.different} / {history.added}"],
        ["corrupted checkpoints", str(len(result.corrupted))],
        ["drivers that ended unasked", str(len(result.mishaps))],
        ["pushes to the index dropped", f"{result.dropped_pushes:,}"],
        ["time of the uninterrupted run", duration(result.reference_seconds)],
    ]


def _notes(result: SoakResult) -> list[str]:
    notes = [
        f"- `{hit.kind}` at step {hit.step} was not survived: {hit.detail}"
        for hit in result.hits
        if not hit.survived
    ]
    notes += [f"- {mishap}" for mishap in [*result.mishaps, *result.corrupted]]
    if result.different:
        notes.append(f"- Not equal: {', '.join(result.different[:5])} ({len(result.different)} in all)")
    if result.history.example:
        notes.append(f"- In the history: {result.history.example}")
    return notes


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "**no**"
