"""Workers that come and go: as many train as there is room for, and what they have done outlasts each change.

A training is a row of groups of workers, each of a fixed size, each going on where the newest checkpoint stands. Ray
Train can resize a group itself; its policy is not used because it ends a running group without asking for a checkpoint,
counts a lost machine as a failure of the training, goes by what machines have rather than by what is free on them, and
waits without end where there is no room for the least number of workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.train import ControllerError, WorkerGroupError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from distmetric.config.schema import TrainerConfig
from distmetric.errors import ResourceError, StoppedError

RESIZE = "room for more workers"
"""The reason that a group is given when it is asked to make place for a larger one."""
_LOOK_S = 0.5
_SETTLED_S = 3.0  # places that a group has just left come free one after the other
_VERDICT_S = (
    90.0  # Ray misses a machine after a quarter of a minute, later if the network swallows its packets
)

log = logging.getLogger(__name__)


def worker_resources(trainer: TrainerConfig) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": trainer.cpus_per_worker, **({"GPU": 1.0} if trainer.use_gpu else {})}


class Places:
    """Room for workers that Ray sets aside, one placement group for each of them.

    Those that have to wait tell an autoscaler what is wanted, and become ready only on a machine that answers; a list
    of machines would still name one that was lost a moment ago.

    Args:
        resources: Of one worker.
    """

    def __init__(self, resources: dict[str, float]) -> None:
        self._resources = resources
        self._groups: list[PlacementGroup] = []

    def ask(self, count: int) -> None:
        """Ask for so many places; those asked for before are given back."""
        self.give_back()
        self._groups = [placement_group([self._resources]) for _ in range(count)]

    def ready(self) -> int:
        """How many there are by now."""
        return sum(placement_group_table(group)["state"] == "CREATED" for group in self._groups)

    def give_back(self) -> None:
        """Leave them to others, or to a group of workers that is started next."""
        for group in self._groups:
            with suppress(Exception):  # Ray may be gone already
                remove_placement_group(group)
        self._groups = []


@dataclass(frozen=True)
class _Loss:
    """A group that ended before its time: the machines it was on, and whether it had written a checkpoint."""

    machines: frozenset[str]
    got_on: bool

    def counts(self) -> bool:
        """Whether it counts as a failure: nothing was gained in between, or it had all of its machines to the end."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return not self.got_on or self.machines <= alive


@dataclass
class _Group:
    """Workers that train together, where they are as far as it is known, and whether they have ended."""

    number: int
    workers: int
    machines: frozenset[str] = frozenset()
    over: threading.Event = field(default_factory=threading.Event)


class ElasticTraining:
    """One training by groups of `min_workers` to `max_workers` workers.

    A group that fails is followed by one that fits what is left, at once and without waiting for a replacement. A group
    that is smaller than it could be is asked, at most every `trainer.resize_check_s` seconds, to write a checkpoint and
    to leave, so that a larger one goes on from that very step. Groups that fail count against `trainer.max_failures`,
    unless they lost a machine after having written a checkpoint.

    Args:
        trainer: Its settings.
        train: Trains with (workers, number of the group) until the end, or until the workers are asked to leave, and
            returns the outcome, whose "stopped" is the reason if they were.
        machines: Which machines the workers of a group are on, by rank, for those that have begun.
        leave: Asks the workers of the current group to write a checkpoint and to leave.
        saved: Step of the newest checkpoint, 0 without one.
    """

    def __init__(
        self,
        trainer: TrainerConfig,
        train: Callable[[int, int], dict[str, Any]],
        machines: Callable[[int], dict[int, str]],
        leave: Callable[[], None],
        saved: Callable[[], int],
    ) -> None:
        self._trainer, self._train, self._machines = trainer, train, machines
        self._leave, self._saved = leave, saved
        self._places = Places(worker_resources(trainer))
        self._losses: list[_Loss] = []
        self._closed = threading.Event()
        self._current: _Group | None = None

    def close(self) -> None:
        """Start no further group and look for no more room, for Ray is about to end; called from another thread."""
        self._closed.set()
        if self._current is not None:
            self._current.over.set()

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The outcome of the last group.

        Raises:
            ResourceError: If there is no room for `min_workers` within `trainer.start_timeout_s`.
            StoppedError: If it was closed between two groups.
            Exception: What the last group failed with, if groups have failed too often.
        """
        number, most, why = 0, self._trainer.max_workers, ""
        while True:
            workers = self._room()
            number, stands = number + 1, self._saved()
            if why or workers < most:
                log.warning(
                    "%s with %d of %d workers from step %d", why or "beginning", workers, most, stands
                )
            self._current = group = _Group(number, workers)
            try:
                outcome = self._train_with(group)
            except (WorkerGroupError, ControllerError) as error:
                self._losses.append(_Loss(group.machines, self._saved() > stands))
                if not _may_pass(error) or self._failed_too_often():
                    raise
                why = "workers were lost: going on"
            else:
                if outcome.get("stopped") != RESIZE:
                    return outcome
                why = f"there is {RESIZE}: going on"

    def _train_with(self, group: _Group) -> dict[str, Any]:
        """Train with one group, while a thread looks for room for a larger one."""
        watch = threading.Thread(target=self._watch, args=(group,), name="room-for-workers", daemon=True)
        watch.start()
        try:
            return self._train(group.workers, group.number)
        finally:
            group.over.set()
            watch.join(timeout=10)
            self._places.give_back()

    def _watch(self, group: _Group) -> None:
        """Ask the group to leave when there is room for a larger one."""
        missing = self._trainer.max_workers - group.workers
        if not self._begun(group) or not missing:
            return
        is_asked = False
        while True:
            try:
                if not is_asked:  # nor before: these places would be waited for in front of the group's own
                    self._places.ask(missing)
                    is_asked = True
                elif self._places.ready():
                    self._leave()
                    return
            except Exception as error:  # a busy cluster; the group trains on meanwhile
                log.debug("no look for room: %s", error)
            if group.over.wait(self._trainer.resize_check_s):
                return

    def _begun(self, group: _Group) -> bool:
        """Wait until all workers have said where they are; whether they did before the end."""
        while not group.over.wait(_LOOK_S):
            known = self._machines(group.number)
            group.machines = frozenset(known.values())
            if len(known) == group.workers:
                return True
        return False

    def _room(self) -> int:
        """Wait until there is room, and say for how many workers: all of them, or those of a moment without news."""
        trainer, started = self._trainer, time.monotonic()
        self._places.ask(trainer.max_workers)
        try:
            ready, since = 0, started
            while True:
                now = time.monotonic()
                if (found := self._places.ready()) != ready:
                    ready, since = found, now
                if ready == trainer.max_workers or (
                    ready >= trainer.min_workers and now - since >= _SETTLED_S
                ):
                    return ready
                if now - started >= trainer.start_timeout_s and ready < trainer.min_workers:
                    raise ResourceError(self._no_room(ready))
                if self._closed.wait(_LOOK_S):
                    raise StoppedError("stopped while no workers trained")
        finally:
            self._places.give_back()

    def _no_room(self, ready: int) -> str:
        trainer = self._trainer
        gpu = " and a GPU" if trainer.use_gpu else ""
        return (
            f"trainer.num_workers={trainer.num_workers}: the cluster had room for {ready} worker"
            f"{'s' * (ready != 1)} with {trainer.cpus_per_worker:g} CPUs{gpu} each within trainer.start_timeout_s="
            f"{trainer.start_timeout_s:g}: set a smaller minimum or wait longer, then resume the run if it had begun"
        )

    def _failed_too_often(self) -> bool:
        """Whether it is over, as soon as it is known which of the losses were those of machines."""
        deadline, most = time.monotonic() + _VERDICT_S, self._trainer.max_failures
        while len(counted := [loss for loss in self._losses if loss.counts()]) > most:
            is_certain = sum(not loss.got_on for loss in counted) > most
            if is_certain or time.monotonic() > deadline or self._closed.wait(_LOOK_S):
                return True
        return False


def _may_pass(error: Exception) -> bool:
    """Whether another group may do better: workers died or failed, or could not be started."""
    if isinstance(error, ControllerError):
        return type(error.controller_failure).__name__.startswith("WorkerGroupStartup")
    return True
