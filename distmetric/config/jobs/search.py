"""The configuration of jobs/search.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distmetric.config.jobs.reranking import RerankSettings
from distmetric.functional.checks import check_at_least


@dataclass(kw_only=True, frozen=True)
class SearchJob(RerankSettings):
    """jobs/search.py: the nearest images of a gallery to every query, as tables and as pictures."""

    gallery: str
    """What is searched: image folder, archive, catalog, file of embeddings (jobs/embed.py), or a saved index."""
    queries: str
    """What is looked for: one image, image folder, archive, catalog or file of embeddings."""
    out: str
    """Folder for the results."""
    checkpoint: str | None = None
    """Folder of a checkpoint, or of a run (its best one), that embeds images; null: all are embeddings already."""
    k: int = 10
    """Neighbors of every query."""
    gallery_split: str | None = None
    """Split of a gallery that is a catalog; null: all of it."""
    queries_split: str | None = None
    """Split of queries that are a catalog; null: all of it."""
    saved_index: str | None = None
    """Folder to keep the embedded gallery in: written if it is not there, used if checkpoint and gallery are the same,
    refused if not; null: keep nothing."""
    backend: Literal["auto", "faiss", "torch"] = "auto"
    """Who searches; auto: FAISS where it can be imported, torch (exact) elsewhere."""
    kind: Literal["auto", "flat", "ivf"] = "auto"
    """Compare with all of the gallery (flat, exact) or with the nearest lists only (ivf); auto: flat up to 200,000."""
    rerank_candidates: int = 500
    """rerank=k_reciprocal: nearest images of a query that are ordered anew, every query on its own."""
    threshold: float | None = None
    """Distance up to which a neighbor is called the same; null: that of the checkpoint, if it has one."""
    exclude_self: bool = True
    """Whether a query that is a gallery image, by its file or by its id in the same source, is left out of its own
    neighbors; another copy of the image never is."""
    pictures: int = 20
    """Queries that are shown with pictures, the first ones; 0 for none."""
    gallery_images: str | None = None
    """Image folder, archive or catalog that a gallery of embeddings was made from, to show pictures of it."""
    queries_images: str | None = None
    """Image folder, archive or catalog that queries of embeddings were made from, to show pictures of them."""
    batch_size: int = 512
    """Images per forward pass."""
    allow_custom_targets: bool = False
    """Whether `model.target` of a checkpoint may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        check_at_least(1, k=self.k, rerank_candidates=self.rerank_candidates, batch_size=self.batch_size)
        if self.rerank == "k_reciprocal" and self.rerank_candidates < self.k:
            raise ValueError(
                f"rerank_candidates={self.rerank_candidates} is too small: set it to k={self.k} or more"
            )
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold} is wrong: give a distance of 0 or more, or null")
        check_at_least(0, pictures=self.pictures)
        if self.backend == "torch" and self.kind == "ivf":
            raise ValueError("backend=torch searches exactly: set kind=flat, or backend=faiss for kind=ivf")
