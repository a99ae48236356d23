"""A suite is run: cell after cell, into tables and into the tracker."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from distmetric import __version__
from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.index.suite import IndexSuite
from distmetric.benchmarks.losses.suite import LossSuite
from distmetric.benchmarks.machine import describe_machine
from distmetric.benchmarks.suite import Suite, device_of, threads_of
from distmetric.benchmarks.table import to_dict
from distmetric.config.decode import leaves
from distmetric.config.jobs import BenchmarkJob
from distmetric.config.schema import MLflowConfig
from distmetric.progress import Progress
from distmetric.tracking.tracked_run import TrackedRun

SUITES: dict[str, Suite] = {"losses": LossSuite(), "index": IndexSuite()}


def run_benchmark(job: BenchmarkJob) -> dict[str, Any]:
    """Measure every cell of a suite, each in fresh processes, and write the tables anew after each of them.

    Args:
        job: What to measure, and how.

    Returns:
        Where the tables are, the run in the tracker, and how many cells ended how.

    Raises:
        UserError: If something is asked for that is not known, or a package or a GPU is missing.
    """
    started = time.monotonic()
    suite = SUITES[job.suite]
    specs = suite.plan(job)
    machine = describe_machine(device_of(job), threads_of(job))
    name = f"benchmark-{job.suite}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(job.out).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    as_markdown, as_json = out / f"{name}.md", out / f"{name}.json"
    tracked = _open_tracking(job, name, str(out))
    tracker = tracked.tracker()
    outcomes: list[Outcome[Any, Any]] = []
    try:
        with tracked.watch():
            for outcome in _measured(suite, specs, job.timeout_s):
                outcomes.append(outcome)
                as_markdown.write_text(suite.markdown(machine, outcomes, job), encoding="utf-8")
                raw = to_dict(machine, asdict(job), ((each, suite.summary(each)) for each in outcomes))
                as_json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
                tracker.log(outcome.spec.size, metrics(suite, outcome))
            tracker.flush()
            tracked.log_artifact(str(as_markdown))
            tracked.log_artifact(str(as_json))
    finally:
        tracker.close()
    return {
        "suite": job.suite,
        "markdown": str(as_markdown),
        "json": str(as_json),
        "run_id": tracked.run_id,
        "cells": len(outcomes),
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        "seconds": time.monotonic() - started,
    }


def metrics(suite: Suite, outcome: Outcome[Any, Any]) -> dict[str, float]:
    """What a tracker is to keep of a cell, by name; its N is the step."""
    name = suite.metric_name(outcome.spec)
    return {f"{name}/{key}": value for key, value in suite.summary(outcome).items()}


def _measured(suite: Suite, specs: Any, timeout_s: float) -> Iterator[Outcome[Any, Any]]:
    progress = Progress("cells measured", len(specs))
    done: list[Outcome[Any, Any]] = []
    for spec in specs:
        progress.update(0, f"now {suite.label(spec)}")
        outcome = suite.known(spec, done) or run_fresh(spec, timeout_s)
        if outcome.status == "failed":
            print(f"{suite.label(spec)} failed: {outcome.message}", file=sys.stderr)
        done.append(outcome)
        progress.update()
        yield outcome
    progress.close()


def _open_tracking(job: BenchmarkJob, name: str, out: str) -> TrackedRun:
    if not isinstance(job.tracking, MLflowConfig):
        return TrackedRun()
    return TrackedRun.create(
        job.tracking.uri,
        job.tracking.experiment,
        out,
        name,
        leaves(asdict(job)),
        {"distmetric.version": __version__},
    )
