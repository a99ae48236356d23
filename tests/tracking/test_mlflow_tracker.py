"""MLflow through a real database: parameters, history without doubles, truthful ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from distmetric.errors import ResourceError
from distmetric.tracking.mlflow_tracker import MLflowRun, MLflowTracker, tracking_uri
from distmetric.tracking.tracked_run import TrackedRun, git_revision


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


def test_a_folder_of_figures_is_attached_and_the_status_is_told(tmp_path) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = MLflowRun.create(database, "figures", "a run", {}, {}, (tmp_path / "artifacts").as_uri())
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "loss.svg").write_text("<svg/>")
    tracked = TrackedRun(database, run.run_id)
    tracked.log_artifacts(str(tmp_path / "drawn"), "figures")
    found = mlflow.MlflowClient(database).list_artifacts(run.run_id, "figures")
    assert [each.path for each in found] == ["figures/loss.svg"]
    assert tracked.status() == ("RUNNING", "")
    run.finish("FAILED", {"distmetric.error": "the loss became nan"})
    assert tracked.status() == ("FAILED", "the loss became nan")
    assert TrackedRun().status() == ("", "")
    TrackedRun().log_artifacts(str(tmp_path / "drawn"), "figures")


def test_a_run_that_the_server_does_not_know_is_one_line(uri) -> None:
    tracked = TrackedRun(uri, "0" * 32)
    for asked in (tracked.history, tracked.status):
        with pytest.raises(ResourceError, match=r"MLflow at .* cannot be used"):
            asked()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_ended_and_can_be_reopened(uri, status) -> None:
    run = new_run(uri)
    run.finish(status, {"distmetric.error": "why"})
    found = mlflow.MlflowClient(uri).get_run(run.run_id)
    assert (found.info.status, found.data.tags["distmetric.error"]) == (status, "why")
    for times in ("1", "2"):
        run.reopen()
        found = mlflow.MlflowClient(uri).get_run(run.run_id)
        assert (found.info.status, found.data.tags["resumed"]) == ("RUNNING", times)
        assert "distmetric.error" not in found.data.tags


def test_the_page_of_a_run_has_a_note_and_its_data(uri) -> None:
    run = new_run(uri)
    run.describe("**first**")
    run.describe("**then**")
    run.log_dataset("omniglot", "f" * 64, "/data/omniglot.arrow")
    found = mlflow.MlflowClient(uri).get_run(run.run_id)
    assert found.data.tags["mlflow.note.content"] == "**then**"
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("omniglot", "f" * 12)
    assert json.loads(given.dataset.source) == {"uri": "/data/omniglot.arrow"}


def test_standard_output_is_left_to_results() -> None:
    """Otherwise MLflow prints the address of a run that ends on a server."""
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get() is True


def test_runs_say_where_they_come_from(uri, tmp_path) -> None:
    tracked = TrackedRun.create(uri, "experiment", str(tmp_path), "a run", {}, {"loss": "triplet"})
    tags = mlflow.MlflowClient(uri).get_run(tracked.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == git_revision()
    assert tags["mlflow.source.name"] == Path(sys.argv[0]).name
    assert tags["loss"] == "triplet"


def test_the_load_of_the_machine_is_logged_where_asked(uri, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    for wanted in (True, False):
        run = new_run(uri)
        tracker = MLflowTracker(uri, run.run_id, system_metrics=wanted)
        deadline = time.monotonic() + 20
        while wanted and "system/cpu_utilization_percentage" not in run.history():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tracker.close()
        assert any(name.startswith("system/") for name in run.history()) == wanted


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


def test_nothing_is_sent_to_third_parties() -> None:
    code = (
        "import distmetric.tracking.mlflow_tracker, mlflow.telemetry.client as client;"
        "assert client.get_telemetry_client() is None"
    )
    environment = {
        name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name != "CI"
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
