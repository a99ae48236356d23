"""Machines that are about to be taken away: noticed while they still work, so that little is lost with them."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray._private.state import state

_LOOK_EVERY_S = 2.0

log = logging.getLogger(__name__)


def draining_machines() -> dict[str, int]:
    """Ids of the machines that Ray knows to be taken away, and when (ms since 1970; 0: nobody said)."""
    known: dict[str, int] = state.get_draining_nodes()
    return known


class Preemptions:
    """Asks the training to save when a machine that works for it is about to be taken away.

    Ray Train has a watcher of its own. It is not used: it takes an actor for each group of workers, tells the workers
    but nobody who could save, and ends the group when the time is up although the machine may last for longer.

    Args:
        board: Handle of the `ProgressBoard`.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._noticed: frozenset[str] = frozenset()
        self._next = 0.0

    def look(self) -> None:
        """Look, unless that was done a moment ago; whatever fails is tried again the next time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_EVERY_S
        try:
            leaving = draining_machines()
            ours = ray.get(self._board.places.remote(), timeout=_LOOK_EVERY_S) if leaving else ()
        except Exception as error:  # a busy cluster; the training needs no answer
            log.debug("nobody knows which machines are to go: %s", error)
            return
        found = frozenset(machine for machine in leaving if machine in ours)
        for machine in sorted(found - self._noticed):
            self._board.ask_save.remote(_notice(machine, leaving[machine]))
        self._noticed = found


def _notice(machine: str, deadline_ms: int) -> str:
    when = f" in {max(0.0, deadline_ms / 1000 - time.time()):.0f} s" if deadline_ms else ""
    return f"machine {machine[:8]} is to be taken away{when}"
