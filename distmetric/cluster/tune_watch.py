"""Watches the trials of a search: keeps what comes of them, logs it, and shows how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray import tune

from distmetric.cluster.tracked import end_tracked
from distmetric.cluster.tune_folder import Result, TuneFolder, ranked
from distmetric.cluster.tune_trial import OUTCOME
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.tune_plan import Trial, TunePlan
from distmetric.errors import UserError
from distmetric.progress import Progress
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.evaluations import read_evaluations
from distmetric.training.run_folder import read_run
from distmetric.training.worker import best_store


class TuneWatch(tune.Callback):
    """What Tune tells of its trials, in the process of the driver.

    Args:
        plan: All trials.
        folder: Of the search; what it holds of trials that ended before is kept.
        tracked: Run of the search.
    """

    def __init__(self, plan: TunePlan, folder: TuneFolder, tracked: TrackedRun) -> None:
        self.plan, self.folder, self._tracked = plan, folder, tracked
        self._trials = {trial.name: trial for trial in plan.trials}
        self.results = {each.trial: each for each in folder.results() if each.status != "failed"}
        self._progress = Progress("trials", len(plan.trials))
        self._progress.start_at(len(self.results))
        self._tracker = tracked.tracker()
        # Steps in the tracker: how many trials have ended, those that were repeated as often as they did.
        told = (points[-1][0] for points in tracked.history().values())
        self._ends = max(told, default=0)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune copies its callbacks into its state; what this one knows is in the search's folder

    @property
    def pending(self) -> list[Trial]:
        """Trials that have not ended; those that failed are tried again."""
        return [trial for trial in self.plan.trials if trial.name not in self.results]

    @property
    def best(self) -> Result | None:
        """The best of the trials that have finished or were stopped; None before the first."""
        sound = [each for each in self.results.values() if each.status != "failed"]
        found = ranked(sound, self.plan.job.metric)
        return found[0] if found and self.plan.job.metric in found[0].metrics else None

    def on_trial_result(self, *_: Any, trial: Any, result: Mapping[str, Any], **__: Any) -> None:
        """Show what was evaluated."""
        if self.plan.job.metric in result:
            value = result[self.plan.job.metric]
            self._progress.update(0, f"{trial.config['name']} step {result['step']}: {value:.3f}")

    def on_trial_complete(self, *_: Any, trial: Any, **__: Any) -> None:
        """Keep the outcome of a run; a trial without one was stopped by the scheduler."""
        self._keep(self._result(self._trials[trial.config["name"]], trial.last_result.get(OUTCOME)))

    def on_trial_error(self, *_: Any, trial: Any, **__: Any) -> None:
        """Keep that the process of a trial is gone, and say so of its run."""
        reason = "its process ended unexpectedly; Ray's logs may say why"
        name = trial.config["name"]
        end_tracked(f"{self.folder.location}/{name}", "FAILED", reason)
        self._keep(self._result(self._trials[name], {"error": reason}))

    def interrupted(self) -> None:
        """Say of the runs that were going on that they are no more."""
        for trial in self.pending:
            end_tracked(f"{self.folder.location}/{trial.name}", "KILLED", "the search was interrupted")

    def close(self) -> None:
        """Log the metrics of the best trial as those of the search, with the tables of all."""
        self._progress.close()
        best = self.best
        if best is not None:
            self._tracker.log(self._ends, {f"best/{name}": value for name, value in best.metrics.items()})
        tables = self.folder.write_results(list(self.results.values()), self.plan.job.metric)
        for name, text in tables.items():
            self._tracked.log_text(name, text)
        self._tracker.close()

    def _keep(self, result: Result) -> None:
        self.results[result.trial] = result
        self._ends += 1
        metric, best = self.plan.job.metric, self.best
        self.folder.write_results(list(self.results.values()), metric)
        note = ""
        if best is not None:
            logged = {f"tune/best_{metric}": best.metrics[metric]}
            if metric in result.metrics:
                logged[f"tune/{metric}"] = result.metrics[metric]
            self._tracker.log(self._ends, logged)
            note = f"best {metric} {best.metrics[metric]:.4f} ({best.trial})"
        self._progress.update(1, note)

    def _result(self, trial: Trial, outcome: Mapping[str, Any] | None) -> Result:
        run_dir = f"{self.folder.location}/{trial.name}"
        result = Result(trial.name, "stopped", trial.settings, run_dir)
        with suppress(UserError):  # it may have failed before it had a folder
            result = replace(result, run_id=read_run(run_dir).run_id)
        if outcome is not None and "error" not in outcome:
            parts = {name: outcome[name] for name in ("step", "seconds", "metrics", "checkpoint")}
            return replace(result, status="finished", **parts)
        if outcome is not None:
            result = replace(result, status="failed", error=outcome["error"])
        records = _evaluations(run_dir)
        if not records:
            return result
        metrics = max(
            (record["metrics"] for record in records), key=lambda found: found[self.plan.job.metric]
        )
        best = _best_checkpoint(trial, run_dir)
        return replace(result, step=records[-1]["step"], metrics=metrics, checkpoint=best)


def _evaluations(run_dir: str) -> list[dict[str, Any]]:
    try:
        return read_evaluations(run_dir)
    except UserError:
        return []


def _best_checkpoint(trial: Trial, run_dir: str) -> str | None:
    best = best_store(decode(Config, trial.config), run_dir).best()
    return None if best is None else best.location
