"""Embeddings of a catalog, an image folder or a zip, as a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distmetric.config.jobs import EmbedJob
from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.data.decode import BadImageError, ImageStore, decode_image
from distmetric.data.sources import iterate_images
from distmetric.errors import InputError
from distmetric.inference.device import best_device
from distmetric.models.embedder import Embedder
from distmetric.progress import Progress
from distmetric.training.checkpoint import find_checkpoint
from distmetric.training.saved_model import load_embedder

Rows = tuple[list[int], list[str], list[str], torch.Tensor]


def embed_source(job: EmbedJob) -> dict[str, Any]:
    """Write the embeddings of a catalog, an image folder or a zip as Parquet.

    Columns: id (int64; the catalog's, or the position among the readable images), path, label_name, embedding
    (fixed-size list of float32). Written batch by batch beside the target and moved there when complete.

    Raises:
        InputError: If checkpoint or source are not there, or nothing in the source can be read.
    """
    started = time.monotonic()
    checkpoint = find_checkpoint(job.checkpoint)
    device = best_device()
    embedder, config = load_embedder(checkpoint, device)
    embedder = embedder.float()
    bad: list[tuple[str, str]] = []
    out = Path(job.out).expanduser().absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    schema = pa.schema(
        {
            "id": pa.int64(),
            "path": pa.string(),
            "label_name": pa.string(),
            "embedding": pa.list_(pa.float32(), embedder.embedding_dim),
        }
    ).with_metadata({"checkpoint": checkpoint.location, "step": str(checkpoint.step)})
    progress, rows = Progress("images embedded"), 0
    try:
        with pq.ParquetWriter(part, schema) as writer:
            for ids, paths, names, images in _batches(job, config, bad):
                writer.write_batch(_record_batch(ids, paths, names, _embed(embedder, images, device), schema))
                rows += len(ids)
                progress.update(len(ids))
        if rows == 0:
            raise InputError(f"source={job.source}: no image in it can be read")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
        progress.close()
    return {
        "out": str(out),
        "rows": rows,
        "dim": embedder.embedding_dim,
        "checkpoint": checkpoint.location,
        "bad_images": [{"path": path, "reason": reason} for path, reason in bad],
        "seconds": time.monotonic() - started,
    }


@torch.no_grad()
def _embed(embedder: Embedder, images: torch.Tensor, device: torch.device) -> np.ndarray[Any, Any]:
    embeddings: torch.Tensor = embedder(images.to(device))
    return embeddings.float().cpu().numpy()


def _record_batch(
    ids: list[int], paths: list[str], names: list[str], embeddings: np.ndarray[Any, Any], schema: pa.Schema
) -> pa.RecordBatch:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    return pa.record_batch([pa.array(ids), pa.array(paths), pa.array(names), vectors], schema=schema)


def _batches(job: EmbedJob, config: Config, bad: list[tuple[str, str]]) -> Iterator[Rows]:
    if _is_catalog(job.source):
        yield from _catalog_batches(job, config)
        return
    if job.split is not None:
        raise InputError(f"split={job.split} but source={job.source} is no catalog: leave split out")
    yield from _file_batches(job, config, bad)


def _is_catalog(source: str) -> bool:
    path = Path(source).expanduser()
    if "://" in source or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


def _catalog_batches(job: EmbedJob, config: Config) -> Iterator[Rows]:
    catalog = Catalog.open(job.source)
    rows = np.arange(len(catalog)) if job.split is None else catalog.rows(job.split)
    store = ImageStore(catalog, config.model.image_size, config.model.channels, memory_limit_bytes=0)
    for start in range(0, len(rows), job.batch_size):
        part = rows[start : start + job.batch_size]
        names = [catalog.label_names[label] for label in catalog.labels[part]]
        yield (
            catalog.ids[part].tolist(),
            [catalog.source_path(row) for row in part],
            names,
            store.images(part),
        )


def _file_batches(job: EmbedJob, config: Config, bad: list[tuple[str, str]]) -> Iterator[Rows]:
    paths: list[str] = []
    names: list[str] = []
    pixels: list[np.ndarray[Any, Any]] = []
    done = 0

    def batch() -> Rows:
        return list(range(done, done + len(paths))), paths, names, torch.from_numpy(np.stack(pixels))

    for path, name, data in iterate_images(job.source, bad=bad):
        try:
            pixels.append(decode_image(data, config.model.image_size, config.model.channels))
        except BadImageError as error:
            bad.append((path, error.reason))
            continue
        paths.append(path)
        names.append(name)
        if len(pixels) == job.batch_size:
            yield batch()
            done += len(pixels)
            paths, names, pixels = [], [], []
    if pixels:
        yield batch()
