"""This rank's slice of every global batch, read one step ahead."""

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
from distmetric.data.decode import ImageStore
from distmetric.distributed.replica import Replica
from distmetric.samplers.batch_sampler import BatchSampler
from distmetric.samplers.slices import rank_slice, slice_sizes


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch.

    Args:
        images: (B, C, H, W) uint8, as stored.
        labels: (B,) int64 training labels, 0 <= label < number of training classes.
        ids: (B,) int64 catalog ids, the key of each image's augmentation.
        places: (B,) int64 places of the rows in the training split, on the host.
        attributes: Name of an attribute -> (B,) int64 number of its value, -1 where unknown.
        sizes: Slice sizes of all ranks.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    places: NDArray[np.int64]
    attributes: dict[str, Tensor]
    sizes: list[int]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with all tensors passed through `move`."""
        return replace(
            self,
            images=move(self.images),
            labels=move(self.labels),
            ids=move(self.ids),
            attributes={name: move(values) for name, values in self.attributes.items()},
        )


class BatchLoader:
    """Turns planned rows into tensors on the device, decoding the next step's while this one computes.

    Args:
        sampler: Plans the global batches.
        catalog: Where rows come from.
        images: Reads images of rows.
        train_rows: (M,) catalog rows of the training split, ascending; their labels are numbered 0 .. C-1 for the loss.
        replica: Whose slice is loaded.
        device: Where to.
        attribute_values: Name -> values of the attributes to load.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        catalog: Catalog,
        images: ImageStore,
        train_rows: NDArray[np.int64],
        replica: Replica,
        device: torch.device,
        attribute_values: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._sampler, self._catalog, self._images = sampler, catalog, images
        self._replica, self._device = replica, device
        self._train_rows = train_rows
        self._training_label = np.full(int(catalog.labels.max()) + 1, -1, dtype=np.int64)
        classes = np.unique(catalog.labels[train_rows])
        self._training_label[classes] = np.arange(len(classes))
        self._attributes = attribute_targets(catalog, attribute_values or {})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-loader")
        self._ahead: dict[int, Future[Batch]] = {}

    def get(self, step: int) -> Batch:
        """The slice of a step; the next step's is begun at once."""
        batch = self._ahead.pop(step, None) or self._thread.submit(self._load, step)
        self._ahead = {step + 1: self._thread.submit(self._load, step + 1)}
        return batch.result().moved(lambda tensor: tensor.to(self._device, non_blocking=True))

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _load(self, step: int) -> Batch:
        plan = self._sampler.batch(step)
        rows = rank_slice(plan, self._replica.rank, self._replica.world_size)
        loaded = Batch(
            self._images.images(rows),
            torch.from_numpy(self._training_label[self._catalog.labels[rows]]),
            torch.from_numpy(self._catalog.ids[rows]),
            np.searchsorted(self._train_rows, rows),
            {name: torch.from_numpy(targets[rows]) for name, targets in self._attributes.items()},
            slice_sizes(len(plan), self._replica.world_size),
        )
        return loaded.moved(Tensor.pin_memory) if self._device.type == "cuda" else loaded
