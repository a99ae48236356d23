"""Progress of long work: one live line on a terminal, plain lines elsewhere (so that job logs stay readable)."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO


class Counter(Protocol):
    """What long work tells of itself; `Progress` shows it here, others may carry it to where it is shown."""

    def start_at(self, done: int) -> None:
        """Say that `done` units were there before, so that the rate counts only what is done from now on."""

    def update(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units."""

    def close(self, note: str = "") -> None:
        """Say that there will be no more."""


class Progress:
    """Show done, rate and remaining time of a job that counts its own work.

    Args:
        what: What is being counted, such as "images read".
        total: How many there will be; None where nobody knows.
        every_s: Seconds between two lines (a terminal is refreshed five times a second).
        stream: Where to write; standard error by default, so that standard output stays for results.
    """

    def __init__(
        self, what: str, total: int | None = None, every_s: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.what, self.total, self.done = what, total, 0
        self.stream = sys.stderr if stream is None else stream
        self._live = self.stream.isatty()
        self._every_s = 0.2 if self._live else every_s
        self._start = self._last = time.monotonic()
        self._start_done = 0
        self._shown = False
        self._note = ""

    def start_at(self, done: int) -> None:
        """Say that `done` units were there before, so that the rate counts only what is done from now on."""
        self.done = self._start_done = done
        self._start = time.monotonic()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units and show the line if it is due; an empty note keeps the one before."""
        self.done += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self._write()

    def close(self, note: str = "") -> None:
        """Show the final count; a job too short for a line stays silent when not on a terminal."""
        self._note = note or self._note
        if self._live or self._shown:
            self._write()
        if self._live:
            self.stream.write("\n")
            self.stream.flush()

    def line(self) -> str:
        """The text that is shown now."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._start_done) / seconds
        of_total = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        left = ""
        if self.total is not None and rate > 0 and self.done < self.total:
            left = f", {_clock((self.total - self.done) / rate)} left"
        return f"{self.what}: {of_total}, {rate:,.1f}/s{left}{', ' + self._note if self._note else ''}"

    def _write(self) -> None:
        self._shown = True
        text = self.line()
        self.stream.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
