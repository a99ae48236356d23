"""Embeddings of many images, and their retrieval metrics, with the work divided among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.config.schema import EvalConfig
from distmetric.data.clips import SampleStore
from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.evaluation.calibration import survey_pairs
from distmetric.evaluation.retrieval import RetrievalMetrics, query_measures
from distmetric.models.embedder import Embedder
from distmetric.samplers.slices import rank_slice, slice_sizes
from distmetric.training.evaluations import Evaluation
from distmetric.training.finite_steps import check_embeddings


@torch.no_grad()
def embed(
    embedder: Embedder,
    images: SampleStore,
    rows: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    before_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embed catalog rows without augmentation, in evaluation mode.

    Args:
        embedder: What embeds.
        images: Reads the samples of rows.
        rows: Which.
        batch_size: Images per forward pass.
        device: Where to compute.
        before_batch: Called before each forward pass; what it raises ends the work.

    Returns:
        (len(rows), D) on the device. The mode of the embedder is left as it was.
    """
    was_training = embedder.training
    embedder.eval()
    try:
        parts = []
        for part in _batches(rows, batch_size):
            before_batch()
            parts.append(embedder(images.images(part).to(device)))
    finally:
        embedder.train(was_training)
    if not parts:
        return torch.empty(0, embedder.embedding_dim, device=device)
    return torch.cat(parts)


def _batches(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def embed_sharded(
    embedder: Embedder,
    images: SampleStore,
    rows: NDArray[np.int64],
    batch_size: int,
    replica: Replica,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embed rows as `embed` does, each rank its slice of them.

    Args:
        embedder: Equal on all ranks.
        images: Reads the samples of rows.
        rows: (M,) catalog rows, equal on all ranks.
        batch_size: Images per forward pass.
        replica: Who this rank is.
        device: Where to compute.
        pause: Called before each pass, equally often by all ranks; what it raises on all of them ends the work.

    Returns:
        (M, D) embeddings of all rows, on the device, equal on all ranks.

    Raises:
        NonFiniteError: On all ranks, if an embedding is not finite.
    """
    sizes = slice_sizes(len(rows), replica.world_size)
    mine = rank_slice(rows, replica.rank, replica.world_size)
    own = embed(embedder, images, mine, batch_size, device, pause)
    for _ in range(ceil(max(sizes) / batch_size) - ceil(len(mine) / batch_size)):
        pause()
    everybody = gather(own, replica, sizes)
    check_embeddings(everybody, lambda place: images.catalog.described(int(rows[place])))
    return everybody


@torch.no_grad()
def evaluate_sharded(
    embedder: Embedder,
    images: SampleStore,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    config: EvalConfig,
    seed: int,
    replica: Replica,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Leave-one-out retrieval over `rows` and a survey of their pairs: each rank embeds and answers for its slice.

    Args:
        embedder: Equal on all ranks.
        images: Reads the samples of rows.
        rows: (M,) catalog rows, equal on all ranks.
        labels: (M,) their labels.
        config: The k of recall@k, images per forward pass, resamples for intervals, false accept rate of the threshold.
        seed: Of the resamples.
        replica: Who this rank is.
        device: Where to compute.
        pause: Called now and then, equally often by all ranks; what it raises on all of them ends the work.

    Returns:
        The evaluation of all M rows, equal on all ranks. Cost: M / W images embedded, M D values gathered, M^2 D / W
        multiplications per rank for the metrics and as many, in float64, for the survey.

    Raises:
        NonFiniteError: On all ranks, if an embedding is not finite.
    """
    everybody = embed_sharded(embedder, images, rows, config.batch_size, replica, device, pause)
    sizes = slice_sizes(len(rows), replica.world_size)
    all_labels = torch.from_numpy(labels).to(device)
    start = sum(sizes[: replica.rank])
    mine = slice(start, start + sizes[replica.rank])
    index = torch.arange(mine.start, mine.stop, device=device)
    pause()
    measures = query_measures(everybody[mine], all_labels[mine], everybody, all_labels, index, config.ks)
    metrics = RetrievalMetrics.from_measures(
        gather(measures, replica, sizes), config.ks, resamples=config.resamples, seed=seed
    )
    pause()
    survey = None
    if len(np.unique(labels)) > 1:
        survey = survey_pairs(
            everybody,
            all_labels,
            target_far=config.target_far,
            own=mine,
            add=replica.sum_,
        )
    return Evaluation(metrics, survey)
