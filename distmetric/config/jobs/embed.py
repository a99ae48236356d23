"""The configuration of jobs/embed.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, frozen=True)
class EmbedJob:
    """jobs/embed.py: embeddings into a Parquet file."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one)."""
    source: str
    """Catalog file, image folder or zip."""
    out: str
    """Parquet file to write."""
    split: str | None = None
    """Split of a catalog; null: all of it."""
    batch_size: int = 512
    """Images per forward pass."""
