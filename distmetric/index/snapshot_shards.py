"""Slices of the training set that a snapshot is built from: what a build asks of them, and one in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.evaluation.inputs import as_tensor
from distmetric.index.class_statistics import ClassStatistics, class_statistics
from distmetric.index.config import IndexConfig, SearchConfig
from distmetric.index.embedding_table import TableView
from distmetric.index.farthest_positives import RowNeighbors, farthest_positives
from distmetric.index.labeled_search import LabeledSearch, taken
from distmetric.index.search import Found

LAST_EFFORT = 3
"""The smallest of the builds that `Effort.of` describes."""
BLOCK_BYTES = 128 * 2**20
"""Memory for one block of rows, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How large a build may be.

    Args:
        block_bytes: Memory for one block of rows.
        search: How neighbors of rows are searched.
        neighbors: Nearest classes and nearest negatives that are listed.
        positives: Farthest positives that are listed.
        rows: Whether neighbors of rows are listed at all.
    """

    block_bytes: int
    search: SearchConfig
    neighbors: int
    positives: int
    rows: bool

    @classmethod
    def of(cls, level: int, config: IndexConfig, rows: bool) -> Effort:
        """The size of a build after it ran out of memory `level` times.

        0: as configured. 1: half the blocks, and searched on the CPU. 2: as 1, with half the neighbors listed.
        3: as 2, without neighbors of rows.
        """
        assert 0 <= level <= LAST_EFFORT, level
        share = 1 if level < 2 else 2
        return cls(
            block_bytes=BLOCK_BYTES if level == 0 else BLOCK_BYTES // 2,
            search=config.search if level == 0 else replace(config.search, device="cpu"),
            neighbors=max(1, config.neighbors // share),
            positives=max(1, config.positives // share),
            rows=rows and level < LAST_EFFORT,
        )


class ShardSummary(NamedTuple):
    """What a shard knows without comparing rows.

    Attributes:
        statistics: Of its classes that have embedded rows.
        steps: (U,) int64 distinct steps at which they were embedded, ascending.
        counts: (U,) int64 rows embedded at each.
    """

    statistics: ClassStatistics
    steps: NDArray[np.int64]
    counts: NDArray[np.int64]


class RowBlock(NamedTuple):
    """Some embedded rows: (B,) int64 places in the training split, (B, D) embeddings, (B,) int64 labels."""

    rows: Tensor
    embeddings: Tensor
    labels: Tensor


class Shard(Protocol):
    """What a build needs of a slice of the training set that holds whole classes; methods may be remote calls."""

    def summary(self) -> ShardSummary:
        """Statistics of its classes, and when its rows were embedded."""

    def row_blocks(self, size: int) -> Iterable[RowBlock]:
        """Its embedded rows in blocks of `size`, each row once."""

    def nearest_negatives(self, queries: Tensor, labels: Tensor, k: int) -> Found:
        """Its rows of other classes that are nearest to each query.

        Args:
            queries: (Q, D) embeddings.
            labels: (Q,) int64 class of each.
            k: How many.

        Returns:
            (Q, k) places in the training split, nearest first, ties by place, -1 where there are no more.
        """

    def farthest_positives(self, count: int) -> Iterable[RowNeighbors]:
        """The `count` farthest rows of the same class for each of its embedded rows, in blocks."""

    def backend(self) -> str:
        """Who searched rows, on which device, exact or with which recall; empty before the first search."""


class LocalShard:
    """A shard in this process.

    Args:
        view: The embeddings of its rows, with labels 0..C-1 of the whole training set.
        search: How neighbors of rows are searched; None for the defaults.
        rows: (M',) place of each row of the view in the training split, ascending; None for 0..M'-1.
        threads: CPU threads of a search; None leaves it to the library.
        block_bytes: Memory for one block of rows, in bytes.

    Memory: one copy of the view while rows are missing; one in float32 and what the search needs on top where rows
    are searched.
    """

    def __init__(
        self,
        view: TableView,
        search: SearchConfig | None = None,
        *,
        rows: NDArray[np.int64] | None = None,
        threads: int | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        embedded = np.flatnonzero(view.steps >= 0)
        whole = len(embedded) == len(view.steps)
        self._search_config, self._threads, self._block_bytes = search, threads, block_bytes
        self._rows = torch.from_numpy(
            embedded if rows is None else np.asarray(rows, dtype=np.int64)[embedded]
        )
        self._embeddings = as_tensor(view.embeddings if whole else view.embeddings[embedded])
        self._labels = torch.from_numpy(view.labels[embedded].astype(np.int64))
        self._steps = view.steps[embedded]
        self._search: LabeledSearch | None = None

    def summary(self) -> ShardSummary:
        """Statistics of its classes, and when its rows were embedded; O(N D)."""
        steps, counts = np.unique(self._steps, return_counts=True)
        return ShardSummary(class_statistics(self._embeddings, self._labels), steps, counts)

    def row_blocks(self, size: int) -> Iterator[RowBlock]:
        """Its embedded rows in blocks of `size`, class by class."""
        for part in torch.split(self._labels.argsort(stable=True), size):
            if len(part):
                yield RowBlock(self._rows[part], self._embeddings[part].float(), self._labels[part])

    def nearest_negatives(self, queries: Tensor, labels: Tensor, k: int) -> Found:
        """Its rows of other classes that are nearest to each query: see `Shard`.

        See `LabeledSearch.search` for the cost.
        """
        if self._search is None:
            self._search = LabeledSearch(
                self._embeddings.float(),
                self._labels,
                self._search_config,
                threads=self._threads,
                block_bytes=self._block_bytes,
            )
        found = self._search.search(queries, k, exclude_labels=labels)
        return Found.of(taken(self._rows, found.rows), found.squares)

    def farthest_positives(self, count: int) -> Iterator[RowNeighbors]:
        """The `count` farthest rows of the same class for each embedded row, in blocks; O(sum n_c^2 D)."""
        blocks = farthest_positives(self._embeddings, self._labels, count, block_bytes=self._block_bytes)
        for rows, neighbors, squares in blocks:
            yield RowNeighbors(self._rows[rows], taken(self._rows, neighbors), squares)

    def backend(self) -> str:
        """Who searched rows, on which device, exact or with which recall; empty before the first search."""
        return self._search.searcher.name if self._search else ""
