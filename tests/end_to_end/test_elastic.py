"""A machine is lost and another one comes: training goes on with fewer workers and then with more, as if alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from distmetric.distributed import Replica
from distmetric.training.checkpoint import read_checkpoint
from drivers import descendants, kill, running, start, steps_saved, wait_for
from processes import run_ranks
from runs import FEW_GLYPHS, run_once, tiny_config

STEPS = 800
SETTINGS = (
    *("debug=tiny", *FEW_GLYPHS, "model.widths=[8, 8]", "model.embedding_dim=16"),
    # Class vectors that are divided anew whenever the number of workers changes.
    *("loss=cosface", "loss.scale=8", "loss.sharded=true"),
    *("model.norm=sync_batch", "train.precision=float64", "optim=sgd", "optim.lr=0.01"),
    # 15 rows for two workers are 8 and 7.
    *("sampler.classes_per_batch=5", "sampler.samples_per_class=3"),
    *(f"train.steps={STEPS}", f"eval.every_steps={STEPS}", "checkpoint.every_steps=20"),
)


def undisturbed(replica: Replica, cache: Path, run_dir: Path) -> tuple[list[np.ndarray], dict[int, float]]:
    worker, _, tracker = run_once(tiny_config(cache, *SETTINGS), run_dir, replica=replica)
    return [tensor.numpy() for tensor in worker.embedder.state_dict().values()], tracker.series("train/loss")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, and two machines with a CPU each."""
    # Ray's own patience with a machine that is silent is a quarter of a minute.
    impatient = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": impatient}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            started.add_node(num_cpus=1)
        yield started
    finally:
        started.shutdown()


def started_by(machine: Node) -> list[psutil.Process]:
    """Its raylet, and all that this one has started."""
    raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)
    return [*raylet.children(recursive=True), raylet]


def workers_of(machine: Node) -> list[psutil.Process]:
    """The processes on a machine that train."""
    return running(started_by(machine), "RayTrainWorker")


@contextmanager
def asleep(processes: list[psutil.Process]) -> Iterator[None]:
    """Stop processes during a block."""
    assert processes, "nobody trains"
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def lose(cluster: Cluster, machine: Node) -> None:
    """Take a machine away without a word, by SIGKILL."""
    kill(started_by(machine))
    cluster.worker_nodes.remove(machine)
    machine.kill_all_processes(check_alive=False, allow_graceful=False)


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_lost_machine_is_done_without_until_there_is_another(
    glyph_cache: Path, tmp_path: Path, cluster: Cluster
) -> None:
    weights, losses = run_ranks(1, undisturbed, glyph_cache, tmp_path / "whole", timeout=600)[0]
    run_dir, log = tmp_path / "elastic", tmp_path / "log"
    driver = start(
        *SETTINGS,
        *("trainer.num_workers=[1,2]", "trainer.resize_check_s=0.5", "trainer.max_failures=0"),
        *(f"trainer.address={cluster.address}", f"output_dir={tmp_path}", "name=elastic"),
        *(f"data.cache_dir={glyph_cache}", "report=false"),
        log=log,
    )

    try:
        wait_for(lambda: steps_saved(run_dir) >= 40, driver, log)
        lost, left = cluster.worker_nodes
        lose(cluster, lost)
        stood = steps_saved(run_dir)
        wait_for(lambda: "were lost: going on with 1 of 2 workers from" in log.read_text(), driver, log)
        wait_for(lambda: steps_saved(run_dir) > stood, driver, log)
        with asleep(workers_of(left)):  # so that it is not ready before the new machine is
            cluster.add_node(num_cpus=1)
        wait_for(lambda: "room for more workers: going on with 2 of 2" in log.read_text(), driver, log)
        output, _ = driver.communicate(timeout=600)
    finally:
        kill([*descendants(driver), psutil.Process(driver.pid)] if driver.poll() is None else [])
        driver.wait()
    assert driver.returncode == 0, log.read_text()[-3000:]
    result = json.loads(output.strip().splitlines()[-1])
    assert result["step"] == STEPS

    saved = read_checkpoint(f"{run_dir}/checkpoints/step_{STEPS:08d}").tensors("model").values()
    for ours, expected in zip(saved, weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-9)
    client = mlflow.MlflowClient(result["tracking_uri"])
    history = client.get_metric_history(result["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([point.value for point in history], list(losses.values()), rtol=0, atol=1e-9)
    workers = [point.value for point in client.get_metric_history(result["run_id"], "train/world_size")]
    changes = [workers[0], *(now for before, now in pairwise(workers) if now != before)]
    assert changes == [2, 1, 2]
