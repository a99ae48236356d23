"""From a command to the first step of its training: what was done when, in several processes of one machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PREFIX = "time/startup_"
"""What the metrics begin with that a run logs of its start."""


class StartUp:
    """The marks of a start, on the clock that the processes of a machine share and that is never set.

    Args:
        is_whole: Whether it begins with the birth of this process, where the system tells it, and not now.
    """

    def __init__(self, is_whole: bool = False) -> None:
        self._marks = [("", _born() if is_whole else time.monotonic())]

    def mark(self, name: str) -> None:
        """Note that something is done now."""
        self._marks.append((name, time.monotonic()))

    def handed_over(self) -> dict[str, Any]:
        """What was noted so far, in plain containers, for another process to go on."""
        return {"machine": _machine(), "marks": [list(mark) for mark in self._marks]}

    @classmethod
    def taken_over(cls, handed_over: Mapping[str, Any]) -> StartUp | None:
        """Go on where another process has handed over; None on another machine, which has a clock of its own."""
        if handed_over["machine"] != _machine():
            return None
        startup = cls()
        startup._marks = [(str(name), float(at)) for name, at in handed_over["marks"]]
        return startup

    def seconds(self) -> dict[str, float]:
        """How long each thing took since the one before it, by name in their order, and all of them as "total"."""
        times = [at for _, at in self._marks]
        spent: dict[str, float] = {}
        for (name, at), before in zip(self._marks[1:], times, strict=False):
            spent[name] = spent.get(name, 0.0) + at - before
        return {**spent, "total": times[-1] - times[0]}

    def metrics(self) -> dict[str, float]:
        """The same as metrics: time/startup_total and so on."""
        return {f"{PREFIX}{name}": seconds for name, seconds in self.seconds().items()}


def _machine() -> str:
    """A name for this machine since it was booted."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return platform.node()


def _born() -> float:
    """When this process was started; now where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        # The name of the program, in parentheses, may have spaces; the fields after it do not.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    return time.monotonic()
