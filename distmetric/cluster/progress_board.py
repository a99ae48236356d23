"""Progress of the workers, shown by the driver: one live line, without the prefix Ray gives to what workers print."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmetric.cluster.stop import StopDesk
from distmetric.progress import Progress

_TELL_EVERY_S, _LOOK_EVERY_S = 0.5, 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How far the work is.

    Args:
        attempt: Identity of the process that tells it; another one starts where a checkpoint left off.
        start: Units that were there before this attempt.
        done: Units done, those included.
        note: What else to show.
    """

    attempt: str
    start: int
    done: int
    note: str


class ProgressBoard(StopDesk):
    """The actor between workers and driver: the newest standing, where the workers are, what is asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self._standing: Standing | None = None
        self._group, self._machines = 0, dict[int, str]()

    def tell(self, standing: Standing) -> None:
        """Replace what is known."""
        self._standing = standing

    def standing(self) -> Standing | None:
        """What is known; None before anybody told anything."""
        return self._standing

    def join(self, group: int, rank: int, machine: str) -> None:
        """Note that a worker has begun, and where; of a later group, it ends what was known of the one before."""
        if group != self._group:
            self._group, self._machines = group, {}
        self._machines[rank] = machine

    def machines(self, group: int) -> dict[int, str]:
        """Machine by rank of the workers that have begun."""
        return self._machines if group == self._group else {}

    def places(self) -> set[str]:
        """Machines of the workers of the newest group."""
        return set(self._machines.values())


def machines_of(board: Any, group: int) -> dict[int, str]:
    """Machine by rank of the workers of a group that have begun, as far as the board can be asked."""
    try:
        known: dict[int, str] = ray.get(board.machines.remote(group), timeout=5)
    except Exception as error:  # it was lost, and is being started anew
        log.debug("nobody knows where the workers are: %s", error)
        return {}
    return known


class RemoteProgress:
    """Counts like `Progress` in a worker and tells the board now and then, waiting for nothing.

    Args:
        board: Handle of the `ProgressBoard`.
    """

    def __init__(self, board: Any) -> None:
        self._board, self._attempt = board, secrets.token_hex(4)
        self._start = self._done = 0
        self._told = -float("inf")

    def start_at(self, done: int) -> None:
        """See `Counter.start_at`."""
        self._start = self._done = done
        self._tell("")

    def update(self, count: int = 1, note: str = "") -> None:
        """See `Counter.update`."""
        self._done += count
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self._tell(note)

    def close(self, note: str = "") -> None:
        """See `Counter.close`."""
        self._tell(note)

    def _tell(self, note: str) -> None:
        self._told = time.monotonic()
        self._board.tell.remote(Standing(self._attempt, self._start, self._done, note))


@contextmanager
def shown_progress(progress: Progress) -> Iterator[Any]:
    """Show in this process what workers tell the board, until the block ends.

    Args:
        progress: Counts and shows; a worker that starts over sets it back.

    Yields:
        The handle for `RemoteProgress`.
    """
    # With the driver, and not on a machine that may be lost with the workers on it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ray.remote(ProgressBoard).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    over = threading.Event()
    viewer = threading.Thread(target=_view, args=(board, progress, over), name="progress", daemon=True)
    viewer.start()
    try:
        yield board
    finally:
        over.set()
        viewer.join(timeout=10)
        progress.close()
        with suppress(Exception):  # Ray may be gone already
            ray.kill(board)


def _view(board: Any, progress: Progress, over: threading.Event) -> None:
    shown = ""
    note = "starting"
    while True:
        last = over.wait(_LOOK_EVERY_S)
        try:
            standing = ray.get(board.standing.remote(), timeout=5)
        except Exception as error:  # progress is a comfort: without it the work goes on
            log.debug("no progress to show: %s", error)
            standing = None
        if standing is not None:
            if standing.attempt != shown:
                shown = standing.attempt
                progress.start_at(standing.start)
            note = standing.note or note
            progress.update(standing.done - progress.done, note)
        else:
            progress.update(0, note)
        if last:
            return
