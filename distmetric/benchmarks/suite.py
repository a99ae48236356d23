"""A suite of measurements: cell after cell, both libraries in turn, into tables and into the tracker."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from distmetric import __version__
from distmetric.benchmarks import table
from distmetric.benchmarks.fresh_process import Outcome, run_fresh
from distmetric.benchmarks.losses import CELLS, Side, require_peer
from distmetric.benchmarks.machine import describe_machine
from distmetric.benchmarks.measure import Spec
from distmetric.benchmarks.memory import free_bytes
from distmetric.config.decode import leaves
from distmetric.config.jobs import BenchmarkJob
from distmetric.config.schema import MLflowConfig
from distmetric.errors import ConfigError, ResourceError
from distmetric.progress import Progress
from distmetric.tracking.tracked_run import TrackedRun

_FREE_SHARE = 0.8  # of the free memory, that a cell may take where no limit is given


def run_benchmark(job: BenchmarkJob) -> dict[str, Any]:
    """Measure every cell of a suite, each in fresh processes, and write the tables anew after each of them.

    Args:
        job: What to measure, and how.

    Returns:
        Where the tables are, the run in the tracker, and how many cells ended how.

    Raises:
        UserError: If a loss is not known, or a package or a GPU is missing.
    """
    started = time.monotonic()
    specs = plan(job)
    machine = describe_machine(_device(job), _threads(job))
    name = f"benchmark-{job.suite}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(job.out).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    as_markdown, as_json = out / f"{name}.md", out / f"{name}.json"
    tracked = _open_tracking(job, name, str(out))
    tracker = tracked.tracker()
    outcomes: list[Outcome] = []
    try:
        with tracked.watch():
            for outcome in _measured(specs, job.timeout_s):
                outcomes.append(outcome)
                as_markdown.write_text(table.markdown(machine, outcomes, job.peers), encoding="utf-8")
                raw = table.to_dict(machine, asdict(job), outcomes)
                as_json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
                tracker.log(outcome.spec.size, table.metrics(outcome))
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


def plan(job: BenchmarkJob) -> list[Spec]:
    """All cells in the order in which they are measured: by size, and the two libraries take turns at being first.

    Cells of several processes are on the CPU with one thread each, and so is one of one process that they are
    compared with.

    Raises:
        ConfigError: If a loss is not known.
        ResourceError: If pytorch-metric-learning or a GPU is wanted and not there.
    """
    for loss in job.losses or ():
        if loss not in CELLS:
            near = difflib.get_close_matches(loss, CELLS, n=1)
            known = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CELLS)}"
            raise ConfigError(f"losses={loss} is not measured: {known}")
    if job.peers:
        require_peer()
    sides: list[Side] = ["ours", "peer"] if job.peers else ["ours"]
    specs: list[Spec] = []
    free = free_bytes()
    for size in sorted(set(job.sizes)):
        for (processes, threads, device), only_ranks in _shapes(job).items():
            for turn, loss in enumerate(job.losses or CELLS):
                base = Spec(loss, "ours", size, processes, threads, job.steps, device)
                base = replace(base, memory_limit_bytes=_memory_limit(job, base, free))
                spans = CELLS[loss].peer_spans_ranks or not only_ranks
                found = [replace(base, side=side) for side in sides if side == "ours" or spans]
                specs += reversed(found) if turn % 2 else found
    return specs


def _shapes(job: BenchmarkJob) -> dict[tuple[int, int, str], bool]:
    """Processes, threads and device of the cells, and whether they are only there for cells of several processes."""
    shapes: dict[tuple[int, int, str], bool] = {}
    if 1 in job.processes:
        shapes[1, _threads(job), _device(job)] = False
    for processes in sorted(set(job.processes) - {1}):
        shapes.setdefault((1, 1, "cpu"), True)
        shapes[processes, 1, "cpu"] = True
    return shapes


def _threads(job: BenchmarkJob) -> int:
    return torch.get_num_threads() if job.threads is None else job.threads


def _device(job: BenchmarkJob) -> str:
    there = torch.cuda.is_available()
    if job.device == "cuda" and not there:
        raise ResourceError("device=cuda needs a GPU that torch can use, and there is none: set device=cpu")
    return "cuda" if there and job.device != "cpu" else "cpu"


def _memory_limit(job: BenchmarkJob, spec: Spec, free: int) -> int | None:
    if job.memory_limit_gib is not None:
        return int(job.memory_limit_gib * 2**30 / spec.processes)
    return int(_FREE_SHARE * free / spec.processes) if spec.device == "cpu" else None


def _measured(specs: Sequence[Spec], timeout_s: float) -> Iterator[Outcome]:
    progress = Progress("cells measured", len(specs))
    # What a library cannot do with all threads, it cannot do with fewer of them or, repeating it all, on every rank.
    hopeless: dict[tuple[str, int, str], Outcome] = {}
    for spec in specs:
        progress.update(0, f"now {table.label(spec)}")
        key = (spec.loss, spec.size, spec.device)
        if spec.side == "peer" and key in hopeless:
            outcome = replace(hopeless[key], spec=spec)
        else:
            outcome = run_fresh(spec, timeout_s)
        if spec.side == "peer" and outcome.status in ("out of memory", "timed out"):
            hopeless[key] = outcome
        if outcome.status == "failed":
            print(f"{table.label(spec)} failed: {outcome.message}", file=sys.stderr)
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
