"""Within-class whitening of a model from a part of the training set, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.data.clips import SampleStore
from distmetric.distributed.replica import Replica
from distmetric.models.embedder import Embedder
from distmetric.models.whitening import within_class_whitening
from distmetric.training.embedding import embed_sharded

CLASSES: Final = 512
"""How many classes for training are looked at, at most."""
IMAGES: Final = 32
"""How many images of each, at most."""


def whitening_rows(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw what a whitening is computed from: up to 32 images of each of up to 512 classes that have two or more.

    Args:
        rows: (N,) catalog rows for training.
        labels: (N,) their labels.
        seed: Of the draw.

    Returns:
        Some of the rows, ascending.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    chosen = draw.permutation(np.flatnonzero(counts > 1))[:CLASSES]
    kept = np.zeros(len(classes), bool)
    kept[chosen] = True
    place = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(rows[order[np.repeat(kept, counts) & (place < IMAGES)]])


def whiten(
    embedder: Embedder,
    images: SampleStore,
    rows: NDArray[np.int64],
    batch_size: int,
    replica: Replica,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Compute anew how a model whitens, from rows embedded as it stands; the ranks divide them.

    Args:
        embedder: One that whitens, equal on all ranks; changed in place once all is known.
        images: Reads the samples of rows.
        rows: Those of `whitening_rows`, equal on all ranks.
        batch_size: Images per forward pass.
        replica: Who this rank is.
        device: Where to compute.
        pause: Called now and then, equally often by all ranks; what it raises on all of them leaves the model as it is.

    Raises:
        NonFiniteError: On all ranks, if an embedding is not finite.

    Cost: up to 16,384 images embedded by all ranks together and their embeddings gathered, then as
    `within_class_whitening`.
    """
    assert embedder.whitening is not None
    with embedder.not_whitened():
        everybody = embed_sharded(embedder, images, rows, batch_size, replica, device, pause)
    labels = torch.from_numpy(images.catalog.labels[rows]).to(device)
    embedder.whitening.copy_(within_class_whitening(everybody, labels))
