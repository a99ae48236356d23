"""Asked to stop for real, on real Ray: by signals, by a machine that is to go, by a mistake that one worker meets."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from distmetric.data.catalog_writer import CatalogWriter
from distmetric.distributed import Replica
from distmetric.tracking.journal import read_history
from distmetric.training.checkpoint import CheckpointStore, read_checkpoint
from drivers import descendants, end, start, steps_saved, wait_for
from image_sources import png
from processes import run_ranks
from runs import FEW_GLYPHS, run_once, tiny_config

STEPS = 1500  # so many that what is asked for, which takes a second or two to arrive, comes well before the last one
WAIT_S = 300.0
# No checkpoint is due before the last step: what is gone on from is what was asked for.
SETTINGS = (
    *("debug=tiny", "trainer.num_workers=2", *FEW_GLYPHS, "model.widths=[8, 8]", "model.embedding_dim=16"),
    *(f"train.steps={STEPS}", f"eval.every_steps={STEPS}", f"checkpoint.every_steps={STEPS}"),
    "train.log_every=3",
)

pytestmark = pytest.mark.ray


def undisturbed(replica: Replica, cache: Path, run_dir: Path) -> tuple[list[np.ndarray], dict[int, float]]:
    worker, _, tracker = run_once(tiny_config(cache, *SETTINGS), run_dir, replica=replica)
    return [tensor.numpy() for tensor in worker.embedder.state_dict().values()], tracker.series("train/loss")


def steps_told(run_dir: Path) -> int:
    """The last step whose loss was logged."""
    return max((step for step, _ in read_history(str(run_dir)).get("train/loss", [])), default=0)


def told_by_mlflow(run_dir: Path) -> tuple[str, str | None, dict[int, float]]:
    """Status, reason, and the loss by step."""
    run = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(run["tracking_uri"])
    found = client.get_run(run["run_id"])
    losses = client.get_metric_history(run["run_id"], "train/loss")
    assert len({point.step for point in losses}) == len(losses)
    reason = found.data.tags.get("distmetric.error")
    return found.info.status, reason, {point.step: point.value for point in losses}


def assert_ended_as(run_dir: Path, weights: list[np.ndarray], losses: dict[int, float]) -> None:
    saved = read_checkpoint(f"{run_dir}/checkpoints/step_{STEPS:08d}").tensors("model").values()
    for ours, expected in zip(saved, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)
    assert told_by_mlflow(run_dir) == ("FINISHED", None, losses)


@pytest.mark.timeout(1800)
def test_a_run_that_is_stopped_twice_ends_as_one_that_never_was(glyph_cache, tmp_path) -> None:
    weights, losses = run_ranks(2, undisturbed, glyph_cache, tmp_path / "whole", timeout=WAIT_S)[0]
    run_dir, log = tmp_path / "stopped", tmp_path / "log"
    driver = start(
        *SETTINGS, f"output_dir={tmp_path}", "name=stopped", f"data.cache_dir={glyph_cache}", log=log
    )
    try:
        wait_for(lambda: steps_told(run_dir) > 5, driver, log, WAIT_S)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=600)
    finally:
        end(driver)
    step = steps_saved(run_dir)
    assert 5 < step < STEPS
    said = f"stopped at step {step} on SIGTERM: checkpoint saved; go on with resume={run_dir}"
    assert (driver.returncode, output) == (5, ""), log.read_text()[-3000:]
    assert log.read_text().splitlines()[-1] == said
    assert "Traceback" not in log.read_text()
    status, reason, told = told_by_mlflow(run_dir)
    assert (status, reason) == ("KILLED", said)
    assert told == {at: losses[at] for at in range(1, step + 1)}

    driver = start(f"resume={run_dir}", log=log)
    try:
        wait_for(lambda: steps_told(run_dir) > step + 5, driver, log, WAIT_S)
        left = descendants(driver, "RayTrainWorker")
        for _ in range(2):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.2)
        driver.communicate(timeout=600)
        assert driver.returncode == 128 + signal.SIGINT, log.read_text()[-3000:]
        # Nobody is left who trains: they end by themselves, at the latest when the run is somebody else's.
        wait_until_gone(left)
    finally:
        end(driver)
    assert "Traceback" not in log.read_text()
    assert steps_saved(run_dir) in range(step, STEPS)
    status, reason, _ = told_by_mlflow(run_dir)
    assert (status, reason) == ("KILLED", f"asked to stop on SIGINT; resume={run_dir}")

    driver = start(f"resume={run_dir}", log=log)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, log.read_text()[-3000:]
    assert json.loads(output.strip().splitlines()[-1])["step"] == STEPS
    assert_ended_as(run_dir, weights, losses)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 240
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.1)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, and two machines with a CPU each."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            started.add_node(num_cpus=1)
        yield started
    finally:
        started.shutdown()


@pytest.mark.timeout(1800)
def test_a_run_goes_on_from_where_it_stood_when_a_machine_was_announced_to_go(
    cluster, glyph_cache, tmp_path
) -> None:
    weights, losses = run_ranks(2, undisturbed, glyph_cache, tmp_path / "whole", timeout=WAIT_S)[0]
    run_dir, log = tmp_path / "moved", tmp_path / "log"
    driver = start(
        *(*SETTINGS, f"output_dir={tmp_path}", "name=moved", f"data.cache_dir={glyph_cache}"),
        f"trainer.address={cluster.address}",
        log=log,
    )
    try:
        wait_for(lambda: steps_told(run_dir) > 5, driver, log, WAIT_S)
        going = next(iter(cluster.worker_nodes))
        accepted, why = GcsClient(address=cluster.address).drain_node(
            *(going.node_id, autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot"),
            int((time.time() + 600) * 1000),
        )
        assert accepted, why
        wait_for(lambda: steps_saved(run_dir) > 0, driver, log, WAIT_S)
        kept = steps_saved(run_dir)
        assert kept < STEPS
        cluster.remove_node(going, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        output, _ = driver.communicate(timeout=600)
    finally:
        end(driver)
    assert driver.returncode == 0, log.read_text()[-3000:]
    assert json.loads(output.strip().splitlines()[-1])["step"] == STEPS
    assert "is to be taken away in " in log.read_text()
    assert kept in CheckpointStore(f"{run_dir}/checkpoints").steps()
    assert_ended_as(run_dir, weights, losses)


@pytest.mark.timeout(1800)
def test_a_mistake_that_one_worker_meets_ends_the_run_with_its_line(tmp_path) -> None:
    with CatalogWriter(tmp_path / "one_bad.arrow") as writer:
        for row in range(96):
            split = "test" if row % 4 == 3 else "train"
            image = png(row) if row != 40 else png(row)[:50]
            name = f"{row // 8 % 6}{split}"
            writer.add(image, name, group=name, path=f"in/{row}.png", width=7, height=6, split=split)
    log = tmp_path / "log"
    driver = start(
        *("debug=tiny", "trainer.num_workers=2", "data=catalog", f"data.path={tmp_path}/one_bad.arrow"),
        # Decoded when they are needed, so that one of the workers needs it first; the other waits for it in vain.
        *(
            "data.memory_limit_gib=0",
            "trainer.timeout_s=600",
            "trainer.max_failures=3",
            "model.widths=[8, 8]",
        ),
        *("sampler.classes_per_batch=3", "model.image_size=8", "train.steps=100", "name=one_bad"),
        f"output_dir={tmp_path}",
        log=log,
    )
    try:
        driver.communicate(timeout=600)
    finally:
        end(driver)
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert driver.returncode == 2, log.read_text()[-3000:]
    assert len(errors) == 1
    assert "in/40.png" in errors[0]
    assert "Traceback" not in log.read_text()
    assert "closed by peer" not in log.read_text()
    status, reason, _ = told_by_mlflow(tmp_path / "one_bad")
    assert (status, f"error: {reason}") == ("FAILED", errors[0])
