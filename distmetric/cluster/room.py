"""How many runs the machines of a cluster have room for at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from distmetric.config.schema import Config
from distmetric.index.config import InlineIndexConfig, SweepIndexConfig
from distmetric.samplers.hard_neighbors import HardNeighborSamplerConfig

Resources = tuple[float, float]
"""CPUs and GPUs."""


def reserved(config: Config) -> list[Resources]:
    """What Ray reserves for a run: for each of its workers (the most it may have), and of the actors of its index."""
    trainer, index = config.trainer, config.index
    wanted = [(trainer.cpus_per_worker, float(trainer.use_gpu))] * trainer.max_workers
    if isinstance(config.sampler, HardNeighborSamplerConfig) and not isinstance(index, InlineIndexConfig):
        wanted += [(index.num_cpus, index.num_gpus)] * (index.shards + (index.shards > 1))
        if isinstance(index, SweepIndexConfig):
            wanted += [(index.worker_cpus, index.worker_gpus)] * index.workers
    return [each for each in wanted if any(each)]


def room_for(config: Config, machines: Iterable[Mapping[str, float]]) -> int:
    """How many runs of a configuration fit, each process on whichever machine still has what it needs.

    Args:
        config: The run.
        machines: Resources of each, by Ray's names.

    Returns:
        0 where not even one fits.
    """
    free = [[each.get("CPU", 0.0), each.get("GPU", 0.0)] for each in machines]
    wanted = sorted(
        reserved(config), key=lambda each: each[::-1], reverse=True
    )  # what is harder to place first
    count = 0
    while all(_place(each, free) for each in wanted):
        count += 1
    return count


def _place(wanted: Resources, free: Sequence[list[float]]) -> bool:
    for machine in free:
        if all(has >= needs - 1e-9 for has, needs in zip(machine, wanted, strict=True)):
            machine[:] = [has - needs for has, needs in zip(machine, wanted, strict=True)]
            return True
    return False
