"""What a study leaves to read: its table, its numbers, its figure."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from distmetric import __version__
from distmetric.config.compose import to_override
from distmetric.config.jobs import StudyJob
from distmetric.inference.study_results import MeasuredRun, StudyCell, study_cells
from distmetric.reports.study import Entry, study_figure, study_tables
from distmetric.secrets import masked

MARKDOWN, NUMBERS, FIGURE = "study.md", "study.json", "study.svg"


def study_pages(job: StudyJob, runs: Sequence[MeasuredRun], seconds: float) -> dict[str, str]:
    """The files of a study.

    Args:
        job: The study.
        runs: Its training runs, those that failed or were not trained yet among them.
        seconds: How long it took.

    Returns:
        By name of the file its contents.
    """
    study = job.study
    cells = study_cells(runs, study.measures, study.baseline)
    entries = [_entry(cell) for cell in cells]
    figure = io.StringIO()
    study_figure(entries).savefig(figure, format="svg")
    numbers: Mapping[str, Any] = {
        "study": asdict(study),
        "train": job.train,
        "command": _command(job),
        "version": __version__,
        "torch": version("torch"),
        "cpus": os.cpu_count(),
        "seconds": seconds,
        "runs": [asdict(run) for run in runs],
        "cells": [_plain(cell) for cell in cells],
    }
    return {
        MARKDOWN: masked(_markdown(job, runs, entries)),
        NUMBERS: json.dumps(masked(dict(numbers)), indent=1, allow_nan=False),
        FIGURE: figure.getvalue(),
    }


def _markdown(job: StudyJob, runs: Sequence[MeasuredRun], entries: Sequence[Entry]) -> str:
    study = job.study
    parts = [
        f"# {study.question}",
        f"`{_command(job)}`",
        f"Seeds {', '.join(map(str, study.seeds))}; the last evaluation of each run, mean and 95 % interval (Student's)"
        " over the seeds, differences seed by seed. "
        f"distmetric {__version__}, torch {version('torch')}, {os.cpu_count()} CPUs.",
        study_tables(entries, len(study.seeds), study.baseline),
    ]
    if failed := [f"- {_named(run)}: {run.error}" for run in runs if run.status == "failed"]:
        parts.append("Failed:\n\n" + "\n".join(failed))
    return "\n\n".join(parts).rstrip() + "\n"


def _named(run: MeasuredRun) -> str:
    return ", ".join(part for part in (run.arm, run.variant, f"seed {run.seed}") if part)


def _command(job: StudyJob) -> str:
    given = [f'"{to_override("train", job.train)}"'] if job.train else []
    return " ".join(["python jobs/study.py", f"study={job.study.name}", *given])


def _plain(cell: StudyCell) -> dict[str, Any]:
    """As JSON has it, which knows no infinity: an interval of a single run has no ends."""
    values = asdict(cell)
    for interval in filter(None, (values["value"], values["difference"])):
        for end in ("low", "high"):
            interval[end] = interval[end] if math.isfinite(interval[end]) else None
    return values


def _entry(cell: StudyCell) -> Entry:
    entry = Entry(cell.arm, cell.variant, cell.measure, None)
    if (value := cell.value) is not None:
        entry = replace(entry, mean=value.mean, low=value.low, high=value.high, count=value.count)
    if (found := cell.difference) is not None:
        entry = replace(entry, difference=(found.mean, found.low, found.high))
    return entry
