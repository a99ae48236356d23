"""Search a gallery of images for those that are nearest to queries, and show what was found."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from distmetric.config.jobs import SearchJob
from distmetric.errors import InputError, ResourceError
from distmetric.index.config import SearchConfig
from distmetric.index.neighbor_index import NeighborIndex
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluation_sets import holds_embeddings
from distmetric.inference.images import BadImages
from distmetric.inference.neighbors import find_neighbors
from distmetric.inference.saved_index import (
    MadeBy,
    SavedIndex,
    check_checkpoint,
    check_place,
    check_same,
    is_saved_index,
    load_index,
    save_index,
)
from distmetric.inference.search_results import Results, write_results
from distmetric.inference.search_sets import (
    Pictures,
    SearchSet,
    SourceMark,
    embedded_images,
    embeddings_of_file,
    mark_of_file,
    mark_of_images,
)
from distmetric.locations import absolute
from distmetric.training.saved_model import calibration_of

Made = TypeVar("Made")

log = logging.getLogger(__name__)


@dataclass
class _Work:
    """What the two sides of a search share."""

    job: SearchJob
    embedder: CheckpointEmbedder | None
    made_by: MadeBy | None
    bad: dict[str, BadImages] = field(default_factory=lambda: {"queries": [], "gallery": []})

    def mark(self, key: str) -> SourceMark:
        """Look at the gallery or the queries."""
        source: str = getattr(self.job, key)
        split: str | None = getattr(self.job, f"{key}_split")
        if not holds_embeddings(source):
            try:
                return mark_of_images(source, split)
            except InputError as error:
                raise InputError(f"{key}: {error}") from None
        if split is not None:
            raise InputError(f"{key}_split={split} but {key}={source} is no catalog: leave it out")
        return mark_of_file(source)

    def embedded(self, key: str, mark: SourceMark) -> tuple[SearchSet, Tensor, MadeBy | None]:
        """Rows, embeddings, and who made them, as far as it is known."""
        if mark.is_file:
            rows, embeddings, said = embeddings_of_file(mark, key)
            if said and self.made_by and absolute(said) != absolute(self.made_by.location):
                log.warning(
                    "%s was embedded by %s, and the checkpoint here is %s: compare only what one model has embedded",
                    *(rows.name, said, self.made_by.location),
                )
            return rows, embeddings, None
        if self.embedder is None:
            raise InputError(f"{key}={mark.source} has to be embedded: give checkpoint=...")
        batch_size = self.job.batch_size
        rows, embeddings = embedded_images(self.embedder, mark, key, batch_size, self.bad[key])
        return rows, embeddings, self.made_by


def search(job: SearchJob) -> dict[str, Any]:
    """Find the k nearest gallery images of every query, and write them as tables and as pictures.

    Into the folder `out`: results.parquet and results.csv with a row for each neighbor (query_id, query_path,
    query_label_name, rank, id, path, label_name, distance, with re-ranking reranked_distance, with a threshold
    verdict, and correct where both classes are known), results.json with the same by query, and search.html and
    grid.png with pictures of the first queries.

    Args:
        job: What to search for, where, and how.

    Returns:
        out, files, queries, gallery, gallery_size, index (name, exact, location, reused), rerank, threshold,
        bad_images, seconds, and for a single query neighbors.

    Raises:
        InputError: If a source or the checkpoint cannot be used, no query or no gallery image can be read, a saved
            index is of another checkpoint or gallery, or embeddings do not fit each other.
        ResourceError: If FAISS was asked for and is not there, or something cannot be written.

    Cost: the images of both sides embedded, unless a saved index has them, and the search.
    """
    started = time.monotonic()
    embedder = None
    if job.checkpoint is not None:
        embedder = CheckpointEmbedder(job.checkpoint, allow_custom_targets=job.allow_custom_targets)
    work = _Work(job, embedder, None if embedder is None else MadeBy.of(embedder.checkpoint))
    queries_mark = work.mark("queries")
    known = _known_gallery(work)
    queries, vectors, _ = work.embedded("queries", queries_mark)
    gallery, reused = known or _built(work, (queries, vectors) if _one_side(job) else None), known is not None
    if vectors.shape[1] != gallery.index.embeddings.shape[1]:
        raise InputError(
            f"{queries.name} has embeddings of {vectors.shape[1]} numbers, {gallery.rows.name} of "
            f"{gallery.index.embeddings.shape[1]}: give what one model has embedded"
        )
    own = gallery.rows.rows_of(queries) if job.exclude_self else torch.full((len(queries),), -1)
    found = find_neighbors(gallery.index, vectors, own, job)
    threshold = _threshold(work)
    results = Results(queries, gallery.rows, found, threshold)
    pictures = _pictures(job, "queries", queries), _pictures(job, "gallery", gallery.rows)
    index = {"name": gallery.index.name, "exact": gallery.index.exact}
    summary = {
        "queries": len(queries),
        "gallery": gallery.rows.mark.source,
        "gallery_size": len(gallery.rows),
        "index": {**index, "location": _kept_at(job), "reused": reused},
        "rerank": job.rerank,
        "threshold": threshold,
        "bad_images": {
            key: [{"path": path, "reason": reason} for path, reason in bad] for key, bad in work.bad.items()
        },
    }
    files = write_results(absolute(job.out), results, summary, pictures, job.pictures)
    single = {"neighbors": results.neighbors(0)} if len(queries) == 1 else {}
    return {
        "out": absolute(job.out),
        "files": files,
        **summary,
        "seconds": time.monotonic() - started,
        **single,
    }


def _one_side(job: SearchJob) -> bool:
    """Whether the gallery is what the queries are: it needs to be embedded once only."""
    same = absolute(job.gallery) == absolute(job.queries)
    return same and job.gallery_split == job.queries_split


def _kept_at(job: SearchJob) -> str | None:
    if is_saved_index(job.gallery):
        return absolute(job.gallery)
    return None if job.saved_index is None else absolute(job.saved_index)


def _known_gallery(work: _Work) -> SavedIndex | None:
    """The gallery, if it was kept; else None, after a look at what there is to be embedded."""
    job = work.job
    if is_saved_index(job.gallery):
        for key in ("saved_index", "gallery_split"):
            if getattr(job, key) is not None:
                raise InputError(f"gallery={job.gallery} is a saved index: leave {key} out")
        saved = _searching(job, lambda search: load_index(job.gallery, "gallery", search))
        fix = "give that checkpoint, or the images as gallery"
        check_checkpoint(saved, f"gallery={job.gallery}", work.made_by, fix)
        return saved
    if job.saved_index is None or not is_saved_index(job.saved_index):
        work.mark("gallery")
        if job.saved_index is not None:
            check_place(job.saved_index)
        return None
    location = job.saved_index
    saved = _searching(job, lambda search: load_index(location, "saved_index", search))
    mark = work.mark("gallery")
    if not mark.is_file and work.made_by is None:
        raise InputError(
            f"gallery={mark.source} has to be embedded: give checkpoint=..., or gallery={location}"
        )
    check_same(saved, location, mark, work.made_by)
    return saved


def _built(work: _Work, same: tuple[SearchSet, Tensor] | None) -> SavedIndex:
    """Embed the gallery and build its index, and keep it if that is wanted."""
    mark = work.mark("gallery")
    if same is None:
        rows, embeddings, made_by = work.embedded("gallery", mark)
    else:
        (rows, embeddings), made_by = same, None if mark.is_file else work.made_by
        work.bad["gallery"] = work.bad["queries"]
    labels = torch.zeros(len(rows), dtype=torch.int64)
    index = _searching(work.job, lambda search: NeighborIndex.build(embeddings, labels, search=search))
    saved = SavedIndex(rows, index, made_by)
    if work.job.saved_index is not None:
        save_index(work.job.saved_index, saved)
    return saved


def _searching(job: SearchJob, make: Callable[[SearchConfig], Made]) -> Made:
    """Make a searcher; what is wrong with the machine is said in the settings of this job."""
    try:
        return make(SearchConfig(backend=job.backend, kind=job.kind))
    except ResourceError as error:
        raise ResourceError(str(error).replace("index.search.backend", "backend")) from None


def _threshold(work: _Work) -> float | None:
    if work.job.threshold is not None or work.embedder is None:
        return work.job.threshold
    calibration = calibration_of(work.embedder.checkpoint)
    return None if calibration is None else calibration.threshold


def _pictures(job: SearchJob, key: str, rows: SearchSet) -> Pictures | None:
    """Pictures of one side, where its images are still those that were embedded."""
    source: str | None = getattr(job, f"{key}_images")
    if job.pictures == 0 or (source is None and rows.mark.is_file):
        return None
    if source is not None:
        if not rows.mark.is_file:
            raise InputError(f"{key}_images={source} but {rows.name} is no file of embeddings: leave it out")
        return Pictures(absolute(source), rows.ids)
    try:
        if mark_of_images(rows.mark.source, rows.mark.split).fingerprint == rows.mark.fingerprint:
            return Pictures(rows.mark.source, rows.ids)
        reason = "has changed since it was embedded"
    except InputError as error:
        reason = f"cannot be opened ({error})"
    log.warning("no pictures of %s: %s %s", rows.name, rows.mark.source, reason)
    return None
