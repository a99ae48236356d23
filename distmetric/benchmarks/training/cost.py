"""What telling costs: the time of the training's own thread in it, and of the threads that carry it on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from distmetric.tracking.tracker import Tracker


class CountedTracker:
    """A tracker that counts the time which the training spends in it.

    Args:
        tracker: What is told.

    Attributes:
        seconds: Spent in it so far.
        losses: That were logged, in their order.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.seconds = 0.0
        self.losses: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        if "train/loss" in metrics:
            self.losses.append(metrics["train/loss"])
        with self._counted():
            self._tracker.log(step, metrics)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        with self._counted():
            self._tracker.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._tracker.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def thread_seconds() -> dict[str, float]:
    """CPU seconds of the living threads of this process, by their names; empty where the system does not tell."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        with suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
            found[thread.name] = found.get(thread.name, 0.0) + int(text.split()[0]) / 1e9
    return found
