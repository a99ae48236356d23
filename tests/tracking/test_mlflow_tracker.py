"""MLflow through a real database: parameters, history without doubles, truthful ends."""

from __future__ import annotations

import mlflow
import pytest

from distmetric.errors import ResourceError
from distmetric.tracking.mlflow_tracker import MLflowRun, MLflowTracker, tracking_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return tracking_uri(None, str(tmp_path_factory.mktemp("mlflow")))


def new_run(uri: str, **params) -> MLflowRun:
    return MLflowRun.create(uri, "experiment", "a run", params, {"tag": "value"}, None)


def test_a_run_carries_parameters_tags_and_name(uri) -> None:
    run = new_run(
        uri, **{"train.steps": 5, "name": None, "long": "x" * 9000}, **{f"p{i}": i for i in range(150)}
    )
    found = mlflow.MlflowClient(uri).get_run(run.run_id)
    assert found.info.run_name == "a run"
    assert found.info.status == "RUNNING"
    assert found.data.params["train.steps"] == "5"
    assert found.data.params["name"] == "null"
    assert found.data.params["p149"] == "149"
    assert found.data.tags["tag"] == "value"


def test_history_is_what_was_logged_in_order(uri) -> None:
    run = new_run(uri)
    tracker = MLflowTracker(uri, run.run_id)
    for step in range(1, 701):
        tracker.log(step, {"train/loss": 1 / step, "train/gap": float(step), "train/bad": float("nan")})
    tracker.log(700, {"eval/recall_at_1": 0.5})
    tracker.close()
    history = run.history()
    assert history["train/loss"] == [(step, 1 / step) for step in range(1, 701)]
    assert history["eval/recall_at_1"] == [(700, 0.5)]
    assert "train/bad" not in history


def test_replayed_steps_are_not_doubled(uri) -> None:
    run = new_run(uri)
    first = MLflowTracker(uri, run.run_id)
    for step in range(1, 8):
        first.log(step, {"train/loss": float(step)})
    first.log(4, {"eval/recall_at_1": 0.4})
    first.close()
    resumed = MLflowTracker(uri, run.run_id)
    for step in range(5, 11):
        resumed.log(step, {"train/loss": float(step)})
    resumed.log(8, {"eval/recall_at_1": 0.8})
    resumed.flush()
    assert run.history()["train/loss"] == [(step, float(step)) for step in range(1, 11)]
    assert run.history()["eval/recall_at_1"] == [(4, 0.4), (8, 0.8)]
    resumed.close()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_ended_and_can_be_reopened(uri, status) -> None:
    run = new_run(uri)
    run.finish(status, {"distmetric.error": "why"})
    found = mlflow.MlflowClient(uri).get_run(run.run_id)
    assert (found.info.status, found.data.tags["distmetric.error"]) == (status, "why")
    run.reopen()
    assert mlflow.MlflowClient(uri).get_run(run.run_id).info.status == "RUNNING"


def test_an_unreachable_server_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResourceError, match=r"MLflow at http://127.0.0.1:9 cannot be used: .*tracking.uri"):
        new_run("http://127.0.0.1:9")


def test_remote_runs_need_a_server() -> None:
    with pytest.raises(ResourceError, match="output_dir=s3://bucket/runs is not a local folder"):
        tracking_uri(None, "s3://bucket/runs")
    assert tracking_uri("http://server", "s3://bucket/runs") == "http://server"


def test_the_environment_names_the_server(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(None, str(tmp_path)) == "http://server:5000"
