"""This rank's slice of every global batch, read one step ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from distmetric.distributed.replica import Replica
from distmetric.samplers.pk import PKSampler
from distmetric.samplers.slices import rank_slice, slice_sizes


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch.

    Args:
        images: (B, C, H, W) uint8, as stored.
        labels: (B,) int64 training labels, 0 <= label < number of training classes.
        ids: (B,) int64 catalog ids, the key of each image's augmentation.
        sizes: Slice sizes of all ranks.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    sizes: list[int]


class BatchLoader:
    """Turns planned rows into tensors on the device, decoding the next step's while this one computes.

    Args:
        sampler: Plans the global batches.
        catalog: Where rows come from.
        images: Reads images of rows.
        train_rows: (M,) catalog rows of the training split; their labels are numbered 0 .. C-1 for the loss.
        replica: Whose slice is loaded.
        device: Where to.
    """

    def __init__(
        self,
        sampler: PKSampler,
        catalog: Catalog,
        images: ImageStore,
        train_rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        replica: Replica,
        device: torch.device,
    ) -> None:
        self._sampler, self._catalog, self._images = sampler, catalog, images
        self._replica, self._device = replica, device
        self._training_label = np.full(int(catalog.labels.max()) + 1, -1, dtype=np.int64)
        classes = np.unique(catalog.labels[train_rows])
        self._training_label[classes] = np.arange(len(classes))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-loader")
        self._ahead: dict[int, Future[Batch]] = {}

    def get(self, step: int) -> Batch:
        """The slice of a step; the next step's is begun at once."""
        batch = self._ahead.pop(step, None) or self._thread.submit(self._load, step)
        self._ahead = {step + 1: self._thread.submit(self._load, step + 1)}
        loaded = batch.result()
        return Batch(
            loaded.images.to(self._device, non_blocking=True),
            loaded.labels.to(self._device, non_blocking=True),
            loaded.ids.to(self._device, non_blocking=True),
            loaded.sizes,
        )

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _load(self, step: int) -> Batch:
        plan = self._sampler.batch(step)
        rows = rank_slice(plan, self._replica.rank, self._replica.world_size)
        images = self._images.images(rows)
        labels = torch.from_numpy(self._training_label[self._catalog.labels[rows]])
        ids = torch.from_numpy(self._catalog.ids[rows])
        if self._device.type == "cuda":
            images, labels, ids = images.pin_memory(), labels.pin_memory(), ids.pin_memory()
        return Batch(images, labels, ids, slice_sizes(len(plan), self._replica.world_size))
