"""The configuration of jobs/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, frozen=True)
class EvaluateData:
    """What to evaluate on."""

    path: str | None = None
    """Catalog; null: the data of the checkpoint's run."""
    split: str | None = None
    """Split of it; null: the test split of the checkpoint's run."""


@dataclass(kw_only=True, frozen=True)
class EvaluateJob:
    """jobs/evaluate.py: retrieval metrics of a checkpoint."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one)."""
    data: EvaluateData
    """What to evaluate on."""
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The k of recall@k."""
    batch_size: int = 512
    """Images per forward pass."""
