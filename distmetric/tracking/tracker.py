"""Where a run's measurements go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

History = dict[str, list[tuple[int, float]]]


class Tracker(Protocol):
    """Receives measurements of one run; only rank 0 has one that does something.

    Metric names are grouped by a slash ("train/loss", "eval/recall_at_1", "time/forward"); `step` counts finished
    optimizer steps.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note measurements of a step, without waiting. What was noted for that step before stays as it is."""

    def flush(self) -> None:
        """Wait until everything noted so far is in the run's folder; for no server."""

    def close(self) -> None:
        """Flush, and note nothing more."""


class NullTracker:
    """A tracker that keeps nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Forget the measurements."""

    def flush(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to let go of."""
