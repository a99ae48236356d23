"""Start the actors of a run's index before its trainer, and end them after it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from distmetric.cluster.index_actor import NeighborIndexActor
from distmetric.cluster.index_messages import ActorHandle, IndexHandles, Labels
from distmetric.cluster.index_shard import IndexShardActor
from distmetric.cluster.session import NAMESPACE, cluster_address
from distmetric.cluster.sweep import SweepWorker
from distmetric.config.schema import Config, DataConfig
from distmetric.errors import ConfigError
from distmetric.index.config import InlineIndexConfig, StreamIndexConfig, SweepIndexConfig
from distmetric.samplers.hard_neighbors import HardNeighborSamplerConfig
from distmetric.training.claim import check_owner
from distmetric.training.run_data import open_data, training_labels
from distmetric.training.saved_model import config_dict

CALLS_PER_WORKER = 4
"""Calls that a training process may have waiting at an actor at once, with some to spare."""
_LEAST_CALLS = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingLabels:
    """Reads the training labels where they are needed, so that no large argument has to be kept for restarts.

    Args:
        data: The data that the run trains on.
        frames: Frames of a clip; None where it trains on images.
    """

    data: DataConfig
    frames: int | None = None

    def __call__(self) -> Labels:
        """(M,) labels of the training split, numbered 0..C-1."""
        return training_labels(open_data(self.data), self.data.train_split, self.frames).astype(np.int32)


def start_index(config: Config, run_dir: str, owner: str) -> IndexHandles | None:
    """Start the actors that a run's index asks for; nobody waits for them to be ready.

    Args:
        config: The whole run.
        run_dir: Its folder; snapshots go to `index` in it.
        owner: Identity of the driver's claim to the folder.

    Returns:
        Their handles, for `IndexClient`; None where the run needs none.

    Raises:
        ConfigError: If they do not fit the machine together with the workers.
    """
    sampler, index = config.sampler, config.index
    if not isinstance(sampler, HardNeighborSamplerConfig) or isinstance(index, InlineIndexConfig):
        return None
    index = _fitting(config, index)
    config = replace(config, index=index)
    name = f"{run_dir.rpartition('/')[2]}-{secrets.token_hex(3)}"
    labels = TrainingLabels(config.data, config.model.frames_per_clip)
    common = (labels, config.model.embedding_dim, index)
    by_rows = sampler.mode == "sample"
    options = {"num_cpus": index.num_cpus, "num_gpus": index.num_gpus, "max_concurrency": _calls(config)}
    shards = [f"{name}-shard-{place}" for place in range(index.shards if index.shards > 1 else 0)]
    sweepers = [
        f"{name}-sweep-{place}"
        for place in range(index.workers if isinstance(index, SweepIndexConfig) else 0)
    ]
    started: list[ActorHandle] = []
    try:
        for place, shard in enumerate(shards):
            share = (*common, by_rows, place, len(shards))
            started.append(start_actor(IndexShardActor, shard, share, **options))
        for place, sweeper in enumerate(sweepers):
            started.append(_start_sweeper(config, sweeper, place))
        args = (*common, f"{run_dir}/index", by_rows, shards, sweepers, partial(check_owner, run_dir, owner))
        started.append(start_actor(NeighborIndexActor, f"{name}-index", args, **options))
    except BaseException:
        _kill(started)
        raise
    holders = started[: len(shards)] or started[-1:]
    return IndexHandles(index, started[-1], tuple(holders), tuple(started[len(shards) : -1]))


def stop_index(handles: IndexHandles | None) -> None:
    """End the actors, whatever they are doing."""
    if handles is not None:
        _kill(handles.actors)


def start_actor(
    actor: type, name: str, args: tuple[Any, ...], *, num_cpus: float = 0, num_gpus: float = 0, **options: Any
) -> ActorHandle:
    """Start a named actor that is restarted for as long as the run lasts; its calls are not repeated by Ray.

    Args:
        actor: Its class.
        name: In the namespace of the session; nobody else may have it.
        args: Of its constructor, also when it is restarted.
        num_cpus: That Ray reserves for it.
        num_gpus: That Ray reserves for it.
        options: Further ones of Ray.
    """
    return (
        ray.remote(actor)
        .options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=-1,
            max_task_retries=0,
            **options,
        )
        .remote(*args)
    )


def _start_sweeper(config: Config, name: str, place: int) -> ActorHandle:
    index = config.index
    assert isinstance(index, SweepIndexConfig)
    args = (config_dict(config), place, index.workers)
    return start_actor(SweepWorker, name, args, num_cpus=index.worker_cpus, num_gpus=index.worker_gpus)


def _fitting(
    config: Config, index: StreamIndexConfig | SweepIndexConfig
) -> StreamIndexConfig | SweepIndexConfig:
    """The settings with what a cluster of this process has; a joined one may still grow, so there Ray decides.

    Raises:
        ConfigError: If there are too few CPUs.
    """
    trainer = config.trainer
    if cluster_address(trainer):
        return index
    have = ray.cluster_resources()
    actors = index.shards + (index.shards > 1)
    sweepers = index.workers if isinstance(index, SweepIndexConfig) else 0
    gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 0.0)
    gpus -= trainer.min_workers if trainer.use_gpu else 0
    if index.num_gpus * actors > gpus:
        log.warning(
            "index.num_gpus=%g for %d actors but %g GPUs are left: the index works on the CPU",
            *(index.num_gpus, actors, max(gpus, 0.0)),
        )
        index = replace(index, num_gpus=0.0)
    gpus -= index.num_gpus * actors
    if isinstance(index, SweepIndexConfig) and index.worker_gpus * sweepers > gpus:
        log.warning(
            "index.worker_gpus=%g for %d actors but %g GPUs are left: the sweep embeds on the CPU",
            *(index.worker_gpus, sweepers, max(gpus, 0.0)),
        )
        index = replace(index, worker_gpus=0.0)
    workers = trainer.min_workers * trainer.cpus_per_worker
    needed = workers + index.num_cpus * actors
    if isinstance(index, SweepIndexConfig):
        needed += index.worker_cpus * sweepers
    if needed > cpus and needed > workers:
        keys = f"index.num_cpus={index.num_cpus:g} for {actors} actors"
        if isinstance(index, SweepIndexConfig):
            keys += f" and index.worker_cpus={index.worker_cpus:g} for {sweepers}"
        raise ConfigError(
            f"{keys} beside the trainer's {trainer.min_workers} x {trainer.cpus_per_worker:g} need {needed:g} CPUs "
            f"but this machine has {cpus:g}: set them to 0, which shares the trainer's, or lower "
            "trainer.cpus_per_worker"
        )
    return index


def _calls(config: Config) -> int:
    return max(_LEAST_CALLS, CALLS_PER_WORKER * config.trainer.max_workers)


def _kill(actors: Sequence[ActorHandle]) -> None:
    for actor in actors:
        with suppress(Exception):  # it may be gone, or Ray may be
            ray.kill(actor, no_restart=True)
