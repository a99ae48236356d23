"""A suite is run: cell after cell, or a training that is disturbed, into tables and into the tracker."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.data_path.suite import DataSuite
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.index.suite import IndexSuite
from distmetric.benchmarks.kernels.suite import KernelSuite
from distmetric.benchmarks.losses.suite import LossSuite
from distmetric.benchmarks.machine import describe_machine
from distmetric.benchmarks.report import open_report
from distmetric.benchmarks.scaling.suite import ScalingSuite
from distmetric.benchmarks.suite import Suite, device_of, threads_of
from distmetric.benchmarks.table import to_dict
from distmetric.benchmarks.training.suite import TrainingSuite
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ResourceError
from distmetric.progress import Progress

SUITES: dict[str, Suite] = {
    "losses": LossSuite(),
    "index": IndexSuite(),
    "data": DataSuite(),
    "kernels": KernelSuite(),
    "training": TrainingSuite(),
    "scaling": ScalingSuite(),
}
"""Suites that measure cells. The other one, soak, disturbs a training."""


def run_benchmark(job: BenchmarkJob) -> dict[str, Any]:
    """Run a suite and write its tables: of cells, each in fresh processes, anew after each of them.

    Args:
        job: What to measure, and how.

    Returns:
        Where the tables are, the run in the tracker, and in short what was found: of cells how many ended how, of a
        soak its faults and the equality at the end.

    Raises:
        UserError: If something is asked for that is not known, or a package or a GPU is missing.
    """
    started = time.monotonic()
    found = _soak(job) if job.suite == "soak" else _cells(job)
    return {"suite": job.suite, **found, "seconds": time.monotonic() - started}


def metrics(suite: Suite, outcome: Outcome[Any, Any]) -> dict[str, float]:
    """What a tracker is to keep of a cell, by name; its N is the step."""
    name = suite.metric_name(outcome.spec)
    return {f"{name}/{key}": value for key, value in suite.summary(outcome).items()}


def _cells(job: BenchmarkJob) -> dict[str, Any]:
    suite = SUITES[job.suite]
    specs = suite.plan(job)
    machine = describe_machine(device_of(job), threads_of(job))
    outcomes: list[Outcome[Any, Any]] = []
    with open_report(job) as report:
        for outcome in _measured(suite, specs, job.timeout_s):
            outcomes.append(outcome)
            raw = to_dict(machine, asdict(job), ((each, suite.summary(each)) for each in outcomes))
            raw |= suite.conclusions(machine, outcomes, job)
            report.write(suite.markdown(machine, outcomes, job), raw)
            report.tracker.log(outcome.spec.size, metrics(suite, outcome))
    statuses = dict(Counter(outcome.status for outcome in outcomes))
    return {**report.to_dict(), "cells": len(outcomes), "statuses": statuses}


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


def _soak(job: BenchmarkJob) -> dict[str, Any]:
    if find_spec("psutil") is None:
        raise ResourceError("suite=soak needs the package psutil: pip install 'distmetric[bench]'")
    from distmetric.benchmarks.soak.plan import plan
    from distmetric.benchmarks.soak.suite import run_soak
    from distmetric.benchmarks.soak.table import markdown, summary

    faults = plan(job.seed, job.faults_per_minute, job.faults)
    machine = describe_machine("cpu", 1) | {"ray": version("ray")}
    with open_report(job) as report:
        result = run_soak(faults, job.seconds, report.folder / report.name)
        raw = {"machine": machine, "settings": asdict(job), "result": result.to_dict()}
        report.write(markdown(machine, result), raw)
        report.tracker.log(result.steps, summary(result))
    return {**report.to_dict(), **summary(result)}
