"""The same training without any fault: in processes of its own, with the rounds that the other one has noted."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.distributed.replica import join_from_environment, leave
from distmetric.errors import ResourceError
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.source import Rows, Weights
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracker import NullTracker, Tracker
from distmetric.training.loop import train
from distmetric.training.stop import Wish
from distmetric.training.worker import Worker


class NotedRounds:
    """A `SnapshotSource` that has nothing new: every round is planned from the snapshot that was noted for it."""

    def push(self, step: int, rows: Rows, embeddings: Tensor) -> None:
        """Nothing: snapshots are there."""

    def push_weights(self, step: int, weights: Callable[[], Weights]) -> None:
        """Nothing: snapshots are there."""

    def stale_rows(self) -> Rows:
        """None."""
        return np.empty(0, dtype=np.int64)

    def newest(self) -> int:
        """None of its own."""
        return 0

    def snapshot(self, version: int) -> NeighborSnapshot | None:  # noqa: ARG002
        """None of its own: the run's store has them."""
        return None

    def metrics(self) -> dict[str, float]:
        """Nothing to count."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


class StopAt:
    """A `StopRequest` for a certain step: the reference is asked to stop where the other run was.

    Args:
        step: Steps that are to be done.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self.worker: Worker | None = None

    def wanted(self) -> Wish:
        """See `StopRequest.wanted`."""
        worker = self.worker
        if worker is None:
            return ""
        # Several ranks hear of it when they are asked the next time, which in an evaluation is at the same step.
        ahead = worker.replica.world_size > 1 and not worker.is_evaluating
        return "stop" if worker.step + ahead >= self._step else ""

    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return f"step {self._step}"


def train_reference(
    config: dict[str, Any], steps: int, run_dir: Path, index: Path, timeout_s: float
) -> float:
    """Train without Ray and without interruption, on as many processes of this machine as the run has workers.

    Args:
        config: Of the run, as plain containers.
        steps: How many of its steps to train.
        run_dir: Folder to be made for the reference: checkpoints, and the history that its tracker keeps.
        index: Folder with the snapshots and notes of all rounds.
        timeout_s: After so many seconds the processes are killed.

    Returns:
        Seconds that it took.

    Raises:
        ResourceError: If it fails, or takes longer.
    """
    started = time.monotonic()
    shutil.copytree(index, run_dir / "index")
    world_size = decode(Config, config).trainer.min_workers
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(rank, world_size, port, config, steps, str(run_dir)), daemon=True)
        for rank in range(world_size)
    ]
    try:
        for rank in ranks:
            rank.start()
        while None in (codes := [rank.exitcode for rank in ranks]) or any(codes):
            if any(codes) or time.monotonic() > started + timeout_s:
                raise ResourceError(f"the reference of the soak did not come to its end: exit codes {codes}")
            time.sleep(0.1)
        return time.monotonic() - started
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(rank: int, world_size: int, port: int, config: dict[str, Any], steps: int, run_dir: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    decoded = decode(Config, config)
    torch.set_num_threads(max(1, int(decoded.trainer.cpus_per_worker)))
    replica = join_from_environment(decoded.trainer.timeout_s)
    tracker: Tracker = JournalTracker(run_dir) if replica.is_main else NullTracker()
    try:
        stop, cpu = StopAt(steps), torch.device("cpu")
        stop.worker = Worker(decoded, run_dir, tracker, replica, cpu, NotedRounds(), stop=stop)
        train(stop.worker)
    finally:
        tracker.close()
        leave()
