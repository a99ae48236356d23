"""Killed for real, on real Ray, at steps drawn at random: a worker, the driver alone, everything. Nothing changes."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from distmetric.benchmarks.soak.equality import CLOCKS
from distmetric.distributed import Replica
from distmetric.tracking.journal import read_history
from drivers import descendants, kill, running, start, steps_saved, wait_for
from kills import Journal, assert_same_state, journaled, kill_seed, saved_state
from processes import run_ranks
from runs import FEW_GLYPHS, ListTracker, run_once, tiny_config

STEPS, SAVED_EVERY = 240, 10
SETTINGS = (
    "debug=two_ranks",
    *FEW_GLYPHS,
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    *("loss=weighted_sum", "loss@loss.parts.triplet.loss=proxy_anchor"),
    *("loss@loss.parts.contrastive.loss=cross_batch_memory", "loss.parts.contrastive.loss.memory_size=256"),
    f"train.steps={STEPS}",
    "eval.every_steps=120",
    f"checkpoint.every_steps={SAVED_EVERY}",
)


def uninterrupted(replica: Replica, cache: Path, run_dir: Path, journal: Path) -> None:
    tracker = Journal(journal) if replica.is_main else ListTracker()
    run_once(tiny_config(cache, *SETTINGS), run_dir, tracker, replica)


def tracked_history(run_dir: Path) -> tuple[str, dict[tuple[str, int], set[float]]]:
    """How MLflow has the run: its status, and (metric, step) -> value; no clocks."""
    run = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(run["tracking_uri"])
    found = client.get_run(run["run_id"])
    history: dict[tuple[str, int], set[float]] = {}
    for name in found.data.metrics:
        if name.startswith((*CLOCKS, "best/")):
            continue
        for point in client.get_metric_history(run["run_id"], name):
            assert (name, point.step) not in history, f"{name} of step {point.step} is there twice"
            history[name, point.step] = {point.value}
    return found.info.status, history


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_killing_a_worker_the_driver_and_then_everything_changes_nothing(glyph_cache, tmp_path) -> None:
    run_ranks(2, uninterrupted, glyph_cache, tmp_path / "whole", tmp_path / "whole.jsonl", timeout=600)
    run_dir, log, draw = tmp_path / "killed", tmp_path / "log", random.Random(kill_seed())
    places = [draw.randrange(20, 60), draw.randrange(90, 120), draw.randrange(150, 190)]
    started: list[subprocess.Popen[str]] = []
    orphans: list[psutil.Process] = []

    def go_on(*overrides: str) -> subprocess.Popen[str]:
        started.append(start(*overrides, log=log))
        return started[-1]

    def reach(step: int) -> None:
        wait_for(lambda: steps_saved(run_dir) >= step // SAVED_EVERY * SAVED_EVERY, started[-1], log)
        time.sleep(draw.random() * 0.3)
        print(f"drawn: step {step}; saved: step {steps_saved(run_dir)}")

    try:
        go_on(*SETTINGS, f"output_dir={tmp_path}", "name=killed", f"data.cache_dir={glyph_cache}")
        reach(places[0])
        kill([draw.choice(descendants(started[-1], "RayTrainWorker"))])
        reach(places[1])
        orphans = descendants(started[-1])
        kill([psutil.Process(started[-1].pid)])
        # At once, while the workers without a driver still write checkpoints.
        go_on(f"resume={run_dir}")
        reach(places[2])
        kill([*descendants(started[-1]), psutil.Process(started[-1].pid)])
        stood_at = steps_saved(run_dir)
        output, _ = go_on(f"resume={run_dir}").communicate(timeout=600)
    finally:
        for driver in started:
            if driver.poll() is None:
                kill([*descendants(driver), psutil.Process(driver.pid)])
            driver.wait()
        left = running(orphans, "RayTrainWorker")
        kill(orphans)
    assert stood_at < STEPS
    assert started[-1].returncode == 0, log.read_text()[-3000:]
    # What is left of a Ray without a driver are helpers that look for it, and none that trains.
    assert not left
    result = json.loads(output.strip().splitlines()[-1])
    assert (result["step"], result["run_id"]) == (
        STEPS,
        json.loads((run_dir / "run.json").read_text())["run_id"],
    )
    assert Path(result["report"]).stat().st_size > 10_000
    assert_same_state(saved_state(run_dir, STEPS), saved_state(tmp_path / "whole", STEPS))
    status, history = tracked_history(run_dir)
    assert status == "FINISHED"
    assert history == journaled(tmp_path / "whole.jsonl")
    # Told by each driver's first workers, not by those that replace lost ones.
    starts = [step for step, _ in read_history(str(run_dir))["time/startup_total"]]
    assert starts[0] == 1
    assert len(starts) in (2, 3)
