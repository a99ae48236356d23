"""`ray job submit` for real: a head on this machine, a job on it, and what the job leaves."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest

from distmetric.distributed import Replica
from distmetric.tracking.journal import read_history
from distmetric.training.checkpoint import read_checkpoint
from drivers import steps_saved
from processes import run_ranks
from runs import FEW_GLYPHS, run_once, tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Head:
    """A Ray head that takes jobs."""

    dashboard: str
    temp_dir: Path
    environment: dict[str, str]

    def submit(self, job_id: str, *overrides: str) -> int:
        """Run jobs/train.py as a job and return the exit code of `ray job submit`."""
        job = ["--submission-id", job_id, "--working-dir", str(REPOSITORY), "--", "python", "jobs/train.py"]
        return self._ray("submit", *job, *overrides).returncode

    def begin(self, job_id: str, *overrides: str) -> None:
        """Start jobs/train.py as a job and do not wait for it."""
        job = ["--no-wait", "--submission-id", job_id, "--working-dir", str(REPOSITORY), "--", "python"]
        begun = self._ray("submit", *job, "jobs/train.py", *overrides)
        assert begun.returncode == 0, begun.stderr

    def stop(self, job_id: str) -> None:
        """What `ray job stop` does, which takes seconds to come up: ask for it, and wait until the job has ended."""
        self._request(f"/api/jobs/{job_id}/stop", "POST")
        assert self.ended(job_id) == "STOPPED"

    def ended(self, job_id: str) -> str:
        """Wait until a job has ended, and say how."""
        deadline = time.monotonic() + 300
        while True:
            job = json.loads(self._request(f"/api/jobs/{job_id}", "GET"))
            if job["status"] not in ("PENDING", "RUNNING"):
                print(job_id, job["status"], job.get("message"))
                return str(job["status"])
            assert time.monotonic() < deadline, self.logs(job_id)
            time.sleep(0.2)

    def _request(self, path: str, method: str) -> bytes:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=240) as answer:
            content: bytes = answer.read()
        return content

    def logs(self, job_id: str) -> str:
        """Everything the job wrote."""
        return self._ray("logs", job_id).stdout

    def jobs_api(self, token: str | None) -> int:
        """Ask for the list of jobs; the HTTP status."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=240) as answer:
            return answer.status

    def uploaded(self) -> set[str]:
        """Names at the top of the working directories that were uploaded."""
        packages = self.temp_dir.glob("session_*/runtime_resources/working_dir_files/*/*")
        return {path.name for path in packages}

    def _ray(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", verb, "--address", self.dashboard, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets live below it, and their paths may have 107 characters: pytest's own folders are too deep.
    temp_dir = Path(tempfile.mkdtemp(prefix="dm", dir="/tmp" if Path("/tmp").is_dir() else None))
    gcs, dashboard, client, agent = _free_ports(4)
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(("RAY_", "MLFLOW_"))}
    environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "120"  # see cluster.yaml
    # A job's `python` is whichever comes first for the head.
    environment["PATH"] = os.pathsep.join([str(BIN), environment.get("PATH", "")])
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"]
    command += ["--temp-dir", str(temp_dir), "--object-store-memory", str(256 << 20)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    # Another Ray on this machine has the ports that Ray prefers.
    command += ["--port", str(gcs), "--ray-client-server-port", str(client)]
    command += ["--dashboard-agent-listen-port", str(agent)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    with (temp_dir / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        started = Head(f"http://127.0.0.1:{dashboard}", temp_dir, environment)
        _wait_for(started, process)
        yield started
    finally:
        _stop(process, temp_dir)
        shutil.rmtree(temp_dir, ignore_errors=True)


def test_a_submitted_job_trains_and_its_run_is_tracked(head: Head, tmp_path: Path) -> None:
    paths = [f"output_dir={tmp_path}/outputs", f"data.cache_dir={tmp_path}/cache"]
    settings = ["experiment=quickstart", "debug=tiny", "data.max_classes=60", "name=submitted"]
    code = head.submit("train", *settings, *paths)
    logs = head.logs("train")
    assert code == 0, logs

    assert "Traceback" not in logs, logs
    result = json.loads(logs.strip().splitlines()[-1])
    assert result["step"] == 20
    assert result["run_dir"] == f"{tmp_path}/outputs/submitted"
    assert (Path(result["checkpoint"]) / "manifest.json").is_file()
    assert Path(result["report"]).is_file()

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "submitted"
    assert run.data.params["train.steps"] == "20"
    assert run.data.metrics["eval/recall_at_1"] == pytest.approx(result["metrics"]["recall_at_1"])
    losses = client.get_metric_history(result["run_id"], "train/loss")
    assert [point.step for point in losses] == list(range(1, 21))

    assert {"conf", "distmetric", "jobs"} <= head.uploaded()
    assert not head.uploaded() & {".git", ".venv", "outputs", "data", ".mypy_cache", ".pytest_cache"}


def uninterrupted(replica: Replica, cache: Path, run_dir: Path) -> tuple[list[np.ndarray], dict[int, float]]:
    worker, _, tracker = run_once(tiny_config(cache, *STOPPED), run_dir, replica=replica)
    return [tensor.numpy() for tensor in worker.embedder.state_dict().values()], tracker.series("train/loss")


STEPS = 1500  # so many that a stop, which takes a second or two to arrive, comes well before the last one
STOPPED = (
    *(f"train.steps={STEPS}", f"eval.every_steps={STEPS}", f"checkpoint.every_steps={STEPS}"),
    "train.log_every=3",
)


@pytest.mark.timeout(1800)
def test_a_job_that_is_stopped_has_saved_and_goes_on_as_if_it_never_was(
    head: Head, glyph_cache: Path, tmp_path: Path
) -> None:
    weights, losses = run_ranks(1, uninterrupted, glyph_cache, tmp_path / "whole", timeout=600)[0]
    run_dir = tmp_path / "stopped"
    paths = [f"output_dir={tmp_path}", f"data.cache_dir={glyph_cache}", "name=stopped"]
    tiny = ["debug=tiny", *FEW_GLYPHS, "model.widths=[16, 16, 16]", "model.embedding_dim=32"]
    head.begin("stopped", *tiny, *STOPPED, *paths)
    deadline = time.monotonic() + 400
    while not any(step > 5 for step, _ in read_history(str(run_dir)).get("train/loss", [])):
        assert time.monotonic() < deadline, head.logs("stopped")
        time.sleep(0.1)
    head.stop("stopped")

    step = steps_saved(run_dir)
    assert 5 < step < STEPS, head.logs("stopped")
    said = f"stopped at step {step} on SIGTERM: checkpoint saved; go on with resume={run_dir}"
    logs = head.logs("stopped")
    assert said in logs.splitlines()
    assert "Traceback" not in logs
    run = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(run["tracking_uri"])
    found = client.get_run(run["run_id"])
    assert (found.info.status, found.data.tags["distmetric.error"]) == ("KILLED", said)

    head.begin("goes-on", f"resume={run_dir}")
    assert head.ended("goes-on") == "SUCCEEDED", head.logs("goes-on")
    saved = read_checkpoint(f"{run_dir}/checkpoints/step_{STEPS:08d}").tensors("model").values()
    for ours, expected in zip(saved, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)
    found = client.get_run(run["run_id"])
    assert (found.info.status, found.data.tags.get("distmetric.error")) == ("FINISHED", None)
    history = client.get_metric_history(run["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
    assert {point.step: point.value for point in history} == losses


def test_a_mistyped_setting_fails_the_job_with_one_line(head: Head) -> None:
    code = head.submit("typo", "debug=tiny", "train.stpes=3")
    logs = head.logs("typo")
    assert code != 0
    assert "error: train.stpes is not a setting: did you mean train.steps?" in logs.splitlines()
    assert "Traceback" not in logs


def test_nobody_without_the_token_is_answered(head: Head) -> None:
    for token in (None, "0" * 64):
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            head.jobs_api(token)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_for(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Wait until the head takes jobs: its dashboard answers before the part of it that does."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, (head.temp_dir / "head.log").read_text()
        try:
            head.jobs_api(head.environment["RAY_AUTH_TOKEN"])
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError((head.temp_dir / "head.log").read_text())


def _stop(process: subprocess.Popen[bytes], temp_dir: Path) -> None:
    """End the head and what it started, and nothing else: `ray stop` would end every Ray on the machine."""
    started = _processes_of(temp_dir)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in psutil.wait_procs(started, timeout=10)[1]:
        one.kill()


def _processes_of(temp_dir: Path) -> list[psutil.Process]:
    """All that has the folder on its command line, with their children: workers rewrite theirs."""
    found: set[psutil.Process] = set()
    for one in psutil.process_iter(["cmdline"]):
        if any(str(temp_dir) in argument for argument in one.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {one, *one.children(recursive=True)}
    return list(found)
