"""Reports of runs from their folders alone: one run by itself, or several side by side."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distmetric.config.decode import leaves
from distmetric.config.jobs import ReportJob
from distmetric.errors import InputError
from distmetric.inference.run_report import collect, publish
from distmetric.locations import absolute, writing
from distmetric.reports.comparison import ComparedRun, write_comparison
from distmetric.reports.run_report import RunReport
from distmetric.secrets import masked
from distmetric.tracking.address import tracking_uri
from distmetric.tracking.delivery import read_delivered
from distmetric.tracking.server import ServerError
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import Checkpoint, CheckpointStore
from distmetric.training.evaluations import read_evaluations
from distmetric.training.notices import read_notices
from distmetric.training.run_folder import RunFolder, read_run

log = logging.getLogger(__name__)

_ENDED = {"FAILED": "failed", "KILLED": "was interrupted"}


@dataclass(frozen=True)
class _Standing:
    """How a run stands, as far as its folder says.

    Args:
        folder: With the configuration of its newest checkpoint, which a resumption may have changed.
        best: Its best checkpoint; None without any.
        done: Steps of the newest checkpoint, or of what is logged where that is more.
        tracked: Its history.
        status: In a few words.
    """

    folder: RunFolder
    best: Checkpoint | None
    done: int
    tracked: TrackedRun
    status: str


def make_report(job: ReportJob) -> dict[str, Any]:
    """Write the report of one run, or the comparison of several.

    Returns:
        out, and of each run name, run_dir, status, step of the best checkpoint, and metrics.

    Raises:
        InputError: If a folder is not that of a run, or a run is named twice.
    """
    locations = [absolute(run) for run in job.runs]
    if len(set(locations)) < len(locations):
        raise InputError(f"runs={job.runs} names a folder twice: name each once")
    found = [_standing(location) for location in locations]
    out = f"{locations[0]}/report.html" if job.out is None else absolute(job.out)
    if len(found) == 1:
        _report_one(found[0], out, job)
    else:
        _compare(found, out)
    return {"out": out, "runs": [_told(one) for one in found]}


def _told(found: _Standing) -> dict[str, Any]:
    best = found.best
    return {
        "name": found.folder.name,
        "run_dir": found.folder.location,
        "status": found.status,
        "step": None if best is None else best.step,
        "metrics": {} if best is None else dict(best.metrics),
    }


def _report_one(found: _Standing, out: str, job: ReportJob) -> None:
    notes = [] if found.status == "finished" else [f"This run {found.status}."]
    trusted = job.allow_custom_targets
    report = collect(found.folder, found.tracked, found.best, notes, allow_custom_targets=trusted)
    _publish(report, out, found.folder if job.out is None else None)


def _publish(report: RunReport, out: str, folder: RunFolder | None) -> None:
    """Write a report, and attach it to a tracked run if its server takes it."""
    if folder is None or folder.tracking_uri is None or folder.run_id is None:
        publish(report, out, None)
        return
    from distmetric.tracking.mlflow_server import Attachable

    uri = tracking_uri(None, ".", folder.tracking_uri)
    try:
        publish(report, out, Attachable(uri, folder.run_id))
    except ServerError as error:
        where = f"the run in MLflow at {folder.tracking_uri}"
        log.warning("the report is not attached to %s (%s): make it again when that is mended", where, error)


def _compare(found: list[_Standing], out: str) -> None:
    if "://" in out:
        raise InputError(f"out={out} is not a local file: comparisons link to reports beside them")
    compared = [_compared(one, out) for one in found]
    with writing(f"out={out}"):
        write_comparison(out, compared)


def _compared(found: _Standing, out: str) -> ComparedRun:
    folder, best = found.folder, found.best
    return ComparedRun(
        name=folder.name,
        status=found.status,
        step=None if best is None else best.step,
        metrics={} if best is None else dict(best.metrics),
        history=found.tracked.history(),
        evaluations=read_evaluations(folder.location),
        config=leaves(masked(folder.config)),
        link=_link(folder.location, out),
        notices=[f"step {one['step']:,}: {one['message']}" for one in read_notices(folder.location)],
    )


def _link(location: str, out: str) -> str:
    """Relative address of a run's report from a page; empty where it has none, or lies on another file system."""
    if "://" in location or not Path(location, "report.html").is_file():
        return ""
    address = os.path.relpath(f"{location}/report.html", Path(out).parent)
    return quote(Path(address).as_posix())


def _standing(location: str) -> _Standing:
    folder = read_run(location, "runs")
    kept: Mapping[str, Any] = folder.config["checkpoint"]
    store = CheckpointStore(f"{folder.location}/checkpoints", best_metric=kept["best_metric"])
    newest = store.latest()
    best = store.best()
    if newest is not None:
        folder = replace(folder, config=dict(newest.meta["config"]))
    tracked = TrackedRun(folder.location)
    delivered = read_delivered(folder.location)
    folder = replace(
        folder,
        tracking_uri=delivered.get("uri", folder.tracking_uri),
        run_id=delivered.get("run_id", folder.run_id),
    )
    logged = max((step for pairs in tracked.history().values() for step, _ in pairs), default=0)
    done = max(logged, 0 if newest is None else newest.step)
    return _Standing(folder, best, done, tracked, _status(folder, newest, done, *tracked.status()))


def _status(folder: RunFolder, newest: Checkpoint | None, done: int, status: str, reason: str) -> str:
    """How a run stands: what its history says where it says something, and what the checkpoints say elsewhere."""
    steps = int(folder.config["train"]["steps"])
    where = f"at step {done:,} of {steps:,}"
    if newest is not None and newest.step >= steps and status in ("FINISHED", ""):
        return "finished"
    if status in _ENDED:
        return f"{_ENDED[status]} {where}{f': {reason}' if reason else ''}"
    if status == "RUNNING":
        return f"is running, or was lost, {where}"
    return f"stopped {where}"
