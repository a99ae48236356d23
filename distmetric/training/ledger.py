"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("plan", "data", "forward", "index", "gather", "loss", "backward", "optimizer")


class Ledger:
    """Seconds per phase of the step under way.

    On a GPU, work is queued and phases are timed by events on its stream, which cost no wait until they are read.

    Args:
        device: The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase of the step."""
        if self._cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events[phase] = (first, last)
        else:
            start = time.perf_counter()
            yield
            self._seconds[phase] = time.perf_counter() - start

    def close_step(self) -> StepTimes:
        """The times of the step, to be read later; the ledger starts anew."""
        times = StepTimes(self._seconds, self._events)
        self._seconds, self._events = {}, {}
        return times


class StepTimes:
    """Times of one step; on a GPU, reading them waits for its work."""

    def __init__(
        self, seconds: dict[str, float], events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]]
    ) -> None:
        self._recorded, self._events = seconds, events

    def seconds(self) -> list[float]:
        """Seconds of every phase, in the order of `PHASES`."""
        for phase, (first, last) in self._events.items():
            last.synchronize()
            self._recorded[phase] = first.elapsed_time(last) / 1000
        return [self._recorded.get(phase, 0.0) for phase in PHASES]
