"""Embeddings of a share of the classes, in an actor: it takes pushes while a thread of it answers for a build."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.cluster.index_messages import Ack, ActorHandle, Labels, Rows
from distmetric.index.config import ActorIndexConfig, SearchConfig, StreamIndexConfig, SweepIndexConfig
from distmetric.index.embedding_table import Drift, EmbeddingTable, TableView
from distmetric.index.farthest_positives import RowNeighbors
from distmetric.index.search import Found
from distmetric.index.snapshot_shards import Effort, LocalShard, RowBlock, Shard, ShardSummary

_NO_STEP = -1
_NO_ROWS = np.empty(0, dtype=np.int64)
_BACKGROUND_NICENESS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldStatus:
    """What is held: the newest step, classes with an embedded row and classes, rows embedded and rejected."""

    newest_step: int
    covered: int
    classes: int
    embedded: int
    rejected: int


class HeldClasses:
    """The embedding table of the classes c with c % shards == place, and its frozen copy while a snapshot is built.

    Args:
        labels: (M,) training labels of all rows by place in the training split.
        dim: D.
        config: Settings of the index.
        by_rows: Whether snapshots list neighbors of rows, too.
        place: Which share this is.
        shards: Number of shares.

    Pushes and questions come from the event loop's thread, `freeze` to `thaw` from the build's.
    """

    def __init__(
        self,
        labels: Labels,
        dim: int,
        config: StreamIndexConfig | SweepIndexConfig,
        by_rows: bool,
        place: int = 0,
        shards: int = 1,
    ) -> None:
        self.incarnation = secrets.token_hex(8)
        self._config = replace(config, search=usable_search(config.search, config.num_gpus))
        self._by_rows = by_rows
        self._rows = None if shards == 1 else np.flatnonzero(labels % shards == place)
        self._labels = labels if self._rows is None else labels[self._rows]
        self._num_classes, self._dim = int(labels.max()) + 1, dim
        self._classes = len(np.unique(self._labels))
        self._table = self._new_table()
        self._rejected_before = 0
        self._only_step = _NO_STEP if isinstance(config, SweepIndexConfig) else None
        self._view: TableView | None = None

    def push(self, step: int, rows: Rows, embeddings: NDArray[Any], stale: int, before_step: int) -> Ack:
        """Keep embeddings, and say which rows to embed again.

        Args:
            step: Steps that the weights had done.
            rows: (B,) places in the training split.
            embeddings: (B, D).
            stale: How many rows to name.
            before_step: Rows embedded before this step are stale.
        """
        if self._only_step is not None and step != self._only_step:
            return Ack(self.incarnation, False, _NO_ROWS)
        self._table.put(rows if self._rows is None else np.searchsorted(self._rows, rows), embeddings, step)
        again = self._table.stale_rows(stale, before_step) if stale else _NO_ROWS
        return Ack(self.incarnation, True, again if self._rows is None else self._rows[again])

    def begin_sweep(self, step: int) -> None:
        """Forget everything, and from now on keep embeddings of this step only."""
        self._rejected_before += self._table.num_rejected
        del self._table  # before the next one is there
        self._table, self._only_step = self._new_table(), step

    def end_sweep(self) -> None:
        """Take no more embeddings, so that those who still send some stop."""
        self._only_step = _NO_STEP

    def status(self) -> HeldStatus:
        """What is held; O(C)."""
        table = self._table
        rejected = self._rejected_before + table.num_rejected
        return HeldStatus(table.newest_step, table.num_covered, self._classes, table.num_embedded, rejected)

    def drift(self) -> Drift:
        """How far rows have moved since the last build; O(C)."""
        return self._table.drift()

    def freeze(self) -> None:
        """Copy the table for a build."""
        self._view = self._table.view()

    def open(self, effort: int) -> Shard:
        """What the build asks, about the frozen copy.

        Args:
            effort: See `Effort.of`.
        """
        assert self._view is not None, "freeze first"
        size = Effort.of(effort, self._config, self._by_rows)
        return LocalShard(
            self._view,
            size.search,
            rows=self._rows,
            threads=self._config.threads,
            block_bytes=size.block_bytes,
        )

    def thaw(self, built: bool) -> None:
        """Drop the copy; if a snapshot was built from it, drift is measured against it from now on."""
        view, self._view = self._view, None
        measures = isinstance(self._config, StreamIndexConfig) and self._config.drift_fraction is not None
        if built and measures and view is not None:
            self._table.mark_built(view)

    def _new_table(self) -> EmbeddingTable:
        return EmbeddingTable(self._labels, self._num_classes, self._dim, self._config.storage)


class IndexShardActor:
    """One of several actors that share the classes; the coordinator builds snapshots from all of them.

    Args:
        labels: See `NeighborIndexActor`.
        dim: D.
        config: Settings of the index.
        by_rows: Whether snapshots list neighbors of rows, too.
        place: Which share of the classes this is.
        shards: Number of shares.
    """

    def __init__(
        self,
        labels: Callable[[], Labels],
        dim: int,
        config: StreamIndexConfig | SweepIndexConfig,
        by_rows: bool,
        place: int,
        shards: int,
    ) -> None:
        log_in_one_line()
        self._held = HeldClasses(labels(), dim, config, by_rows, place, shards)
        self._thread = build_thread(config)
        self._shard: Shard | None = None
        self._blocks: Iterator[RowBlock | RowNeighbors] = iter(())

    async def push(
        self, step: int, rows: Rows, embeddings: NDArray[Any], stale: int = 0, before_step: int = 0
    ) -> Ack:
        """See `HeldClasses.push`."""
        return self._held.push(step, rows, embeddings, stale, before_step)

    async def tell(self, method: str, *args: Any) -> Any:
        """Call a method of `HeldClasses` that takes no time."""
        return getattr(self._held, method)(*args)

    async def build(self, method: str, *args: Any) -> Any:
        """Call a method of this class in the thread of builds."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, getattr(self, method), *args)

    def freeze(self) -> None:
        """Begin a build."""
        self._held.freeze()

    def open(self, effort: int) -> None:
        """Begin a try of a build."""
        self._shard, self._blocks = None, iter(())
        self._shard = self._held.open(effort)

    def thaw(self, built: bool) -> None:
        """End a build."""
        self._shard, self._blocks = None, iter(())
        self._held.thaw(built)

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of `Shard`."""
        return getattr(self._shard, method)(*args)

    def begin_blocks(self, method: str, *args: Any) -> None:
        """Call a method of `Shard` whose answer comes in blocks."""
        self._blocks = iter(self.ask(method, *args))

    def next_block(self) -> RowBlock | RowNeighbors | None:
        """The next block; None after the last."""
        return next(self._blocks, None)


class RemoteClasses:
    """What a build needs of an `IndexShardActor`, called from a thread that may wait.

    Args:
        actor: Its handle.
        loop: The event loop that answers arrive in, of another thread.
    """

    def __init__(self, actor: ActorHandle, loop: asyncio.AbstractEventLoop) -> None:
        self._actor, self._loop = actor, loop

    def freeze(self) -> None:
        """See `HeldClasses.freeze`."""
        self._call("freeze")

    def open(self, effort: int) -> Shard:
        """See `HeldClasses.open`."""
        self._call("open", effort)
        return RemoteShard(self._call)

    def thaw(self, built: bool) -> None:
        """See `HeldClasses.thaw`."""
        self._call("thaw", built)

    def _call(self, method: str, *args: Any) -> Any:
        async def answer() -> Any:
            return await self._actor.build.remote(method, *args)

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result()


class RemoteShard:
    """A `Shard` in another actor.

    Args:
        call: Calls a method of its `IndexShardActor`.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def summary(self) -> ShardSummary:
        """See `Shard.summary`."""
        return self._call("ask", "summary")  # type: ignore[no-any-return]

    def row_blocks(self, size: int) -> Iterator[RowBlock]:
        """See `Shard.row_blocks`."""
        return self._iterate("row_blocks", size)

    def nearest_negatives(self, queries: Tensor, labels: Tensor, k: int) -> Found:
        """See `Shard.nearest_negatives`."""
        return self._call("ask", "nearest_negatives", queries, labels, k)  # type: ignore[no-any-return]

    def farthest_positives(self, count: int) -> Iterator[RowNeighbors]:
        """See `Shard.farthest_positives`."""
        return self._iterate("farthest_positives", count)

    def backend(self) -> str:
        """See `Shard.backend`."""
        return str(self._call("ask", "backend"))

    def _iterate(self, method: str, *args: Any) -> Iterator[Any]:
        self._call("begin_blocks", method, *args)
        while (block := self._call("next_block")) is not None:
            yield block


def usable_search(search: SearchConfig, num_gpus: float) -> SearchConfig:
    """The search that this process can do where another one was asked for, said in one line.

    Without a GPU of its own it searches on the CPU, though it may see the trainers' GPUs.
    """
    if search.device == "cuda" and not torch.cuda.is_available():
        log.warning("index.search.device=cuda but the index actor has no GPU: it searches on the CPU")
        search = replace(search, device="cpu")
    elif search.device == "auto" and num_gpus == 0:
        search = replace(search, device="cpu")
    if search.backend == "faiss" and importlib.util.find_spec("faiss") is None:
        log.warning(
            "index.search.backend=faiss but FAISS is not installed where the index actor runs: torch searches"
        )
        search = replace(search, backend="torch", kind="flat")
    return search


def build_thread(config: ActorIndexConfig) -> ThreadPoolExecutor:
    """The one thread that builds; it makes way for training where no CPU is reserved for it."""

    def begin() -> None:
        torch.set_num_threads(config.threads)
        if config.num_cpus == 0:
            make_way(threading.get_native_id())

    return ThreadPoolExecutor(1, thread_name_prefix="build", initializer=begin)


def make_way(who: int = 0) -> None:
    """Let other processes go first: a thread of this process by its native id, or all of it."""
    with suppress(
        OSError, AttributeError
    ):  # where threads have no priority of their own, or there is none at all
        os.setpriority(os.PRIO_PROCESS, who, _BACKGROUND_NICENESS)


def log_in_one_line() -> None:
    """Have warnings of this actor appear at the driver as one line each."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
