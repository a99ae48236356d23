"""What the tables of all suites have in common, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distmetric.benchmarks.cell import Outcome

NONE = "–"
"""What stands in a cell of a table where there is nothing."""


def header(machine: Mapping[str, Any], packages: Sequence[str] = ()) -> str:
    """The line that says what was measured on, when, and how.

    Args:
        machine: As `describe_machine` gives it.
        packages: Whose versions it names beside the usual ones.
    """
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "distmetric", *packages))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, threads used: {machine['threads']}{gpu}; {machine['system']}; "
        f"{versions}; {machine['date']}; commit {machine['commit']}; `{machine['command']}`"
    )


def table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *lines])


def failures(outcomes: Iterable[Outcome[Any, Any]], label: Callable[[Any], str]) -> list[str]:
    """A note on each cell that has failed, with what was said."""
    return [f"- {label(each.spec)} failed: {each.message}" for each in outcomes if each.status == "failed"]


def document(parts: Iterable[str], notes: Sequence[str]) -> str:
    """Paragraphs, and a list of notes below them where there are some."""
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def duration(seconds: float) -> str:
    """Seconds to three digits."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.0f} s"


def summary(outcome: Outcome[Any, Any]) -> dict[str, float]:
    """What the tables of all suites show of a cell, by name; nothing where it was not measured."""
    if outcome.status != "ok":
        return {}
    return {
        "median_seconds": outcome.seconds,
        "times_matmul": outcome.times_matmul,
        "peak_mib": outcome.peak_bytes / 2**20,
    }


def busy(machine: Mapping[str, Any], outcomes: Sequence[Outcome[Any, Any]]) -> list[str]:
    """A warning where more was running than a benchmark that is alone can explain."""
    loads = [each.load for each in outcomes if each.load is not None]
    too_many = [load for load in loads if load > machine["cores"] + 1]
    if not too_many:
        return []
    return [
        f"- The machine did other work too: its load average was up to {max(too_many):.1f}, on {machine['cores']} "
        f"cores, before {len(too_many)} of {len(loads)} cells. Ratios say more than times."
    ]


def to_dict(
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    cells: Iterable[tuple[Outcome[Any, Any], Mapping[str, float]]],
) -> dict[str, Any]:
    """Everything, raw, and what the tables show of it, as plain containers.

    Args:
        machine: As `describe_machine` gives it.
        settings: Of the job.
        cells: Outcomes with their summaries.
    """
    return {
        "machine": dict(machine),
        "settings": dict(settings),
        "cells": [asdict(outcome) | dict(shown) for outcome, shown in cells],
    }
