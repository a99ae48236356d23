"""The actor that owns a run's neighbor index: takes pushes, decides when to build, builds, and publishes snapshots."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError

from distmetric.cluster.index_messages import Ack, ActorHandle, Labels, News, Rows, in_one_line
from distmetric.cluster.index_shard import (
    HeldClasses,
    HeldStatus,
    RemoteClasses,
    build_thread,
    log_in_one_line,
)
from distmetric.cluster.session import NAMESPACE
from distmetric.errors import UserError
from distmetric.index.config import StreamIndexConfig, SweepIndexConfig
from distmetric.index.embedding_table import Drift
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import build_snapshot
from distmetric.index.snapshot_shards import LAST_EFFORT
from distmetric.index.snapshot_store import SnapshotStore

LOOK_SECONDS = 0.5
"""Time between two looks at shards, which do not report by themselves."""
DRIFT_CHECKS = 2
"""Looks at the drift per `refresh_steps`, so that early builds come at most so many times as often as regular ones."""
_SMALLER = {
    1: "with smaller blocks, on the CPU",
    2: "with half the neighbors",
    3: "without neighbors of rows",
}

log = logging.getLogger(__name__)


def named_actors(names: Sequence[str]) -> tuple[ActorHandle, ...]:
    """The handles of our actors of these names; an actor that is restarted gets names, which Ray cannot lose."""
    return tuple(ray.get_actor(name, namespace=NAMESPACE) for name in names)


class NeighborIndexActor:
    """Owns the embeddings, or coordinates the shards that do, and publishes snapshots of them.

    All methods answer in milliseconds while a build runs in its thread; there is one build at a time. A finished
    snapshot is in the store before anybody gets it. An actor that was killed and restarted begins without embeddings,
    publishes the newest stored snapshot, and counts versions on from there.

    Args:
        labels: Gives the (M,) int32 training labels by place in the training split; called where the actor is, since
            Ray keeps no large arguments for a restart.
        dim: D.
        config: Settings of the index.
        location: Folder of the store.
        by_rows: Whether snapshots list neighbors of rows, too.
        shards: Names of the actors that hold the embeddings; empty: this one does.
        sweepers: Names of those that embed the training set, for index=sweep.
        check: Called before a snapshot is stored; raises if the run was resumed without this actor.
    """

    def __init__(
        self,
        labels: Callable[[], Labels],
        dim: int,
        config: StreamIndexConfig | SweepIndexConfig,
        location: str,
        by_rows: bool,
        shards: Sequence[str] = (),
        sweepers: Sequence[str] = (),
        check: Callable[[], None] | None = None,
    ) -> None:
        log_in_one_line()
        numbers = labels()
        self._num_rows, self._num_classes = len(numbers), int(numbers.max()) + 1
        self._config, self._by_rows = config, by_rows
        self._shards, self._sweepers = named_actors(shards), named_actors(sweepers)
        self._held = None if shards else HeldClasses(numbers, dim, config, by_rows)
        self._incarnation = self._held.incarnation if self._held else secrets.token_hex(8)
        self._store = SnapshotStore(location, check)
        self._snapshot, self._version = self._stored()
        self._published = asyncio.Condition()
        self._fed = asyncio.Event()
        self._thread = build_thread(config)
        self._watcher: asyncio.Task[None] | None = None
        self._building = self._sweeping = False
        self._status = HeldStatus(-1, 0, 1, 0, 0)
        self._built_at = None if self._snapshot is None else self._snapshot.step
        self._drift_looked_at = -1
        self._effort = 0
        self._counts = Counter[str](rebuilds=0, failed_rebuilds=0, failed_sweeps=0)

    async def push(
        self, step: int, rows: Rows, embeddings: NDArray[Any], stale: int = 0, before_step: int = 0
    ) -> Ack:
        """See `HeldClasses.push`."""
        assert self._held is not None, "shards hold the embeddings"
        self._begin_watch()
        self._fed.set()
        return self._held.push(step, rows, embeddings, stale, before_step)

    async def next_snapshot(self, after: int, hold_s: float) -> News:
        """The newest snapshot if it is newer than `after`, else that there was none within `hold_s` seconds."""
        self._begin_watch()
        self._version = max(self._version, after)  # a store that was lost must not take versions back
        with suppress(TimeoutError):
            async with asyncio.timeout(hold_s), self._published:
                await self._published.wait_for(lambda: self._newest > after)
        if self._held is not None:
            self._status = self._held.status()
        gauges = {
            "coverage": self._status.covered / max(1, self._status.classes),
            "rows_embedded": self._status.embedded,
        }
        counts: dict[str, float] = {**self._counts, "rejected_rows": self._status.rejected}
        return News(self._incarnation, self._snapshot if self._newest > after else None, counts, gauges)

    async def rebuild(self) -> bool:
        """Build and publish a snapshot of what is held.

        Returns:
            Whether one was published; False at once while another build is under way.
        """
        if self._building:
            return False
        self._building = True
        try:
            loop = asyncio.get_running_loop()
            held: Sequence[HeldClasses | RemoteClasses]
            held = [self._held] if self._held else [RemoteClasses(shard, loop) for shard in self._shards]
            built = await loop.run_in_executor(self._thread, self._build, held)
        finally:
            self._building = False
        if built is None:
            return False
        async with self._published:
            self._snapshot = built
            self._published.notify_all()
        return True

    async def sweep(self, step: int, weights: Sequence[Any]) -> bool:
        """Have the whole training set embedded with these weights, and publish a snapshot of exactly that.

        Args:
            step: Steps that the weights had done.
            weights: The reference to what `pack_weights` gave, in a list so that it is not fetched here.

        Returns:
            False if it should be begun anew with the next weights: when an actor was lost, and at once while another
            sweep is under way.
        """
        if self._sweeping:
            return False
        self._sweeping = True
        try:
            await self._tell("begin_sweep", step)
            holders = self._shards or (ray.get_runtime_context().current_actor,)
            work = [sweeper.embed.remote(step, weights[0], holders) for sweeper in self._sweepers]
            whole = all(await asyncio.gather(*work))
            assert whole, "nobody else ends a sweep"
            await self._tell("end_sweep")
            self._status = await self._look()
            await self.rebuild()
            return True
        except RayError as error:
            lost = isinstance(error, RayActorError)
            self._counts["failed_sweeps"] += 1
            when = "the next weights begin it anew" if lost else "the next refresh tries again"
            log.warning("the sweep at step %d failed, %s (%s)", step, when, in_one_line(error))
            if lost:
                await self._all_back()
            return not lost
        finally:
            with suppress(RayError):
                await self._tell("end_sweep")
            self._sweeping = False

    @property
    def _newest(self) -> int:
        return 0 if self._snapshot is None else self._snapshot.version

    def _begin_watch(self) -> None:
        if self._watcher is None and isinstance(self._config, StreamIndexConfig):
            self._watcher = asyncio.get_running_loop().create_task(self._watch(self._config))

    async def _watch(self, config: StreamIndexConfig) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._fed.wait()
            self._fed.clear()
            try:
                self._status = await self._look()
                if await self._is_due(config):
                    self._built_at = self._drift_looked_at = self._status.newest_step
                    await self.rebuild()
            except Exception as error:  # the watch goes on whatever happens
                if not isinstance(error, RayActorError):  # lost shards are named by those who push to them
                    log.warning("the index cannot see whether a snapshot is due (%s)", in_one_line(error))
                await asyncio.sleep(LOOK_SECONDS)

    async def _is_due(self, config: StreamIndexConfig) -> bool:
        now, status = self._status.newest_step, self._status
        if status.embedded == 0 or status.covered < config.min_coverage * status.classes:
            return False
        if self._built_at is None:
            return True
        if now < self._built_at:  # training was resumed from before the stored snapshot
            self._built_at = now
        if now - self._built_at >= config.refresh_steps:
            return True
        wait = -(-config.refresh_steps // DRIFT_CHECKS)
        if config.drift_fraction is None or self._snapshot is None:
            return False
        if now - max(self._built_at, self._drift_looked_at) < wait:
            return False
        self._drift_looked_at = now
        return (await self._drift()).wants_rebuild(self._snapshot, config.drift_fraction)

    async def _look(self) -> HeldStatus:
        found = await self._tell("status")
        newest = max(one.newest_step for one in found)
        sums = (
            sum(getattr(one, name) for one in found)
            for name in ("covered", "classes", "embedded", "rejected")
        )
        return HeldStatus(newest, *sums)

    async def _drift(self) -> Drift:
        found: list[Drift] = await self._tell("drift")
        return Drift(np.fmax.reduce([one.per_class for one in found]))

    async def _all_back(self) -> None:
        """Wait until the actors that a sweep needs are there, which may take as long as a machine takes to boot."""
        while True:
            try:
                await asyncio.gather(
                    *(one.__ray_ready__.remote() for one in (*self._shards, *self._sweepers))
                )
                return
            except RayActorError:
                await asyncio.sleep(LOOK_SECONDS)

    async def _tell(self, method: str, *args: Any) -> list[Any]:
        """Call a method of all `HeldClasses`, wherever they are."""
        if self._held is not None:
            return [getattr(self._held, method)(*args)]
        return list(await asyncio.gather(*(shard.tell.remote(method, *args) for shard in self._shards)))

    def _stored(self) -> tuple[NeighborSnapshot | None, int]:
        """The newest stored snapshot, and the highest version that is there."""
        try:
            return self._store.newest(), max(self._store.versions(), default=0)
        except (OSError, UserError) as error:
            log.warning("the snapshots at %s cannot be read (%s)", self._store.location, in_one_line(error))
            return None, 0

    def _build(self, held: Sequence[HeldClasses | RemoteClasses]) -> NeighborSnapshot | None:
        """Build, smaller and smaller until it works, and store; in the thread of builds."""
        built = None
        try:
            for one in held:
                one.freeze()
            built = self._at_some_effort(held)
            if built is not None:
                self._store.save(built)
                self._version = max(self._version, built.version)
                self._counts["rebuilds"] += 1
        except Exception as error:
            built = None
            self._note_failure(error, "")
        finally:
            with suppress(RayActorError):
                for one in held:
                    one.thaw(built is not None)
        return built

    def _at_some_effort(self, held: Sequence[HeldClasses | RemoteClasses]) -> NeighborSnapshot | None:
        for effort in range(self._effort, LAST_EFFORT + 1):
            try:
                built = self._build_snapshot(held, self._version + 1, effort)
            except RayActorError:
                raise
            except Exception as error:  # out of memory has many names: of Python, of torch, of FAISS
                self._note_failure(error, _SMALLER.get(effort + 1, ""))
            else:
                self._effort = max(0, effort - 1)
                return built
        self._effort = 0
        return None

    def _build_snapshot(
        self, held: Sequence[HeldClasses | RemoteClasses], version: int, effort: int
    ) -> NeighborSnapshot:
        return build_snapshot(
            [one.open(effort) for one in held],
            version=version,
            num_rows=self._num_rows,
            num_classes=self._num_classes,
            config=self._config,
            rows=self._by_rows,
            effort=effort,
            threads=self._config.threads,
        )

    def _note_failure(self, error: Exception, smaller: str) -> None:
        self._counts["failed_rebuilds"] += 1
        stays = f"snapshot {self._newest} stays" if self._newest else "there is none"
        then = f"trying again {smaller}" if smaller else f"{stays} until the next refresh"
        log.warning("snapshot %d of the index failed, %s (%s)", self._version + 1, then, in_one_line(error))
