"""A real MLflow server that is not there, freezes and is killed: runs go on, and it has everything once in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest

from browser import end, free_port, wait_until
from distmetric.tracking import delivery as delivery_module
from distmetric.tracking.journal import read_history, read_status
from distmetric.tracking.mlflow_server import MLflowServer
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.notices import read_notices
from drivers import start
from html_page import Page
from runs import FEW_GLYPHS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


class LateServer:
    """MLflow's server on a port that is known before it is there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, if it is not running, and wait until it answers."""
        if self._process is not None:
            return
        folder, log = self._folder, (self._folder / "log").open("a")
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
        ]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self._port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
        )
        wait_until(self._answers, 150, "MLflow's server")

    def send(self, number: int) -> None:
        """Send a signal to all of its processes."""
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """End it without a word."""
        family = self._family()
        self.send(signal.SIGKILL)
        end(family)
        if self._process is not None:
            self._process.wait(timeout=120)
        self._process = None

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=60) as response:
            return response.status == 200
        return False

    def _family(self) -> set[psutil.Process]:
        if self._process is None:
            return set()
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return {process, *process.children(recursive=True)}
        return set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LateServer]:
    late = LateServer(tmp_path_factory.mktemp("server"))
    yield late
    late.kill()


def logged(server: LateServer, run_id: str, name: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(server.address).get_metric_history(run_id, name)
    return [(point.step, point.value) for point in history]


def test_a_run_whose_server_is_not_there_is_whole_and_resume_delivers_it(
    server, glyph_cache, tmp_path
) -> None:
    run_dir, log = tmp_path / "alone", tmp_path / "log"
    overrides = ("debug=tiny", *FEW_GLYPHS, "model.widths=[8, 8]", "model.embedding_dim=16", "name=alone")
    places = (f"output_dir={tmp_path}", f"data.cache_dir={glyph_cache}", f"tracking.uri={server.address}")
    driver = start(*overrides, *places, log=log)
    output, _ = driver.communicate(timeout=600)
    said = log.read_text()
    assert driver.returncode == 0, said[-3000:]
    result = json.loads(output.strip().splitlines()[-1])
    assert (result["run_id"], result["tracking_uri"], result["step"]) == (None, server.address, 20)
    assert result["undelivered"] > 20
    assert said.count("does not answer") == 1
    assert "Traceback" not in said
    away, waiting = [
        notice["message"] for notice in read_notices(str(run_dir)) if notice["kind"] == "tracking"
    ]
    assert away.startswith(f"MLflow at {server.address} does not answer (")
    assert waiting.endswith(f": resume={run_dir} delivers it, whether the run has ended or not")
    assert "Learning curves" in Page(Path(result["report"]).read_text(encoding="utf-8")).texts("h2")
    history = read_history(str(run_dir))
    assert [step for step, _ in history["train/loss"]] == list(range(1, 21))
    assert read_status(str(run_dir)) == ("FINISHED", "")

    server.start()
    again = start(f"resume={run_dir}", log=log)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, log.read_text()[-3000:]
    late = json.loads(output.strip().splitlines()[-1])
    assert (late["undelivered"], late["checkpoint"], late["metrics"]) == (
        0,
        result["checkpoint"],
        result["metrics"],
    )
    assert late["notices"][-1] == f"MLflow at {server.address} has got all of the run since"
    run_id = late["run_id"]
    assert json.loads((run_dir / "run.json").read_text())["run_id"] == run_id
    assert read_history(str(run_dir)) == history, "nothing is measured again"
    for name, points in history.items():
        assert logged(server, run_id, name) == points
    client = mlflow.MlflowClient(server.address)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.end_time < (run_dir / "report.html").stat().st_mtime * 1000, (
        "the training's end, not now"
    )
    assert found.data.params["train.steps"] == "20"
    assert found.data.tags["mlflow.note.content"].startswith("### recall_at_1")
    artifacts = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"report.html", "config.json", "figures"} <= artifacts


def test_a_server_that_freezes_and_is_killed_has_everything_once_when_it_is_back(
    server, tmp_path, monkeypatch
) -> None:
    """What a frozen server was sent again and again lies in its queue, and is taken when it thaws."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE_S", 1.0)
    server.start()
    told: list[str] = []
    target = MLflowServer(server.address, "outages")
    target.patience_s = 60.0
    run = TrackedRun.create(str(tmp_path / "run"), target, "a", {}, {}, lambda _, line: told.append(line))
    tracker = run.tracker()

    def log(first: int, last: int) -> None:
        for step in range(first, last + 1):
            tracker.log(step, {"train/loss": 1 / step, "train/gap": float(step)})
        tracker.flush()

    log(1, 100)
    assert run.settle() == 0
    server.send(signal.SIGSTOP)
    try:
        log(101, 200)
        assert run.settle() == 100
        log(201, 300)
        assert run.settle() == 200
    finally:
        server.send(signal.SIGCONT)
    wait_until(lambda: run.settle() == 0, 60, "the thawed server to have everything")
    server.kill()
    log(301, 400)
    run.end("FINISHED")
    assert run.settle() == 101
    server.start()
    wait_until(lambda: run.settle() == 0, 60, "the new server to have everything")
    tracker.close()
    run.close()
    for name, value in (("train/loss", lambda step: 1 / step), ("train/gap", float)):
        assert logged(server, run.run_id, name) == [(step, value(step)) for step in range(1, 401)]
    found = mlflow.MlflowClient(server.address)
    assert found.get_run(run.run_id).info.status == "FINISHED"
    experiment = found.get_experiment_by_name("outages").experiment_id
    assert [each.info.run_id for each in found.search_runs([experiment])] == [run.run_id]
    kinds = [line.partition(f"MLflow at {server.address} ")[2].partition(" (")[0] for line in told]
    assert kinds[0] == "does not answer"
    assert [line for line in kinds if line.startswith(("does", "answers"))] == [
        *("does not answer", "answers again and has what was waiting for it") * 2
    ]
