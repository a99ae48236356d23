"""Embeddings of a catalog, an image folder or an archive, as a file: part by part, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from distmetric.config.jobs import EmbedJob
from distmetric.errors import InputError
from distmetric.index.embedding_writer import check_ending, embedding_batch, embedding_schema
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.images import BadImages, ImagePart, ImageRows, ImageSource, open_images
from distmetric.inference.part_store import EmbeddedPart, PartStore
from distmetric.locations import absolute, open_location
from distmetric.progress import Counter, Progress
from distmetric.training.checkpoint import Checkpoint, find_checkpoint
from distmetric.training.saved_model import config_of


@dataclass(frozen=True)
class EmbedWork:
    """What a process has to know to embed parts; pickles small, whatever the number of images.

    Args:
        checkpoint: Its folder.
        images: Where they are.
        schema: Of the rows.
        batch_size: Images per forward pass.
        allow_custom_targets: Whether the checkpoint's trunk may be code outside this package.
    """

    checkpoint: str
    images: ImageSource
    schema: pa.Schema
    batch_size: int
    allow_custom_targets: bool = False


@dataclass(frozen=True)
class PartRange:
    """Images start .. stop - 1 of the source.

    Args:
        number: Which part it is, from 0.
        start: First place.
        stop: Last place plus one.
    """

    number: int
    start: int
    stop: int


EmbedParts = Callable[[EmbedWork, Sequence[PartRange], Counter], Generator[EmbeddedPart]]
"""Embeds parts, in any order, and counts the images that are done."""


class PartEmbedder:
    """Embeds parts, in one process.

    Args:
        work: What to do.
        device: None for the GPU where there is one.
        threads: That decode; by default as many as pay.
    """

    def __init__(
        self, work: EmbedWork, device: torch.device | str | None = None, threads: int | None = None
    ) -> None:
        self._work, self._threads = work, threads
        self._embedder = CheckpointEmbedder(
            work.checkpoint, device, allow_custom_targets=work.allow_custom_targets
        )

    def embed(self, number: int, part: ImagePart, progress: Counter | None = None) -> EmbeddedPart:
        """Embed a part.

        Args:
            number: Of the part.
            part: Its images.
            progress: Counts the images.

        Raises:
            InputError: If the images of a catalog cannot be decoded.
        """
        work = self._work
        bad: BadImages = []
        rows = work.images.rows(part, self._embedder.config.model, work.batch_size, bad, self._threads)
        found: list[ImageRows] = []
        embeddings: list[NDArray[np.float32]] = [np.empty((0, self._embedder.dim), np.float32)]
        for batch, embedded in self._embedder.embedded(rows):
            batch.images = batch.images[:0]  # pixels are large, and not needed any more
            found.append(batch)
            embeddings.append(embedded)
            if progress is not None:
                progress.update(len(batch))
        if progress is not None:
            progress.update(len(bad))
        extras = {name: [x for rows in found for x in rows.extras[name]] for name in work.images.columns}
        return EmbeddedPart(
            number,
            embedding_batch(
                work.schema,
                [number for rows in found for number in rows.ids],
                [path for rows in found for path in rows.paths],
                [name for rows in found for name in rows.label_names],
                np.concatenate(embeddings),
                extras,
            ),
            bad,
        )


def embed_here(work: EmbedWork, parts: Sequence[PartRange], progress: Counter) -> Generator[EmbeddedPart]:
    """Embed parts in this process, one after the other."""
    if parts:
        embedder = PartEmbedder(work)
        for part in parts:
            yield embedder.embed(part.number, work.images.part(part.start, part.stop), progress)


def embed_source(job: EmbedJob, embed_parts: EmbedParts = embed_here) -> dict[str, Any]:
    """Write the embeddings of a catalog, an image folder, an archive or an image as Parquet or Arrow.

    Columns: id (int64; the catalog's, or the place in the sorted list of all images of the source, whether they can be
    read or not), path, label_name, group, of catalogs that have them camera and attribute.NAME, embedding (fixed-size
    list of float32). Every finished part of `part_rows` images is a file in `OUT.parts`; a job that was killed goes on
    with those that are missing. The table does not depend on who embedded which part, or on interruptions.

    Args:
        job: What to embed, and where to.
        embed_parts: Who embeds.

    Returns:
        out, rows, dim, checkpoint, parts, resumed_parts (found finished), bad_images, seconds.

    Raises:
        InputError: If checkpoint or source are not there, nothing in the source can be read, or there are parts of a
            job with other settings.
        ResourceError: If something cannot be written.

    Cost: the embeddings of one part are held at a time; of a folder or archive all names.
    """
    started = time.monotonic()
    check_ending(job.out)
    out = absolute(job.out)
    checkpoint = find_checkpoint(job.checkpoint)
    config = config_of(checkpoint)
    source = job.source if "://" in job.source else absolute(job.source)
    images = open_images(source, job.split, config.model.frames_per_clip)
    schema = embedding_schema(
        config.model.embedding_dim,
        images.columns,
        {"checkpoint": checkpoint.location, "step": str(checkpoint.step)},
    )
    location = absolute(checkpoint.location)
    work = EmbedWork(location, images, schema, job.batch_size, job.allow_custom_targets)
    store = PartStore(out, _settings(job, checkpoint, images), schema)
    kept = store.open(job.fresh)
    starts = range(0, len(images), job.part_rows)
    parts = [
        PartRange(number, start, min(start + job.part_rows, len(images)))
        for number, start in enumerate(starts)
    ]
    progress = Progress("images embedded", total=len(images))
    progress.start_at(sum(part.stop - part.start for part in parts if part.number in kept))
    rows = sum(kept.values())
    started_anew = not kept
    try:
        missing = [part for part in parts if part.number not in kept]
        with closing(embed_parts(work, missing, progress)) as finished:
            for part in finished:
                store.add(part)
                started_anew = False
                rows += part.rows.num_rows
    except Exception:
        if started_anew:
            store.remove()  # there is nothing that another job could go on with
        raise
    finally:
        progress.close()
    if rows == 0:
        store.remove()
        raise InputError(f"source={job.source}: no image in it can be read")
    rows, bad = store.join(len(parts))
    return {
        "out": out,
        "rows": rows,
        "dim": config.model.embedding_dim,
        "checkpoint": checkpoint.location,
        "parts": len(parts),
        "resumed_parts": len(kept),
        "bad_images": [{"path": path, "reason": reason} for path, reason in bad],
        "seconds": time.monotonic() - started,
    }


def _settings(job: EmbedJob, checkpoint: Checkpoint, images: ImageSource) -> dict[str, Any]:
    """What decides on the content of the parts, by the keys of the job."""
    filesystem, path = open_location(checkpoint.location)
    with filesystem.open_input_stream(f"{path}/manifest.json") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    return {
        "checkpoint": f"step {checkpoint.step} {digest}",
        "source": images.fingerprint,
        "split": job.split,
        "batch_size": job.batch_size,
        "part_rows": job.part_rows,
    }
