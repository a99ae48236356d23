"""Machines that are not up to it, for real: a disk that fills up under a run, and a cluster that is too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mlflow
import pytest

from disks import disk_of, fill
from distmetric.training.checkpoint import CheckpointStore
from drivers import REPOSITORY, end, start, steps_saved, wait_for
from runs import FEW_GLYPHS

SETTINGS = (
    *("debug=tiny", *FEW_GLYPHS, "model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=1000"),
    *("eval.every_steps=1000", "checkpoint.every_steps=20", "report=false", "trainer.max_failures=3"),
)


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_disk_that_fills_up_under_a_run_ends_it_truthfully_and_it_goes_on(glyph_cache, tmp_path) -> None:
    uri, log = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "log"
    with disk_of(tmp_path / "disk", 8192) as disk:
        run_dir = disk / "run"
        places = (f"output_dir={disk}", "name=run", f"data.cache_dir={glyph_cache}", f"tracking.uri={uri}")
        driver = start(*SETTINGS, *places, log=log)
        try:
            wait_for(lambda: steps_saved(run_dir) >= 20, driver, log)
            ballast = fill(disk)
            output, _ = driver.communicate(timeout=600)
        finally:
            end(driver)
        told = log.read_text()
        assert driver.returncode == 3, told[-3000:]
        assert output == ""
        assert len(errors_in(told)) == 1, told[-3000:]
        assert "No space left on device" in errors_in(told)[0]
        assert "resume" in errors_in(told)[0]
        assert "Traceback" not in told
        stood_at = CheckpointStore(f"{run_dir}/checkpoints").latest().step
        assert stood_at >= 20
        assert stood_at % 20 == 0
        run = json.loads((run_dir / "run.json").read_text())
        client = mlflow.MlflowClient(uri)
        found = client.get_run(run["run_id"])
        assert found.info.status == "FAILED"
        assert "No space left on device" in found.data.tags["distmetric.error"]

        ballast.unlink()
        resumed = start(f"resume={run_dir}", f"train.steps={stood_at + 20}", log=log)
        try:
            output, _ = resumed.communicate(timeout=600)
        finally:
            end(resumed)
        assert resumed.returncode == 0, log.read_text()[-3000:]
        assert json.loads(output.strip().splitlines()[-1])["step"] == stood_at + 20
        assert client.get_run(run["run_id"]).info.status == "FINISHED"
        history = client.get_metric_history(run["run_id"], "train/loss")
        assert [point.step for point in history] == list(range(1, stood_at + 21))


TOO_SMALL = """
import sys
import ray
from distmetric.cluster.fit import fit
from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.schema import Config

ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", namespace="distmetric")
sys.exit(run_command("config", "", lambda overrides: fit(load("config", Config, overrides)).to_dict()))
"""


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_cluster_that_is_too_small_is_told_in_one_line(glyph_cache, tmp_path) -> None:
    overrides = (
        *SETTINGS,
        *(f"output_dir={tmp_path}", "name=run", f"data.cache_dir={glyph_cache}", "tracking=none"),
        *("trainer.num_workers=2", "trainer.start_timeout_s=5"),
    )
    done = subprocess.run(
        [sys.executable, "-c", TOO_SMALL, *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 3, done.stderr[-3000:]
    assert len(errors_in(done.stderr)) == 1
    assert errors_in(done.stderr)[0] == (
        "error: trainer.num_workers=2 workers with 1 CPUs each were not placed within trainer.start_timeout_s=5: the "
        "cluster is too small or busy; set fewer workers or wait longer"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()
