"""What is measured of the index: searches of all rows for their neighbors, exact mining, building snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch

from distmetric.benchmarks.cell import Device
from distmetric.benchmarks.index.data import Rows
from distmetric.benchmarks.index.raw_faiss import RawFlat
from distmetric.index.config import InlineIndexConfig, SearchConfig
from distmetric.index.embedding_table import EmbeddingTable
from distmetric.index.neighbor_index import NeighborIndex
from distmetric.index.pruned_search import ClassBallIndex
from distmetric.index.search import measured_recall
from distmetric.index.snapshot_build import build_snapshot
from distmetric.index.snapshot_shards import LocalShard
from distmetric.index.torch_search import TorchSearcher

SAMPLED_ROWS = 200
"""Rows that recall is measured on."""


@dataclass(frozen=True)
class Settings:
    """How a method is to work.

    Args:
        k: Neighbors of every row.
        lists: Lists of an ivf index; None for four times the square root of N.
        probes: Lists that a query looks at.
        device: Where.
        threads: CPU threads.
    """

    k: int
    lists: int | None
    probes: int
    device: Device
    threads: int


class Work(Protocol):
    """A method that has been built.

    Attributes:
        k: Neighbors that it finds of each row, or class.
        backend: Who works, in words; complete after the first run.
        scanned: Share of all N x N distances that the last run computed; None for one that does not prune.
        fell_back: Whether it gave pruning up.
    """

    k: int
    backend: str
    scanned: float | None
    fell_back: bool | None

    def run(self) -> None:
        """All of the work, for all N rows."""

    def recall(self) -> dict[str, float]:
        """Share of right answers that are found, by "recall_at_k", on a sample of rows; nothing where all is right."""


class RowSearch:
    """The k nearest other rows of every row, by our index."""

    scanned: float | None = None
    fell_back: bool | None = None

    def __init__(
        self, rows: Rows, settings: Settings, backend: Literal["faiss", "torch"], kind: Literal["flat", "ivf"]
    ) -> None:
        self.k = min(settings.k, len(rows.embeddings) - 1)
        lists = settings.lists if kind == "ivf" else None
        self._embeddings = rows.embeddings
        self._index = NeighborIndex.build(
            rows.embeddings,
            rows.labels,
            search=SearchConfig(
                backend=backend, kind=kind, device=settings.device, lists=lists, probes=settings.probes
            ),
            threads=settings.threads,
        )
        self.backend = self._index.name

    def run(self) -> None:
        """Search."""
        self._index.search(self._embeddings, self.k, exclude_ids=self._index.ids)

    def recall(self) -> dict[str, float]:
        """Against the exact search; a row as near as the k-th nearest is right."""
        return {f"recall_at_{k}": self._index.recall(k) for k in sorted({min(10, self.k), self.k})}


class RawSearch:
    """The same by FAISS's own flat index, which finds every row itself first, so that it is asked for one more."""

    scanned: float | None = None
    fell_back: bool | None = None

    def __init__(self, rows: Rows, settings: Settings, metric: Literal["l2", "ip"]) -> None:
        self.k = min(settings.k, len(rows.embeddings) - 1)
        self._embeddings = rows.embeddings
        self._flat = RawFlat(rows.embeddings, metric, settings.device)
        self.backend = self._flat.name

    def run(self) -> None:
        """Search."""
        self._flat.find_all(self.k + 1)

    def recall(self) -> dict[str, float]:
        """Against the exact search; a row as near as the k-th nearest is right."""
        embeddings = self._embeddings
        exact = TorchSearcher(embeddings, embeddings.device)
        sample = sample_of(len(embeddings)).to(embeddings.device)
        return {
            f"recall_at_{k}": measured_recall(self._flat, exact, embeddings[sample], k, own=sample)
            for k in sorted({min(10, self.k), self.k})
        }


class HardestNegative:
    """The nearest row of another class for every row, by flat search without the own class."""

    k = 1
    scanned: float | None = None
    fell_back: bool | None = None

    def __init__(self, rows: Rows, settings: Settings) -> None:
        self._rows = rows
        search = SearchConfig(backend="faiss", kind="flat", device=settings.device)
        self._index = NeighborIndex.build(
            rows.embeddings, rows.labels, search=search, threads=settings.threads
        )
        self.backend = self._index.name
        self._found = torch.empty(0)

    def run(self) -> None:
        """Search."""
        rows = self._rows
        self._found = self._index.search(rows.embeddings, 1, exclude_labels=rows.labels).ids[:, 0]

    def recall(self) -> dict[str, float]:
        """Against the smallest of all distances to other classes."""
        return {"recall_at_1": negatives_found(self._rows, self._found)}


class PrunedNegative:
    """The same by branch and bound over class balls, or by brute force where they say that it is faster."""

    k = 1

    def __init__(self, rows: Rows, settings: Settings) -> None:
        self._rows = rows
        self._index = ClassBallIndex.build(rows.embeddings, rows.labels)
        self._members = self._index.members()
        self.backend = f"class balls on {settings.device}, exact"
        self.scanned: float | None = None
        self.fell_back: bool | None = None
        self._found = torch.empty(0)

    def run(self) -> None:
        """Search."""
        mined = self._index.hardest_negative(self._members)
        self.scanned, self.fell_back = mined.effort.fraction, mined.effort.fell_back
        self._found = mined.rows[:, 0]

    def recall(self) -> dict[str, float]:
        """Against the smallest of all distances to other classes."""
        return {"recall_at_1": negatives_found(self._rows, self._found)}


class SnapshotBuild:
    """A snapshot of all rows, from an embedding table in which each has been put."""

    scanned: float | None = None
    fell_back: bool | None = None

    def __init__(self, rows: Rows, settings: Settings, row_lists: bool) -> None:
        self.k, self._row_lists, self._threads = settings.k, row_lists, settings.threads
        self._config = InlineIndexConfig(
            neighbors=settings.k, search=SearchConfig(device=settings.device, probes=settings.probes)
        )
        labels = rows.labels.cpu().numpy()
        self._table = EmbeddingTable(labels, rows.num_classes, rows.embeddings.shape[1])
        self._table.put(torch.arange(len(labels)).numpy(), rows.embeddings.cpu().numpy(), step=0)
        self.backend = ""

    def run(self) -> None:
        """Copy the table and build."""
        view = self._table.view()
        snapshot = build_snapshot(
            [LocalShard(view, self._config.search, threads=self._threads)],
            version=1,
            num_rows=len(view.labels),
            num_classes=view.num_classes,
            config=self._config,
            rows=self._row_lists,
        )
        self.backend = snapshot.backend

    def recall(self) -> dict[str, float]:
        """Nothing: it is exact, or its backend says its recall."""
        return {}


@dataclass(frozen=True)
class Method:
    """One of what is measured.

    Args:
        make: Builds it over rows.
        on_gpu: Whether a GPU makes any difference to it.
    """

    make: Callable[[Rows, Settings], Work]
    on_gpu: bool = True


METHODS: dict[str, Method] = {
    "faiss_l2": Method(partial(RawSearch, metric="l2")),
    "faiss_ip": Method(partial(RawSearch, metric="ip")),
    "torch": Method(partial(RowSearch, backend="torch", kind="flat")),
    "flat": Method(partial(RowSearch, backend="faiss", kind="flat")),
    "ivf": Method(partial(RowSearch, backend="faiss", kind="ivf")),
    "flat_negative": Method(HardestNegative),
    "class_balls": Method(PrunedNegative),
    "snapshot": Method(partial(SnapshotBuild, row_lists=False), on_gpu=False),
    "row_snapshot": Method(partial(SnapshotBuild, row_lists=True)),
}
"""Raw FAISS, our searches, exact mining, and snapshots with neighbors of classes alone or of rows, too."""


def sample_of(size: int) -> torch.Tensor:
    """(n,) int64 rows, ascending, that answers are checked on; the same for the same size."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[:SAMPLED_ROWS].sort().values


def negatives_found(rows: Rows, found: torch.Tensor) -> float:
    """Share of a sample of rows for which no row of another class is nearer than the one that was found.

    Args:
        rows: N of them.
        found: (N,) int64 row found for each.
    """
    embeddings, right = rows.embeddings.double(), 0
    sample = sample_of(len(embeddings)).tolist()
    for row in sample:
        distances = (embeddings - embeddings[row]).norm(dim=1)
        distances.masked_fill_(rows.labels == rows.labels[row], torch.inf)
        right += bool(distances[found[row]] <= distances.min() * (1 + 1e-12))
    return right / len(sample)
