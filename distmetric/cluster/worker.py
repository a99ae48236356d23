"""What Ray Train runs in each worker process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch
import torch

from distmetric.cluster.failures import told_failures
from distmetric.cluster.index_client import IndexClient
from distmetric.cluster.index_messages import IndexHandles
from distmetric.cluster.index_start import TrainingLabels
from distmetric.cluster.progress_board import RemoteProgress
from distmetric.cluster.stop import RemoteRequest
from distmetric.config.decode import decode
from distmetric.config.schema import Config, MLflowConfig
from distmetric.distributed.replica import Replica
from distmetric.startup import StartUp
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracker import NullTracker, Tracker
from distmetric.training.loop import train
from distmetric.training.stop import NoRequest
from distmetric.training.worker import Worker


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; Ray calls it again, in a new process, when workers were lost.

    Args:
        payload: config, run_dir, group (number of the group of workers), owner (token of the driver's claim) and
            startup (the driver's marks, and the step that the run stood at), plain, the handle of the progress board,
            and the handles of the index or None.

    Returns:
        The `TrainResult` as a dict.
    """
    startup = StartUp.taken_over(payload["startup"])
    if startup is not None:
        startup.mark("workers")
    logging.getLogger().setLevel(logging.WARNING)  # which Ray Train has set to tell every library's progress
    # Why a worker fails is told once, by the driver. Not in `quiet_ray`: Ray Train sets its loggers up after that.
    logging.getLogger("ray.train.v2._internal.util").setLevel(logging.CRITICAL)
    config = decode(Config, payload["config"])
    torch.set_num_threads(max(1, int(config.trainer.cpus_per_worker)))
    replica, board, group = Replica.current(), payload["board"], payload["group"]
    board.join.remote(group, replica.rank, ray.get_runtime_context().get_node_id())
    request = RemoteRequest(board, group) if replica.is_main else None
    workers: list[Worker] = []
    try:
        with (
            told_failures(lambda: workers[0].step if workers else -1),
            _tracker(config, payload["run_dir"], replica.is_main) as tracker,
            _source(config, payload["index"], replica) as source,
        ):
            progress = RemoteProgress(board) if replica.is_main else None
            device = ray.train.torch.get_device()
            workers.append(
                Worker(
                    *(config, payload["run_dir"], tracker, replica, device, source, progress),
                    owner=payload["owner"],
                    stop=request or NoRequest(),
                )
            )
            # Not again where this group replaces another one, which had reached a checkpoint.
            is_first = payload["group"] == 1 and workers[0].step == payload["startup"]["step"]
            if startup is not None and is_first:
                startup.mark("worker")
                workers[0].startup = startup
            result = train(workers[0])
        if request is not None:
            request.leave(result.step)
    finally:
        if request is not None:
            request.close()
    return asdict(result)


@contextmanager
def _source(config: Config, handles: IndexHandles | None, replica: Replica) -> Iterator[IndexClient | None]:
    """What speaks to the actors of the index, until the block ends."""
    if handles is None:
        yield None
        return
    labels = None
    if len(handles.holders) > 1:
        labels = TrainingLabels(config.data, config.model.frames_per_clip)()
    source = IndexClient(handles, replica.rank, labels)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def _tracker(config: Config, run_dir: str, is_main: bool) -> Iterator[Tracker]:
    """What rank 0 logs to, until the block ends; the driver brings it to the tracking server."""
    if not is_main:
        yield NullTracker()
        return
    tracker = JournalTracker(run_dir)
    load = None
    try:
        if isinstance(config.tracking, MLflowConfig) and config.tracking.system_metrics:
            from distmetric.tracking.mlflow_server import SystemLoad

            load = SystemLoad(tracker)
        yield tracker
    finally:
        if load is not None:
            load.close()
        tracker.close()
