"""Retrieval metrics of a checkpoint on a catalog."""

from __future__ import annotations

import time
from typing import Any

from distmetric.config.jobs import EvaluateJob
from distmetric.config.schema import CatalogDataConfig
from distmetric.data.decode import ImageStore
from distmetric.distributed.replica import Replica
from distmetric.inference.device import best_device
from distmetric.training.checkpoint import find_checkpoint
from distmetric.training.embedding import evaluate_sharded
from distmetric.training.saved_model import load_embedder
from distmetric.training.worker import open_data


def evaluate_checkpoint(job: EvaluateJob) -> dict[str, Any]:
    """Leave-one-out retrieval of a checkpoint on a split of a catalog.

    Raises:
        InputError: If checkpoint, catalog or split are not there.
    """
    started = time.monotonic()
    checkpoint = find_checkpoint(job.checkpoint)
    device = best_device()
    embedder, config = load_embedder(checkpoint, device)
    data = config.data
    if job.data.path is not None:
        data = CatalogDataConfig(path=job.data.path)
    catalog = open_data(data)
    split = job.data.split or config.data.test_split
    rows = catalog.rows(split)
    embedder = embedder.float()
    metrics = evaluate_sharded(
        embedder,
        ImageStore(catalog, config.model.image_size, config.model.channels, rows=rows),
        rows,
        catalog.labels[rows],
        job.ks,
        job.batch_size,
        Replica(),
        device,
    )
    return {
        "checkpoint": checkpoint.location,
        "step": checkpoint.step,
        "data": str(catalog.path),
        "fingerprint": catalog.fingerprint,
        "split": split,
        "seconds": time.monotonic() - started,
        "metrics": metrics.to_dict(),
    }
