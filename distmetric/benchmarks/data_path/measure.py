"""What reading, decoding and augmenting cost alone, and what the loader makes of it, in this process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.data_path.sets import SETS, ImageSet, open_set
from distmetric.benchmarks.memory import PeakMemory
from distmetric.data.augment import augment
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore, decode_image
from distmetric.distributed.replica import Replica
from distmetric.samplers.pk import PKSampler
from distmetric.training.batches import BatchLoader

T = TypeVar("T")

_BATCHES = 4  # of a timed round
_PER_CLASS = 4
_SETS = 3  # times the images of a batch that a data set has


@dataclass(frozen=True)
class DataSpec(Spec):
    """What one cell measures.

    Args:
        images: Key of `SETS`.
        size: Images of a batch.
        prefetch: Batches that are read ahead.
    """

    suite: ClassVar[str] = "data"

    images: str
    size: int
    prefetch: int = 1


@dataclass(frozen=True)
class DataMeasurement(Measurement):
    """What a cell found; a step is a batch of the loader, augmented.

    In place of the matmul of other suites are the parts alone, for the same batch: the seconds that they keep a core
    busy, divided by the cores.

    Args:
        plan_seconds: Seconds of a core per batch for choosing its rows.
        read_seconds: For reading and verifying the encoded images, or for gathering those
            that are held.
        decode_seconds: For decoding them; 0 where they are held.
        augment_seconds: For augmenting them.
        encoded_bytes: Of an image, on average.
        cpu_seconds: Of all threads, per batch of the loader.
    """

    plan_seconds: float
    read_seconds: float
    decode_seconds: float
    augment_seconds: float
    encoded_bytes: float
    cpu_seconds: float


def measure_data(spec: DataSpec, replica: Replica | None = None) -> DataMeasurement:
    """Measure a cell in this process, which from now on keeps to as many cores as it has threads.

    The parts alone and a few batches of the loader take turns, so that a busy machine slows both. The loader is timed
    while it runs: what is read ahead in the beginning is that much less at the end.

    Args:
        spec: What to measure.
        replica: Of one process.
    """
    assert (replica or Replica()).world_size == 1, "one process"
    _keep_to_cores(spec.threads)
    kind = SETS[spec.images]
    with tempfile.TemporaryDirectory() as folder:
        catalog = open_set(spec.images, Path(folder), _SETS * spec.size)
        limit = (1 << 40) if kind.held else 0
        store = ImageStore(catalog, kind.size, kind.channels, limit, spec.threads)
        rows = catalog.rows("train")
        sampler = PKSampler(rows, catalog.labels[rows], spec.size // _PER_CLASS, _PER_CLASS, seed=0)
        work = _Work(spec, kind, catalog, store, sampler)
        memory = PeakMemory(torch.device("cpu"))
        work.loaded(0)
        peak = memory.above_base()
        rounds = [(work.alone(turn), work.loaded(turn)) for turn in range(spec.steps)]
        store.close()
    alone = np.array([parts for parts, _ in rounds])
    plan, read, decode, varied = np.median(alone, 0).tolist()
    return DataMeasurement(
        [wall for _, (wall, _) in rounds],
        (alone.sum(1) / spec.threads).tolist(),
        memory.base,
        peak,
        plan,
        read,
        decode,
        varied,
        catalog.image_nbytes / len(catalog),
        float(np.median([busy for _, (_, busy) in rounds])),
    )


class _Work:
    def __init__(
        self, spec: DataSpec, kind: ImageSet, catalog: Catalog, store: ImageStore, sampler: PKSampler
    ) -> None:
        self._spec, self._kind, self._catalog = spec, kind, catalog
        self._store, self._sampler = store, sampler
        self._rows = catalog.rows("train")

    def alone(self, turn: int) -> list[float]:
        """Seconds of a core for planning, reading, decoding and augmenting a batch, on one thread each."""
        sums = np.zeros(4)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for step in self._steps(turn):
            planned, rows = _busy(partial(self._sampler.batch, step))
            sums += [planned, *self._parts(step, rows)]
        torch.set_num_threads(threads)
        return [float(part) for part in sums / _BATCHES]

    def loaded(self, turn: int) -> tuple[float, float]:
        """Seconds per batch that comes from the loader and is augmented, and those of all cores together."""
        prefetch = self._spec.prefetch
        device = torch.device("cpu")
        loader = BatchLoader(
            *(self._sampler, self._catalog, self._store, self._rows, Replica(), device), prefetch=prefetch
        )
        first, *others = range(self._steps(turn)[0], self._steps(turn)[-1] + 2)
        self._next(loader, first)
        wall, busy = time.perf_counter(), time.process_time()
        for step in others:
            self._next(loader, step)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        loader.close()
        return wall / len(others), busy / len(others)

    def _steps(self, turn: int) -> range:
        return range(turn * _BATCHES, (turn + 1) * _BATCHES)

    def _next(self, loader: BatchLoader, step: int) -> None:
        batch = loader.get(step)
        augment(batch.images, self._kind.augment, 0, step, batch.ids)

    def _parts(self, step: int, rows: NDArray[np.int64]) -> list[float]:
        kind, catalog = self._kind, self._catalog
        if kind.held:
            read, pixels = _busy(lambda: self._store.images(rows))
            decode = 0.0
        else:
            read, encoded = _busy(lambda: [bytes(catalog.image_bytes(int(row))) for row in rows])
            out = torch.empty((len(rows), kind.channels, kind.size, kind.size), dtype=torch.uint8)

            def fill() -> torch.Tensor:
                for place, data in enumerate(encoded):
                    out.numpy()[place] = decode_image(data, kind.size, kind.channels, max_pixels=None)
                return out

            decode, pixels = _busy(fill)
        ids = torch.from_numpy(catalog.ids[rows])
        varied, _ = _busy(lambda: augment(pixels, kind.augment, 0, step, ids))
        return [read, decode, varied]


def _busy(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds for which a call keeps this thread's core busy, and its result."""
    started = time.thread_time()
    result = call()
    return time.thread_time() - started, result


def _keep_to_cores(count: int) -> None:
    with suppress(AttributeError, OSError):  # not on every system
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
