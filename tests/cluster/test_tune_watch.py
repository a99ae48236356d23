"""What is kept of trials, from what Tune tells of them; no Ray runs here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from distmetric.cluster.tracked import end_tracked
from distmetric.cluster.tune_folder import TuneFolder, read_tuning
from distmetric.cluster.tune_trial import OUTCOME, run_trial
from distmetric.cluster.tune_watch import TuneWatch
from distmetric.config.compose import compose, load
from distmetric.config.jobs import TuneJob
from distmetric.config.tune_plan import plan_trials
from distmetric.tracking.server import Server
from distmetric.tracking.tracked_run import TrackedRun, tracking_server
from distmetric.training.evaluations import write_evaluation
from distmetric.training.run_folder import RunFolder

PLAN = plan_trials(load("tune", TuneJob, ["space={optim.lr: [0.5, 0.25, 0.125]}", "train={debug: tiny}"]))


def told(number: int, **last_result) -> SimpleNamespace:
    """A trial as Tune has it."""
    return SimpleNamespace(config={"name": PLAN.trials[number].name}, last_result=last_result)


def evaluated(folder: TuneFolder, number: int, scores: dict[int, float]) -> None:
    for step, score in scores.items():
        record = {"step": step, "metrics": {"recall_at_1": score}, "intervals": {}}
        write_evaluation(f"{folder.location}/{PLAN.trials[number].name}", record)


def finished(score: float) -> dict:
    metrics = {"recall_at_1": score}
    return {OUTCOME: {"step": 20, "seconds": 1.5, "metrics": metrics, "checkpoint": "/c", "name": "ignored"}}


@pytest.fixture
def folder(tmp_path: Path) -> TuneFolder:
    location = str(tmp_path / "search")
    tracked = TrackedRun.create(location, server(tmp_path), "search", {}, {})
    tracked.close()
    drawn = [trial.settings for trial in PLAN.trials]
    folder = TuneFolder(location, "search", PLAN.job, drawn, "1", tracked.uri, tracked.run_id)
    folder.write()
    return folder


def server(tmp_path: Path) -> Server:
    return tracking_server(f"sqlite:///{tmp_path}/mlflow.db", "distmetric", str(tmp_path))


def watch(folder: TuneFolder) -> TuneWatch:
    return TuneWatch(PLAN, folder, TrackedRun(folder.location))


def test_outcomes_are_kept_at_once_and_what_failed_is_not_the_best(folder: TuneFolder) -> None:
    watching = watch(folder)
    assert watching.best is None
    evaluated(folder, 0, {10: 0.9, 20: 0.8})
    watching.on_trial_complete(iteration=1, trials=[], trial=told(0, **{OUTCOME: {"error": "it diverged"}}))
    assert watching.best is None
    watching.on_trial_complete(iteration=1, trials=[], trial=told(1, **finished(0.5)))
    evaluated(folder, 2, {10: 0.6, 20: 0.7, 30: 0.4})
    watching.on_trial_result(iteration=1, trials=[], trial=told(2), result={"recall_at_1": 0.7, "step": 20})
    watching.on_trial_complete(iteration=1, trials=[], trial=told(2, recall_at_1=0.4, step=30))
    kept = read_tuning(folder.location).results()
    assert [(each.status, each.step, each.metrics["recall_at_1"]) for each in kept] == [
        ("failed", 20, 0.9),
        ("finished", 20, 0.5),
        ("stopped", 30, 0.7),
    ]
    assert [each.settings for each in kept] == [trial.settings for trial in PLAN.trials]
    assert [each.error for each in kept] == ["it diverged", "", ""]
    assert (kept[1].seconds, kept[1].checkpoint) == (1.5, "/c")
    assert watching.best == kept[2]
    assert watching.pending == []


def test_a_search_that_goes_on_keeps_what_ended_well(folder: TuneFolder) -> None:
    before = watch(folder)
    before.on_trial_complete(iteration=1, trials=[], trial=told(0, **finished(0.5)))
    before.on_trial_error(iteration=1, trials=[], trial=told(1))
    assert "ended unexpectedly" in before.results["trial_001"].error
    after = watch(folder)
    assert [trial.name for trial in after.pending] == ["trial_001", "trial_002"]
    assert after.best == before.results["trial_000"]


def test_the_run_of_the_search_has_its_course_its_tables_and_the_best(folder: TuneFolder) -> None:
    watching = watch(folder)
    watching.on_trial_complete(iteration=1, trials=[], trial=told(0, **finished(0.5)))
    watching.on_trial_complete(iteration=1, trials=[], trial=told(1, **finished(0.75)))
    watching.on_trial_complete(iteration=1, trials=[], trial=told(2, **finished(0.25)))
    watching._tracked = TrackedRun.own(folder.location, server(Path(folder.location).parent))
    watching.close()
    watching._tracked.close()
    history = TrackedRun(folder.location).history()
    assert history["tune/recall_at_1"] == [(1, 0.5), (2, 0.75), (3, 0.25)]
    assert history["tune/best_recall_at_1"] == [(1, 0.5), (2, 0.75), (3, 0.75)]
    assert history["best/recall_at_1"] == [(3, 0.75)]
    client = mlflow.MlflowClient(folder.tracking_uri)
    logged = client.get_metric_history(folder.run_id, "best/recall_at_1")
    assert [(point.step, point.value) for point in logged] == [(3, 0.75)]
    artifacts = mlflow.MlflowClient(folder.tracking_uri).list_artifacts(folder.run_id)
    assert {item.path for item in artifacts} == {"trials.csv", "trials.json"}
    again = watch(folder)  # a better one, of a search that goes on
    again.on_trial_complete(iteration=1, trials=[], trial=told(2, **finished(0.875)))
    again.close()
    history = TrackedRun(folder.location).history()
    assert history["best/recall_at_1"] == [(3, 0.75), (4, 0.875)]


def test_runs_that_were_going_on_are_killed_with_the_search(folder: TuneFolder, tmp_path: Path) -> None:
    statuses = {}
    for trial in PLAN.trials[:2]:
        location = f"{folder.location}/{trial.name}"
        run = TrackedRun.create(location, server(tmp_path), trial.name, {}, {})
        config = {"tracking": {"experiment": "distmetric"}}
        RunFolder(location, trial.name, config, "f", "1", run.uri, run.run_id).write()
        statuses[trial.name] = run
    end_tracked(f"{folder.location}/trial_002", "KILLED", "it has no folder yet")
    watching = watch(folder)
    with statuses["trial_000"].watch():
        watching.on_trial_complete(iteration=1, trials=[], trial=told(0, **finished(0.5)))
    watching.interrupted()
    client = mlflow.MlflowClient(folder.tracking_uri)
    found = [client.get_run(run.run_id) for run in statuses.values()]
    assert [run.info.status for run in found] == ["FINISHED", "KILLED"]
    assert found[1].data.tags["distmetric.error"] == "the search was interrupted"


def test_a_mistake_of_the_user_is_the_outcome_of_a_trial(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", [])
    values = compose("config", ["data=catalog", f"data.path={tmp_path}/nowhere.arrow"])
    outcome = run_trial(values, {}, ["jobs/train.py", "data=catalog"])
    assert list(outcome) == ["error"]
    assert "nowhere.arrow" in outcome["error"]
    assert "\n" not in outcome["error"]
    assert sys.argv == ["jobs/train.py", "data=catalog"]
    assert capfd.readouterr() == ("", "")
