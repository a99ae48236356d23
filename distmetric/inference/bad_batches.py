"""What a report shows of batches whose numbers were not finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from distmetric.reports.notices import SHOWN_BATCHES, SHOWN_IMAGES, BadBatch
from distmetric.training.non_finite import read_batches


def bad_batches(run_dir: str) -> tuple[list[BadBatch], int]:
    """The first batches of a run that were not finite, without pictures, and how many there are."""
    found = read_batches(run_dir)
    return [_bad_batch(each) for each in found[:SHOWN_BATCHES]], len(found)


def with_images(config: Config, catalog: Catalog, run_dir: str) -> list[BadBatch]:
    """The first batches of a run that were not finite, with pictures: of images that were not, if any were."""
    store = ImageStore(catalog, config.model.image_sides, config.model.channels, memory_limit_bytes=0)
    shown = []
    for document in read_batches(run_dir)[:SHOWN_BATCHES]:
        ids = [row["id"] for row in _chosen(document)]
        places = np.flatnonzero(np.isin(catalog.ids, ids))
        by_id = dict(zip(catalog.ids[places].tolist(), places.tolist(), strict=True))
        rows = np.array([by_id[one] for one in ids], np.int64)
        pictures = np.asarray(store.images(rows).numpy()) if len(rows) else None
        shown.append(_bad_batch(document, pictures))
    return shown


def _chosen(document: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = document["rows"]
    return ([row for row in rows if not row["finite"]] or rows)[:SHOWN_IMAGES]


def _bad_batch(document: dict[str, Any], pictures: Any = None) -> BadBatch:
    rows, chosen = document["rows"], _chosen(document)
    return BadBatch(
        what=document["what"],
        num_rows=len(rows),
        num_bad=sum(not row["finite"] for row in rows),
        names=[row["label"] for row in chosen],
        paths=[row["path"] for row in chosen],
        images=pictures,
    )
