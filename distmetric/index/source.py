"""Where snapshots come from, as training sees it: hand embeddings over, take what is there, never wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distmetric.index.snapshot import NeighborSnapshot

Rows = NDArray[np.int64]
Weights = Mapping[str, Tensor]


class SnapshotSource(Protocol):
    """An index that works beside the training, as one rank sees it; no method waits for it."""

    def push(self, step: int, rows: Rows, embeddings: Tensor) -> None:
        """Hand over fresh embeddings.

        Args:
            step: Optimizer steps that the weights had done.
            rows: (B,) places in the training split.
            embeddings: (B, D), on any device; they may be overwritten as soon as this returns.
        """

    def push_weights(self, step: int, weights: Callable[[], Weights]) -> None:
        """Hand over a copy of the model's state where this source embeds by itself and is ready for it.

        Args:
            step: Optimizer steps done.
            weights: Gives the model's state; called only if it is wanted.
        """

    def stale_rows(self) -> Rows:
        """Rows that this rank is asked to embed again and push; each is handed out once."""

    def newest(self) -> int:
        """The newest version that this rank holds; 0 before the first."""

    def snapshot(self, version: int) -> NeighborSnapshot | None:
        """That version, if this rank holds it."""

    def metrics(self) -> dict[str, float]:
        """Counts since the start, such as dropped_pushes and restarts, and wait_seconds."""

    def close(self) -> None:
        """Stop; what was pushed and not delivered is forgotten."""
