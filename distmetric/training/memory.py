"""Whether the memory of a machine can hold what a training was asked for, and what to lower where it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.errors import ResourceError
from distmetric.models.build import build_embedder
from distmetric.training.run_data import known_attributes

LOWER = (
    "resume with a lower data.memory_limit_gib, on more workers or on a machine with more memory, or start anew with "
    "train.chunk_size=auto, or a lower sampler.classes_per_batch or model.image_size"
)
"""What to do about a training that has run out of memory."""

_GIB = 1 << 30
_OURS = ("conv", "resnet")
_ABSURD = 1 << 62
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group, of version 2 and 1: what it may use, and what it uses."""


@dataclass(frozen=True)
class Need:
    """Memory that a training cannot do without, in bytes.

    Args:
        images: Decoded images, which the workers of a machine share from the start to the end.
        batches: Images of the global batch in work and of those read ahead, all workers together.
        model: Weights, gradients and what the optimizer keeps of each weight, per worker.
        workers: How many there are.
    """

    images: int
    batches: int
    model: int
    workers: int

    @property
    def total(self) -> int:
        """With all workers on one machine."""
        return self.images + self.batches + self.workers * self.model

    def fix(self) -> str:
        """What to do about the largest share."""
        shares = {
            "lower data.memory_limit_gib, so that images are decoded when they are used": self.images,
            "lower sampler.classes_per_batch or model.image_size": self.batches,
            "choose a smaller model or model.embedding_dim, or fewer workers": self.workers * self.model,
        }
        return max(shares, key=lambda fix: shares[fix])


def check_memory(config: Config, catalog: Catalog, available: int | None = None) -> None:
    """Refuse a training on this machine that is certain not to fit into its memory.

    Args:
        config: The whole run.
        catalog: Its data.
        available: Bytes that are free; what this machine has by default.

    Raises:
        ResourceError: Naming what to lower.

    Corner cases: a machine that does not tell what is free is trusted.
    """
    free = available_memory() if available is None else available
    need = least_memory(config, catalog)
    if free is None or need.total <= free:
        return
    parts = {
        "images": need.images,
        "batches": need.batches,
        f"{need.workers} x model": need.workers * need.model,
    }
    told = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    raise ResourceError(
        f"the training needs {_gib(need.total)} of memory at the least ({told}) and {_gib(free)} are free: {need.fix()}"
    )


def least_memory(config: Config, catalog: Catalog) -> Need:
    """What a training needs for certain: nothing counts that depends on libraries, processes or the order of work.

    Args:
        config: The whole run.
        catalog: Its data.
    """
    pixels = config.model.channels * math.prod(config.model.image_sides)
    rows = len(np.union1d(catalog.rows(config.data.train_split), catalog.rows(config.data.test_split)))
    held = rows * pixels
    if held > config.data.memory_limit_gib * _GIB:
        held = 0  # decoded at every use
    batch = (
        config.sampler.classes_per_batch
        * config.sampler.samples_per_class
        * pixels
        * (config.model.frames_per_clip or 1)
    )
    workers = config.trainer.min_workers
    if config.trainer.use_gpu:  # where the model is, and the batches once they are decoded
        return Need(held, batch, 0, workers)
    return Need(held, (1 + config.data.prefetch) * batch, _model_bytes(config, catalog), workers)


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that processes may still take, by the machine and by the control groups of this process.

    Args:
        proc: Where the kernel tells of processes.
        groups: Where it tells of control groups.

    Returns:
        None where this machine does not tell.
    """
    known = [*_of_machine(proc), *_of_groups(proc, groups)]
    return min(known, default=None)


def _of_machine(proc: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, LookupError):
        lines = (line.partition(":") for line in (proc / "meminfo").read_text().splitlines())
        kib = {name: int(value.split()[0]) for name, _, value in lines}
        yield (kib["MemAvailable"] + kib.get("SwapFree", 0)) * 1024


def _of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each group that this process is in, and each one above it, has left."""
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = groups / "memory" if controllers else groups
            group = root / path.lstrip("/")
            # Where groups have a view of their own, the path leads nowhere, and the root is the group.
            for folder in (group, *(above for above in group.parents if above.is_relative_to(root))):
                yield from _left(folder)


def _left(group: Path) -> Iterator[int]:
    for limit, usage in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number, and the root has no limit
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
            yield max(0, most - used + _reclaimable(group))


def _reclaimable(group: Path) -> int:
    """Bytes of files that the kernel keeps until somebody needs the memory."""
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in lines}
        return stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return 0


def _model_bytes(config: Config, catalog: Catalog) -> int:
    """Of our own models; one of another library is known only when it is there."""
    if config.model.name not in _OURS:
        return 0
    try:
        with torch.device("meta"):  # sizes, without numbers
            model = build_embedder(
                config.model, config.seed, attribute_values=known_attributes(config, catalog)
            )
    except (RuntimeError, TypeError, OverflowError):  # sizes beyond what PyTorch can count
        return _ABSURD
    weights = sum(parameter.numel() for parameter in model.parameters())
    kept = 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)
    return weights * (8 if config.train.precision == "float64" else 4) * (2 + kept)


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / (1 << 20):,.1f} MiB"
