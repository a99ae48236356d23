"""The index inside the training processes: all ranks embed the training set anew and wait for the snapshot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.errors import UserError
from distmetric.index.config import InlineIndexConfig
from distmetric.index.embedding_table import EmbeddingTable
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import LocalShard, build_snapshot
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.index.source import Rows, Weights
from distmetric.samplers.slices import rank_slice, slice_sizes

log = logging.getLogger(__name__)


class InlineIndex:
    """A `SnapshotSource` whose snapshots are a function of the weights: repeatable, and in need of nobody else.

    In the first round after every `refresh_steps` steps each rank embeds its share of the training set, rank 0 builds
    the snapshot and writes it to the store, and the others read it there. Pushed embeddings of batches are not used.

    Args:
        config: Its settings.
        store: Where snapshots go; all ranks reach it.
        embed: (B,) places in the training split -> (B, D) embeddings in evaluation mode.
        labels: (M,) training labels by place.
        rows: Whether snapshots list neighbors of rows, too.
        round_steps: Steps between two calls of `push_weights`.
        replica: Who this rank is.

    Cost of a snapshot: M / W images embedded per rank, M D values gathered, and the search on rank 0.
    """

    def __init__(
        self,
        config: InlineIndexConfig,
        store: SnapshotStore,
        embed: Callable[[Rows], Tensor],
        labels: NDArray[np.int64],
        rows: bool,
        round_steps: int,
        replica: Replica,
    ) -> None:
        self._config, self._store, self._embed = config, store, embed
        self._labels, self._rows, self._replica = labels, rows, replica
        self._round_steps = round_steps
        self._built: NeighborSnapshot | None = None
        self._wait_seconds = 0.0

    def push(self, step: int, rows: Rows, embeddings: Tensor) -> None:
        """Nothing: the next snapshot embeds all rows anew."""

    def push_weights(self, step: int, weights: Callable[[], Weights]) -> None:  # noqa: ARG002
        """Build a snapshot if one is due; all ranks wait for it."""
        # Asked once a round; a rule without memory makes the same snapshots after an interruption.
        if (
            step // self._config.refresh_steps
            == max(step - self._round_steps, 0) // self._config.refresh_steps
        ):
            return
        started = time.perf_counter()
        sizes = slice_sizes(len(self._labels), self._replica.world_size)
        places = np.arange(len(self._labels))
        own = self._embed(rank_slice(places, self._replica.rank, self._replica.world_size))
        embeddings = gather(own, self._replica, sizes)
        version = self._publish(step, embeddings) if self._replica.is_main else 0
        version = int(self._replica.broadcast(version, embeddings.device))
        if version and not self._replica.is_main:
            self._built = self._store.load(version)
        self._wait_seconds += time.perf_counter() - started

    def stale_rows(self) -> Rows:
        """None: every snapshot is fresh."""
        return np.empty(0, dtype=np.int64)

    def newest(self) -> int:
        """See `SnapshotSource.newest`."""
        return 0 if self._built is None else self._built.version

    def snapshot(self, version: int) -> NeighborSnapshot | None:
        """See `SnapshotSource.snapshot`."""
        return self._built if version == self.newest() else None

    def metrics(self) -> dict[str, float]:
        """See `SnapshotSource.metrics`."""
        return {"index/wait_seconds": self._wait_seconds}

    def close(self) -> None:
        """Nothing to stop."""

    def _publish(self, step: int, embeddings: Tensor) -> int:
        """Build and store; a failure leaves the run with the snapshot it has."""
        classes = int(self._labels.max()) + 1
        table = EmbeddingTable(self._labels, classes, embeddings.shape[1], "float32")
        table.put(np.arange(len(self._labels)), embeddings.float().cpu().numpy(), step)
        try:
            version = self._version_at(step)
            built = build_snapshot(
                [LocalShard(table.view(), self._config.search, threads=torch.get_num_threads())],
                version=version,
                num_rows=len(self._labels),
                num_classes=classes,
                config=self._config,
                rows=self._rows,
            )
            self._store.save(built)
        except (UserError, MemoryError) as error:
            log.warning("no new snapshot of the index at step %d: %s", step, error)
            return 0
        self._built = built
        return version

    def _version_at(self, step: int) -> int:
        """One more than there is, unless a run that was killed before it used the newest one built it at this step."""
        newest = self._store.newest()
        if newest is not None and newest.step == step:
            return newest.version
        return max(self._store.versions(), default=0) + 1
