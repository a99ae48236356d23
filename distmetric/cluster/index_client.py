"""One rank's end of the index: pushes and snapshots go through threads, so that training never waits for an actor."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import ray
from torch import Tensor

from distmetric.cluster.hand_over import HandOver, HostCopy
from distmetric.cluster.index_messages import Ack, IndexHandles, Labels, News, Rows, by_holder
from distmetric.cluster.patient_calls import PatientCalls
from distmetric.cluster.weights import pack_weights
from distmetric.index.config import StreamIndexConfig
from distmetric.index.snapshot import NeighborSnapshot

HELD_SNAPSHOTS = 3
"""Snapshots that a client holds, so that ranks which got the newest one later can agree on one before it."""
HOLD_SECONDS = 1.0
"""How long the actor may hold a question for a newer snapshot before it says that there is none."""
_NO_ROWS = np.empty(0, dtype=np.int64)

log = logging.getLogger(__name__)


class IndexClient:
    """A `SnapshotSource` over the actors of `start_index`.

    Three threads do what may take time: one sends pushes and waits for each acknowledgment, which is the
    back-pressure; one asks for newer snapshots; on rank 0 of index=sweep one sends weights. What the actors do, die
    included, reaches training as counts and as one warning per incident, never as an exception.

    Args:
        handles: The actors.
        rank: Of this training process; rank 0 is the one that warns and sends weights.
        labels: (M,) training labels by place, which says where a row is held; needed for more than one shard.
    """

    def __init__(self, handles: IndexHandles, rank: int = 0, labels: Labels | None = None) -> None:
        assert labels is not None or len(handles.holders) == 1, "shards are found by the labels"
        self._handles, self._rank, self._labels = handles, rank, labels
        self._config = handles.config
        self._closed = threading.Event()
        patience = (self._config.timeout_s, self._closed, self._warn_of_loss, self._warn_of_error)
        self._calls = PatientCalls(*patience)
        # What a coordinator answers does not end an incident of shards that are actors of their own.
        self._holder_calls = PatientCalls(*patience) if len(handles.holders) > 1 else self._calls
        self._snapshots: dict[int, NeighborSnapshot] = {}
        self._newest = 0
        self._stale: Rows = _NO_ROWS
        self._pushed = self._lost_pushes = 0
        self._incarnations: list[set[str]] = [set() for _ in handles.holders]
        if len(handles.holders) > 1:
            self._incarnations.append(set())  # the coordinator's, which is a holder otherwise
        self._counts: dict[str, dict[str, float]] = {}
        self._gauges: dict[str, float] = {}
        self._errors: set[str] = set()
        streams = isinstance(self._config, StreamIndexConfig)
        self._pushes = HandOver[tuple[int, Rows, HostCopy]](
            self._config.max_pending if isinstance(self._config, StreamIndexConfig) else 1
        )
        self._weights = HandOver[tuple[int, HostCopy]](1)
        self._sweeping = False
        self._sweep_due = self._config.refresh_steps
        work: dict[str, Callable[[], None]] = {"snapshots": self._follow}
        if streams:
            work["pushes"] = self._send_pushes
        elif rank == 0:
            work["weights"] = self._send_weights
        self._streams, self._sends_weights = streams, "weights" in work
        self._threads = [
            threading.Thread(target=target, name=f"index-{name}", daemon=True)
            for name, target in work.items()
        ]
        for thread in self._threads:
            thread.start()

    def push(self, step: int, rows: Rows, embeddings: Tensor) -> None:
        """See `SnapshotSource.push`; a sweep has no use for it."""
        if self._streams and len(rows):
            self._pushes.offer(lambda: (step, np.array(rows, np.int64), HostCopy({"": embeddings})))

    def push_weights(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """See `SnapshotSource.push_weights`: every `refresh_steps` steps, unless a sweep is still under way."""
        if self._sends_weights and not self._sweeping and step >= self._sweep_due:
            self._sweeping, self._sweep_due = True, step + self._config.refresh_steps
            self._weights.offer(lambda: (step, HostCopy(weights())))

    def stale_rows(self) -> Rows:
        """See `SnapshotSource.stale_rows`."""
        rows = self._stale
        if len(rows):  # the other thread puts rows here only where there are none
            self._stale = _NO_ROWS
        return rows

    def newest(self) -> int:
        """See `SnapshotSource.newest`."""
        return self._newest

    def snapshot(self, version: int) -> NeighborSnapshot | None:
        """See `SnapshotSource.snapshot`; the newest few are held."""
        return self._snapshots.get(version)

    def metrics(self) -> dict[str, float]:
        """Counts since this client was started, and what the coordinator said last.

        - index/pushed, index/dropped_pushes: batches of embeddings delivered, and lost on the way.
        - index/wait_seconds: what this rank's training thread waited for the threads behind it.
        - index/restarts: actors that were found to be new ones.
        - index/rebuilds, failed_rebuilds, failed_sweeps, rejected_rows: of the actors, before their restarts included.
        - index/coverage, rows_embedded: share of the classes, and rows, that have an embedding.
        """
        counts = Counter[str]()
        for counted in self._counts.values():
            counts.update(counted)
        own = {
            "pushed": self._pushed,
            "dropped_pushes": self._pushes.dropped + self._lost_pushes,
            "restarts": sum(max(0, len(met) - 1) for met in self._incarnations),
            "wait_seconds": self._pushes.wait_seconds + self._weights.wait_seconds,
        }
        return {f"index/{name}": float(value) for name, value in {**counts, **self._gauges, **own}.items()}

    def close(self) -> None:
        """Stop the threads; what was not delivered is forgotten."""
        self._closed.set()
        self._pushes.close()
        self._weights.close()
        for thread in self._threads:
            thread.join(timeout=2.0)

    def _send_pushes(self) -> None:
        while (item := self._pushes.take()) is not None:
            if self._deliver(*item):
                self._pushed += 1
            else:
                self._lost_pushes += 1

    def _deliver(self, step: int, rows: Rows, copy: HostCopy) -> bool:
        embeddings = copy.wait()[""].float().numpy()
        parts = by_holder(rows, self._labels, len(self._handles.holders))
        wanted, before_step = self._stale_wanted(step)
        shares = [(wanted + place) // len(parts) for place in range(len(parts))]
        acks: list[Ack] | None = self._holder_calls.ask(
            lambda: [
                self._handles.holders[holder].push.remote(
                    step, rows[part], embeddings[part], share, before_step
                )
                for (holder, part), share in zip(parts, shares, strict=True)
            ]
        )
        if acks is None:
            return False
        for (holder, _), ack in zip(parts, acks, strict=True):
            self._incarnations[holder].add(ack.incarnation)
        if wanted:
            self._stale = np.concatenate([ack.stale_rows for ack in acks])
        return True

    def _stale_wanted(self, step: int) -> tuple[int, int]:
        """How many rows to ask for, and before which step they were embedded."""
        assert isinstance(self._config, StreamIndexConfig)
        age = self._config.max_age_steps
        if age is None or step < age or len(self._stale):
            return 0, 0
        return self._config.top_up_rows, step - age

    def _follow(self) -> None:
        coordinator, hold = self._handles.coordinator, min(HOLD_SECONDS, self._config.timeout_s / 2)
        while not self._closed.is_set():
            answers = self._calls.ask(lambda: [coordinator.next_snapshot.remote(self._newest, hold)])
            if answers is None:
                self._closed.wait(HOLD_SECONDS)
                continue
            news: News = answers[0]
            self._incarnations[-1].add(news.incarnation)
            self._counts, self._gauges = {**self._counts, news.incarnation: news.counts}, news.gauges
            if news.snapshot is not None:
                self._hold(replace(news.snapshot))  # made anew, so that its arrays are read-only here as well

    def _hold(self, snapshot: NeighborSnapshot) -> None:
        held = {**self._snapshots, snapshot.version: snapshot}
        self._snapshots = {version: held[version] for version in sorted(held)[-HELD_SNAPSHOTS:]}
        self._newest = max(self._snapshots)

    def _send_weights(self) -> None:
        while (item := self._weights.take()) is not None:
            step, copy = item
            if not self._sweep(step, copy.wait()):
                self._sweep_due = step  # the next weights begin the sweep anew
            self._sweeping = False

    def _sweep(self, step: int, weights: Mapping[str, Tensor]) -> bool:
        coordinator = self._handles.coordinator
        answers = self._calls.ask(
            lambda: [coordinator.sweep.remote(step, [ray.put(pack_weights(weights))])],
            again=False,
            patient=True,
        )
        return answers == [True]

    def _warn_of_loss(self, reason: str) -> None:
        batches = f"snapshot {self._newest}" if self._newest else "random batches"
        self._warn(f"the index actor was lost; training goes on with {batches} until it is back ({reason})")

    def _warn_of_error(self, reason: str) -> None:
        if reason not in self._errors:
            self._errors.add(reason)
            self._warn(f"the index actor failed at what it was asked for; training goes on ({reason})")

    def _warn(self, message: str) -> None:
        if self._rank == 0:
            log.warning(message)
