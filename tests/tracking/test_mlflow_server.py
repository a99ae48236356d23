"""MLflow through a real database, and through HTTP servers that are none: what each answer means."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from distmetric.errors import ResourceError
from distmetric.tracking import delivery as delivery_module
from distmetric.tracking import mlflow_server
from distmetric.tracking.journal import now
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.mlflow_server import MLflowServer, SystemLoad
from distmetric.tracking.server import NoAnswerError, Point, RefusedError, UnacceptableError
from distmetric.tracking.tracked_run import TrackedRun, git_revision, tracking_server


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A database that is laid out once, which takes seconds; tests that break one take a copy."""
    folder = tmp_path_factory.mktemp("mlflow")
    found = f"sqlite:///{folder}/mlflow.db"
    mlflow.MlflowClient(found).search_experiments()
    return found


@pytest.fixture
def copied(uri, tmp_path) -> str:
    """A database of the test's own."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    return f"sqlite:///{path}"


def described(key: str = "k", **params: str) -> dict:
    tags = {"tag": "value"}
    return {
        "kind": "run",
        "name": "a run",
        "key": key,
        "time": 1_700_000_000_000,
        "params": params,
        "tags": tags,
    }


def points(*steps: int, name: str = "train/loss") -> list[Point]:
    return [Point(name, 1 / step, 1_000_000 + step, step) for step in steps]


def series(uri: str, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in mlflow.MlflowClient(uri).get_metric_history(run_id, name)]


def test_a_run_carries_its_name_start_parameters_and_tags_and_is_opened_once(uri) -> None:
    server = MLflowServer(uri, "experiment")
    run = described(
        "once", **{"train.steps": "5", "long": "x" * 9000}, **{f"p{i}": str(i) for i in range(150)}
    )
    run_id = server.open(run, None)
    found = mlflow.MlflowClient(uri).get_run(run_id)
    assert (found.info.run_name, found.info.status, found.info.start_time) == (
        "a run",
        "RUNNING",
        run["time"],
    )
    assert found.data.params["train.steps"] == "5"
    assert found.data.params["p149"] == "149"
    assert len(found.data.params["long"]) == 6000
    assert found.data.tags["tag"] == "value"
    # by its identity, by what it is known by before it has one, and after it was made and nobody heard of it
    assert server.open(run, run_id) == MLflowServer(uri, "experiment").open(run, None) == run_id
    assert server.open(run, "0" * 32) == run_id, "a database that lost it would have got a new one"
    assert server.open(described("another"), None) != run_id


def test_what_is_sent_twice_is_there_once(uri) -> None:
    server = MLflowServer(uri, "experiment")
    run_id = server.open(described("twice"), None)
    server.log(run_id, points(1, 2, 3))
    server.log(run_id, points(2, 3, 4))
    server.log(run_id, points(4))
    assert series(uri, run_id) == [(step, 1 / step) for step in (1, 2, 3, 4)]
    for _ in range(2):
        server.tell(run_id, {"kind": "tags", "tags": {"note": "a", "absent": None}})
        server.tell(run_id, {"kind": "dataset", "name": "glyphs", "digest": "f" * 64, "location": "/data"})
        server.tell(
            run_id, {"kind": "status", "status": "KILLED", "reason": "why", "time": 1_700_000_001_000}
        )
    found = mlflow.MlflowClient(uri).get_run(run_id)
    assert (found.info.status, found.info.end_time) == ("KILLED", 1_700_000_001_000)
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("glyphs", "f" * 12)
    assert json.loads(given.dataset.source) == {"uri": "/data"}
    server.tell(run_id, {"kind": "status", "status": "RUNNING", "reason": "", "time": now()})
    server.tell(run_id, {"kind": "tags", "tags": {"note": None}})
    found = mlflow.MlflowClient(uri).get_run(run_id)
    assert (found.info.status, "note" in found.data.tags) == ("RUNNING", False)


def test_files_are_attached_where_they_belong_and_a_broken_store_costs_only_them(uri, tmp_path) -> None:
    server = MLflowServer(uri, "with artifacts", (tmp_path / "artifacts").as_uri())
    run_id = server.open(described("files"), None)
    (tmp_path / "loss.svg").write_text("<svg/>")
    server.attach(run_id, str(tmp_path / "loss.svg"), "figures")
    server.attach(run_id, str(tmp_path / "loss.svg"), "")
    client = mlflow.MlflowClient(uri)
    assert [each.path for each in client.list_artifacts(run_id, "figures")] == ["figures/loss.svg"]
    (tmp_path / "file").write_text("no folder")
    broken = MLflowServer(uri, "with broken artifacts", (tmp_path / "file").as_uri())
    run_id = broken.open(described("broken"), None)
    with pytest.raises(UnacceptableError, match="directory"):
        broken.attach(run_id, str(tmp_path / "loss.svg"), "")


def test_what_is_not_accepted_is_told_from_what_may_work_later(uri) -> None:
    server = MLflowServer(uri, "experiment")
    run_id = server.open(described("names"), None)
    with pytest.raises(UnacceptableError, match="@"):
        server.log(run_id, points(1, name="recall@1"))
    with pytest.raises(UnacceptableError, match="not found"):
        server.log("0" * 32, points(1))


def test_what_was_deleted_on_the_server_is_named_with_the_way_to_bring_it_back(copied) -> None:
    server, client = MLflowServer(copied, "experiment"), mlflow.MlflowClient(copied)
    run = described("deleted")
    run_id = server.open(run, None)
    client.delete_run(run_id)
    with pytest.raises(UnacceptableError):
        server.log(run_id, points(1))
    with pytest.raises(RefusedError, match=f"was deleted there: .*`mlflow runs restore --run-id {run_id}`"):
        server.open(run, run_id)
    client.restore_run(run_id)
    assert server.open(run, run_id) == run_id
    number = client.get_experiment_by_name("experiment").experiment_id
    client.delete_experiment(number)
    command = f"`mlflow experiments restore --experiment-id {number}`"
    message = f"experiment was deleted there: .*{command}.*tracking.experiment"
    with pytest.raises(RefusedError, match=message):
        server.open(described("new"), None)


def test_a_run_deleted_in_the_middle_waits_until_it_is_brought_back(copied, tmp_path, monkeypatch) -> None:
    hurry(monkeypatch)
    told: list[str] = []
    server = MLflowServer(copied, "experiment")
    run = TrackedRun.create(str(tmp_path / "run"), server, "a", {}, {}, lambda _, line: told.append(line))
    client = mlflow.MlflowClient(copied)
    client.delete_run(run.run_id)
    tracker = run.tracker()
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert run.settle() > 0
    assert f"refuses what it is told (the run {run.run_id} was deleted there: bring it back with" in told[0]
    client.restore_run(run.run_id)
    run.end("FINISHED")
    assert run.close() == 0
    assert series(copied, run.run_id) == [(1, 0.5)]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def hurry(monkeypatch) -> None:
    for name in ("_LOOK_EVERY_S", "_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(delivery_module, name, 0.05)


def test_a_database_that_goes_away_is_missed_not_made_anew_and_used_again_when_it_is_back(
    copied, tmp_path, monkeypatch
) -> None:
    hurry(monkeypatch)
    told: list[str] = []
    path = Path(copied.removeprefix("sqlite:///"))
    server = MLflowServer(copied, "experiment")
    run = TrackedRun.create(str(tmp_path / "run"), server, "a", {}, {}, lambda _, line: told.append(line))
    tracker = run.tracker()
    tracker.log(1, {"train/loss": 1.0})
    tracker.flush()
    assert run.settle() == 0
    content = path.read_bytes()
    path.unlink()
    tracker.log(2, {"train/loss": 2.0})
    tracker.close()
    assert run.settle() == 1
    assert not path.exists()
    assert "does not answer (its database is not there)" in told[0]
    path.write_bytes(content)  # another file than the one that was open
    run.end("FINISHED")
    assert run.close() == 0
    assert series(copied, run.run_id) == [(1, 1.0), (2, 2.0)]


def test_a_locked_database_is_waited_for_by_nobody_but_the_thread(copied, tmp_path, monkeypatch) -> None:
    hurry(monkeypatch)
    told: list[str] = []
    server = MLflowServer(copied, "experiment")
    run = TrackedRun.create(str(tmp_path / "run"), server, "a", {}, {}, lambda _, line: told.append(line))
    assert run.settle() == 0
    server.patience_s = 0.2
    tracker = run.tracker()
    lock = sqlite3.connect(copied.removeprefix("sqlite:///"))
    lock.execute("BEGIN EXCLUSIVE")
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert run.settle() == 1
    assert "does not answer (nothing within 0.2 s)" in told[0]
    lock.rollback()
    lock.close()
    server.patience_s = 60.0
    assert run.close() == 0
    assert series(copied, run.run_id) == [(1, 1.0)]


class Answers(BaseHTTPRequestHandler):
    """Answers everything in one way."""

    status, body = 500, b'{"error_code": "INTERNAL_ERROR", "message": "oh no"}'
    hang: threading.Event | None = None
    seen: list[str]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).seen.append(self.path)
        if self.hang is not None:
            self.hang.wait(60)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_) -> None:
        pass


@contextmanager
def answering(
    status: int, body: bytes = b"", hang: threading.Event | None = None
) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server; its address, and the paths that were asked for."""
    answers = type("These", (Answers,), {"status": status, "body": body, "hang": hang, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answers.seen
        finally:
            if hang is not None:
                hang.set()
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "error", "reason"),
    [
        (
            500,
            b'{"error_code": "INTERNAL_ERROR", "message": "oh no"}',
            NoAnswerError,
            "^too many 500 error responses$",
        ),
        (503, b"<html>busy</html>", NoAnswerError, "^too many 503 error responses$"),
        (200, b"<html>a page</html>", NoAnswerError, "not in a valid JSON format"),
        (400, b"<html>a proxy</html>", NoAnswerError, "error code 400"),
        (401, b"You are not authenticated", RefusedError, "401"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}', RefusedError, "not yours"),
        (404, b"<html>nothing here</html>", RefusedError, "404"),
    ],
)
def test_what_a_server_answers_means_something(status, body, error, reason) -> None:
    with answering(status, body) as (address, seen):
        server = MLflowServer(address, "experiment")
        with pytest.raises(error, match=reason) as caught:
            server.open(described(), None)
        assert "\n" not in str(caught.value)
        assert len(seen) == 1, "what has failed is tried again by the delivery, not by MLflow for minutes"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_run_is_not_started_on_a_server_that_does_not_want_it(status, tmp_path) -> None:
    with answering(status, b"no") as (address, _):
        server = tracking_server(address, "experiment", str(tmp_path))
        with pytest.raises(
            ResourceError, match=rf"^MLflow at {address} cannot be used: .*{status}.*; check tracking\.uri"
        ):
            TrackedRun.create(str(tmp_path / "run"), server, "a", {}, {})
    assert not (tmp_path / "run").exists()


def test_a_server_that_hangs_or_is_not_there_is_given_up_within_bounds(tmp_path) -> None:
    told: list[str] = []
    hang = threading.Event()
    with answering(500, hang=hang) as (address, _):
        server = MLflowServer(address, "experiment")
        server.patience_s = 0.3
        run = TrackedRun.create(
            str(tmp_path / "hangs"), server, "a", {}, {}, lambda _, line: told.append(line)
        )
        assert (run.run_id, run.uri) == (None, address)
        assert "does not answer (nothing within 0.3 s)" in told[0]
        run.close()
    server = MLflowServer(address, "experiment")
    assert server.patience_s < 60
    run = TrackedRun.create(str(tmp_path / "away"), server, "a", {}, {}, lambda _, line: told.append(line))
    run.close()
    assert run.run_id is None
    assert (
        "does not answer (Failed to establish a new connection: [Errno 111] Connection refused): the"
        in told[-2]
    )


def test_what_users_set_for_mlflow_is_respected_and_bounded_otherwise() -> None:
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    code = (
        "import distmetric.tracking.mlflow_server, mlflow.environment_variables as of;"
        f"print(*(getattr(of, name).get() for name in {names}))"
    )
    found = []
    for given in ({}, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}):
        environment = {name: value for name, value in os.environ.items() if name not in names} | given
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            timeout=300,
            capture_output=True,
            text=True,
        )
        found.append(done.stdout.split())
    assert found == [["0", "60"], ["0", "77"]]


def test_credentials_reach_the_server_and_nothing_else(tmp_path) -> None:
    with answering(401, b"no") as (address, seen):
        uri = address.replace("://", "://me:correct-horse@")
        server = MLflowServer(uri, "experiment")
        assert (server.uri, server.address) == (uri, address)
        with pytest.raises(RefusedError) as caught:
            server.open(described(), None)
        assert "correct-horse" not in str(caught.value)
        assert len(seen) == 1
        unreachable = mlflow_server.unreachable(uri, Exception(f"cannot reach {uri}/api"))
        assert "correct-horse" not in str(unreachable)


def test_runs_say_where_they_come_from(uri, tmp_path) -> None:
    server = tracking_server(uri, "experiment", str(tmp_path))
    tracked = TrackedRun.create(str(tmp_path / "run"), server, "a run", {"name": None}, {"loss": "triplet"})
    found = mlflow.MlflowClient(uri).get_run(tracked.run_id).data
    assert found.tags["mlflow.source.git.commit"] == git_revision()
    assert found.tags["mlflow.source.name"] == Path(sys.argv[0]).name
    assert found.tags["loss"] == "triplet"
    assert found.params == {"name": "null"}
    tracked.close()


def test_the_load_of_the_machine_is_logged_and_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    name = "system/cpu_utilization_percentage"
    for _ in range(2):
        tracker = JournalTracker(str(tmp_path))
        begun = tracker.next_step("system/")
        load = SystemLoad(tracker)
        deadline = time.monotonic() + 240
        while tracker.next_step("system/") < begun + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        load.close()
        tracker.close()
    steps = [step for step, _ in TrackedRun(str(tmp_path)).history()[name]]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))


def test_standard_output_is_left_to_results() -> None:
    """Otherwise MLflow prints the address of a run that ends on a server."""
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get() is True


def test_nothing_is_sent_to_third_parties() -> None:
    code = (
        "import distmetric.tracking.mlflow_server, mlflow.telemetry.client as client;"
        "assert client.get_telemetry_client() is None"
    )
    environment = {
        name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name != "CI"
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
