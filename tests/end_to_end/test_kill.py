"""Killed for real, on real Ray: one worker, then everything; the run ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest

from distmetric.distributed import Replica
from distmetric.training.checkpoint import read_checkpoint
from processes import run_ranks
from runs import FEW_GLYPHS, run_once, tiny_config

REPOSITORY = Path(__file__).parents[2]
SETTINGS = (
    "debug=two_ranks",
    *FEW_GLYPHS,
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    "train.steps=240",
    "eval.every_steps=120",
    "checkpoint.every_steps=10",
)


def start(*overrides: str, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "jobs/train.py", *overrides],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def wait_for(
    condition: Callable[[], bool], driver: subprocess.Popen[str], log: Path, seconds: float = 90
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"the run ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"waited too long:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def steps_saved(run_dir: Path) -> int:
    found = [
        int(path.parent.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/*/manifest.json")
    ]
    return max(found, default=0)


def descendants(driver: subprocess.Popen[str], name: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def uninterrupted(replica: Replica, cache: Path, run_dir: Path) -> tuple[list[np.ndarray], dict[int, float]]:
    worker, _, tracker = run_once(tiny_config(cache, *SETTINGS), run_dir, replica=replica)
    weights = [tensor.numpy() for tensor in worker.embedder.state_dict().values()]
    return weights, tracker.series("train/loss")


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_killing_a_worker_and_then_everything_changes_nothing(glyph_cache, tmp_path) -> None:
    weights, losses = run_ranks(2, uninterrupted, glyph_cache, tmp_path / "whole", timeout=120)[0]
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    overrides = (*SETTINGS, f"output_dir={tmp_path}", "name=killed", f"data.cache_dir={glyph_cache}")
    driver = start(*overrides, log=log)
    try:
        wait_for(lambda: steps_saved(run_dir) >= 30, driver, log)
        before = steps_saved(run_dir)
        kill(descendants(driver, "RayTrainWorker")[:1])
        wait_for(lambda: steps_saved(run_dir) >= before + 30, driver, log)
        everything = [*descendants(driver), psutil.Process(driver.pid)]
    finally:
        kill([*descendants(driver), psutil.Process(driver.pid)])
        driver.wait()
    psutil.wait_procs(everything, timeout=20)
    stood_at = steps_saved(run_dir)
    assert stood_at < 240

    resumed = start(f"resume={run_dir}", log=log)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, log.read_text()[-3000:]
    result = json.loads(output.strip().splitlines()[-1])
    first = json.loads((run_dir / "run.json").read_text())
    assert (result["step"], result["run_id"]) == (240, first["run_id"])
    assert Path(result["report"]).stat().st_size > 10_000

    saved = read_checkpoint(str(run_dir / "checkpoints" / "step_00000240")).tensors("model").values()
    for ours, expected in zip(saved, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)
    client = mlflow.MlflowClient(first["tracking_uri"])
    assert client.get_run(first["run_id"]).info.status == "FINISHED"
    history = client.get_metric_history(first["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, 241))
    assert {point.step: point.value for point in history} == losses
