"""What Ray Train runs in each worker process."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch
import torch

from distmetric import errors
from distmetric.cluster.index_client import IndexClient
from distmetric.cluster.index_messages import IndexHandles
from distmetric.cluster.index_start import TrainingLabels
from distmetric.cluster.progress_board import RemoteProgress
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.tracking.tracker import NullTracker, Tracker
from distmetric.training.loop import train
from distmetric.training.worker import Worker


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; Ray calls it again, in a new process, when workers were lost.

    Args:
        payload: config, run_dir, tracking_uri and run_id, all plain, the handle of the progress board, and the handles
            of the index or None.

    Returns:
        The `TrainResult` as a dict, or the user's mistake under "error": raised, it would be tried again.
    """
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    config = decode(Config, payload["config"])
    torch.set_num_threads(max(1, int(config.trainer.cpus_per_worker)))
    replica = Replica.current()
    tracker = _tracker(payload) if replica.is_main else NullTracker()
    source = None
    try:
        source = _source(config, payload["index"], replica)
        progress = RemoteProgress(payload["board"]) if replica.is_main else None
        device = ray.train.torch.get_device()
        worker = Worker(config, payload["run_dir"], tracker, replica, device, source, progress)
        return asdict(train(worker))
    except errors.UserError as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        if source is not None:
            source.close()
        tracker.close()


def _source(config: Config, handles: IndexHandles | None, replica: Replica) -> IndexClient | None:
    if handles is None:
        return None
    if len(handles.holders) == 1:
        return IndexClient(handles, replica.rank)
    return IndexClient(handles, replica.rank, TrainingLabels(config.data)())


def _tracker(payload: dict[str, Any]) -> Tracker:
    if payload["run_id"] is None:
        return NullTracker()
    from distmetric.tracking.mlflow_tracker import MLflowTracker

    system_metrics = payload["config"]["tracking"].get("system_metrics", False)
    return MLflowTracker(payload["tracking_uri"], payload["run_id"], system_metrics)
