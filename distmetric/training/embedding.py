"""Embeddings of many images, and their retrieval metrics, with the work divided among the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.config.schema import EvalConfig
from distmetric.data.decode import ImageStore
from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.evaluation.calibration import survey_pairs
from distmetric.evaluation.retrieval import RetrievalMetrics, query_measures
from distmetric.models.embedder import Embedder
from distmetric.samplers.slices import rank_slice, slice_sizes
from distmetric.training.evaluations import Evaluation


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
    config: EvalConfig,
    seed: int,
    replica: Replica,
    device: torch.device,
) -> Evaluation:
    """Leave-one-out retrieval over `rows` and a survey of their pairs: each rank embeds and answers for its slice.

    Args:
        embedder: Equal on all ranks.
        images: Reads images of rows.
        rows: (M,) catalog rows, equal on all ranks.
        labels: (M,) their labels.
        config: The k of recall@k, images per forward pass, resamples for intervals, false accept rate of the threshold.
        seed: Of the resamples.
        replica: Who this rank is.
        device: Where to compute.

    Returns:
        The evaluation of all M rows, equal on all ranks. Cost: M / W images embedded, M D values gathered, M^2 D / W
        multiplications per rank for the metrics and as many, in float64, for the survey.
    """
    sizes = slice_sizes(len(rows), replica.world_size)
    mine = rank_slice(rows, replica.rank, replica.world_size)
    own = embed(embedder, images, mine, config.batch_size, device)
    everybody = gather(own, replica, sizes)
    all_labels = torch.from_numpy(labels).to(device)
    start = sum(sizes[: replica.rank])
    index = torch.arange(start, start + sizes[replica.rank], device=device)
    measures = query_measures(own, all_labels[index], everybody, all_labels, index, config.ks)
    metrics = RetrievalMetrics.from_measures(
        gather(measures, replica, sizes), config.ks, resamples=config.resamples, seed=seed
    )
    survey = None
    if len(np.unique(labels)) > 1:
        survey = survey_pairs(
            everybody,
            all_labels,
            target_far=config.target_far,
            own=slice(start, start + sizes[replica.rank]),
            add=replica.sum_,
        )
    return Evaluation(metrics, survey)
