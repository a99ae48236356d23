"""A study: its training runs, as many at once as there is room for, and the table of what came out of them."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from distmetric.cluster.tracked import find_server
from distmetric.cluster.tune import tune_settings
from distmetric.cluster.tune_folder import TuneFolder, read_tuning
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.study_plan import StudyPlan
from distmetric.inference.study_pages import FIGURE, MARKDOWN, NUMBERS, study_pages
from distmetric.inference.study_results import MeasuredRun, measured
from distmetric.locations import write_text
from distmetric.tracking.tracked_run import TrackedRun


def run_study(plan: StudyPlan, folder: TuneFolder | None = None) -> dict[str, Any]:
    """Train the runs of a study that have not ended yet, and write its table.

    Args:
        plan: The study.
        folder: Of the study, to continue it.

    Returns:
        Where table, numbers and figure are, how many runs ended how, and how long it took.

    Raises:
        UserError: If the runs cannot be started, or none of them has come to an evaluation.
    """
    started = time.monotonic()
    found = tune_settings(plan.trials, folder)
    folder = read_tuning(found["folder"], "study")
    runs = _measured_runs(plan, folder)
    seconds = time.monotonic() - started
    _write(plan, folder, study_pages(plan.job, runs, seconds))
    return {
        "study": plan.job.study.name,
        "folder": folder.location,
        "markdown": f"{folder.location}/{MARKDOWN}",
        "json": f"{folder.location}/{NUMBERS}",
        "figure": f"{folder.location}/{FIGURE}",
        "runs": {"count": len(runs), **Counter(run.status for run in runs)},
        "run_id": found["run_id"],
        "tracking_uri": found["tracking_uri"],
        "seconds": seconds,
    }


def _measured_runs(plan: StudyPlan, folder: TuneFolder) -> list[MeasuredRun]:
    results = {each.trial: each for each in folder.results()}
    runs = []
    for run in plan.runs:
        run_dir, result = f"{folder.location}/{run.trial}", results.get(run.trial)
        status, error = ("waiting", "") if result is None else (result.status, result.error)
        values = measured(run_dir, plan.job.study.measures) if status == "finished" else {}
        runs.append(MeasuredRun(run.arm, run.variant, run.seed, status, run_dir, values, error))
    return runs


def _write(plan: StudyPlan, folder: TuneFolder, pages: dict[str, str]) -> None:
    """Put the files of a study into its folder and, as artifacts, into the tracker."""
    for name, text in pages.items():
        write_text(f"{folder.location}/{name}", text, "free space or fix access, then resume")
    config = decode(Config, plan.trials.trials[0].config)
    tracked = TrackedRun.own(folder.location, find_server(config, folder.tracking_uri))
    try:
        for name, text in pages.items():
            tracked.log_text(name, text)
    finally:
        tracked.close()
