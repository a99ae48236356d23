"""This rank's slice of every global batch, read and brought to the device while earlier ones are computed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.data.attributes import attribute_targets
from distmetric.data.catalog import Catalog
from distmetric.data.clips import SampleStore
from distmetric.distributed.gather import JointRows
from distmetric.distributed.replica import Replica
from distmetric.samplers.batch_sampler import BatchSampler
from distmetric.samplers.slices import rank_slice, slice_sizes


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch, and what the plan tells of all of it.

    Args:
        images: (B, C, H, W) uint8, as stored, or (B, T, C, H, W) for clips.
        ids: (B,) int64 catalog ids, the key of each image's augmentation.
        places: (B,) int64 places of the rows in the training split, on the host.
        rows: Training labels, 0 <= label < number of training classes, ids and attributes of the global batch.
    """

    images: Tensor
    ids: Tensor
    places: NDArray[np.int64]
    rows: JointRows

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with all tensors passed through `move`."""
        return replace(self, images=move(self.images), ids=move(self.ids), rows=self.rows.moved(move))


class BatchLoader:
    """Turns planned rows into tensors on the device, reading the next steps' while this one computes.

    A thread of its own reads, which has others decode (`ImageStore`). To a GPU it copies from page-locked memory on a
    stream of its own; the step's stream waits for that copy, and the host for nothing but images that are not read yet.

    Args:
        sampler: Plans the global batches.
        catalog: Where rows come from.
        images: Reads the samples of rows.
        train_rows: (M,) catalog rows of the training split, ascending; their labels are numbered 0 .. C-1 for the loss.
        replica: Whose slice is loaded.
        device: Where to.
        attribute_values: Name -> values of the attributes to load.
        prefetch: How many steps ahead to read, as far as they are planned; each takes the memory of a slice.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        catalog: Catalog,
        images: SampleStore,
        train_rows: NDArray[np.int64],
        replica: Replica,
        device: torch.device,
        attribute_values: Mapping[str, Sequence[str]] | None = None,
        prefetch: int = 1,
    ) -> None:
        self._sampler, self._catalog, self._images = sampler, catalog, images
        self._replica, self._device, self._prefetch = replica, device, prefetch
        self._train_rows = train_rows
        self._training_label = np.full(int(catalog.labels.max()) + 1, -1, dtype=np.int64)
        classes = np.unique(catalog.labels[train_rows])
        self._training_label[classes] = np.arange(len(classes))
        self._attributes = attribute_targets(catalog, attribute_values or {})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-loader")
        self._ahead: dict[int, Future[_Arrival]] = {}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def get(self, step: int) -> Batch:
        """The slice of a step; those of the next steps are begun at once."""
        wanted = [
            step,
            *(step + i for i in range(1, self._prefetch + 1) if self._sampler.is_planned(step + i)),
        ]
        known = self._ahead
        self._ahead = {each: known.get(each) or self._thread.submit(self._load, each) for each in wanted}
        return self._ahead.pop(step).result().taken()

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _load(self, step: int) -> _Arrival:
        plan = self._sampler.batch(step)
        rows = rank_slice(plan, self._replica.rank, self._replica.world_size)
        labels = self._training_label[self._catalog.labels[plan]]
        batch = Batch(
            self._images.drawn(rows, step, pinned=self._copies is not None),
            torch.from_numpy(self._catalog.ids[rows]),
            np.searchsorted(self._train_rows, rows),
            JointRows(
                slice_sizes(len(plan), self._replica.world_size),
                torch.from_numpy(labels),
                torch.from_numpy(self._catalog.ids[plan]),
                {name: torch.from_numpy(targets[plan]) for name, targets in self._attributes.items()},
                labels,
            ),
        )
        return _Arrival(batch, self._device, self._copies)


class _Arrival:
    """A batch on its way to the device, on the stream of copies if there is one."""

    def __init__(self, batch: Batch, device: torch.device, copies: torch.cuda.Stream | None) -> None:
        self._batch, self._device, self._there = batch, device, None
        if copies is not None:
            pinned = batch.moved(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())
            with torch.cuda.stream(copies):
                self._batch = pinned.moved(lambda tensor: tensor.to(device, non_blocking=True))
                self._there = copies.record_event()

    def taken(self) -> Batch:
        """The batch, for work that is queued from now on."""
        if self._there is None:
            return self._batch
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._there)
        # The memory is of the stream of copies: it must not be used for another batch before this stream is done.
        self._batch.moved(lambda tensor: _used_by(tensor, stream))
        return self._batch


def _used_by(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor
