"""Embeddings of many images, and their retrieval metrics, with the work divided among the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.data.decode import ImageStore
from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.evaluation.retrieval import RetrievalMetrics, retrieval_sums
from distmetric.models.embedder import Embedder
from distmetric.samplers.slices import rank_slice, slice_sizes


@torch.no_grad()
def embed(
    embedder: Embedder, images: ImageStore, rows: NDArray[np.int64], batch_size: int, device: torch.device
) -> Tensor:
    """Embed catalog rows without augmentation, in evaluation mode.

    Returns:
        (len(rows), D) on the device. The mode of the embedder is left as it was.
    """
    was_training = embedder.training
    embedder.eval()
    try:
        parts = [embedder(images.images(part).to(device)) for part in _batches(rows, batch_size)]
    finally:
        embedder.train(was_training)
    if not parts:
        return torch.empty(0, embedder.embedding_dim, device=device)
    return torch.cat(parts)


def _batches(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


@torch.no_grad()
def evaluate_sharded(
    embedder: Embedder,
    images: ImageStore,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    ks: list[int],
    batch_size: int,
    replica: Replica,
    device: torch.device,
) -> RetrievalMetrics:
    """Leave-one-out retrieval over `rows`: each rank embeds its slice and answers its own queries.

    Args:
        embedder: Equal on all ranks.
        images: Reads images of rows.
        rows: (M,) catalog rows, equal on all ranks.
        labels: (M,) their labels.
        ks: The k of recall@k.
        batch_size: Images per forward pass.
        replica: Who this rank is.
        device: Where to compute.

    Returns:
        The metrics of all M queries, equal on all ranks. Cost: M / W images embedded, M D values gathered,
        M^2 D / W multiplications per rank.
    """
    sizes = slice_sizes(len(rows), replica.world_size)
    own = embed(embedder, images, rank_slice(rows, replica.rank, replica.world_size), batch_size, device)
    everybody = gather(own, replica, sizes)
    all_labels = torch.from_numpy(labels).to(device)
    start = sum(sizes[: replica.rank])
    index = torch.arange(start, start + sizes[replica.rank], device=device)
    sums = retrieval_sums(own, all_labels[index], everybody, all_labels, index, ks)
    return RetrievalMetrics.from_sums(replica.sum_(sums), ks)
