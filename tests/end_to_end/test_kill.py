"""Killed for real, on real Ray: one worker, then everything; the run ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest

from distmetric.distributed import Replica
from distmetric.training.checkpoint import read_checkpoint
from drivers import descendants, kill, start, steps_saved, wait_for
from processes import run_ranks
from runs import FEW_GLYPHS, run_once, tiny_config

SETTINGS = (
    "debug=two_ranks",
    *FEW_GLYPHS,
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    "train.steps=240",
    "eval.every_steps=120",
    "checkpoint.every_steps=10",
)


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
