"""How much memory and time an index over very many rows takes: arithmetic, before any of it is bought.

Symbols: M rows, C classes, D dimensions, S shards, k neighbors, p positives listed. Byte counts of single objects are
exact and equal their `nbytes`; what a whole rebuild takes is their sum at its worst moment; seconds follow from two
speeds of the machine, that of a large float32 multiplication and that of copying memory.

    python -m distmetric.index.scale        # a table for up to 10^8 rows, at the speed of two CPU cores
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from distmetric.index.snapshot import STALENESS
from distmetric.index.snapshot_shards import BLOCK_BYTES

Storage = Literal["float32", "float16"]
Kind = Literal["flat", "ivf"]

# What the parts of a build cost beyond plain multiplications and copies, fitted to runs of 10,000 to 60,000 rows on a
# CPU; `jobs/benchmark.py suite=index` shows how well it fits elsewhere.
_FLOAT64 = 3.5
"""Time of comparing members of a class in float64, in that of the float32 multiplication alone."""
_FLAT_CLASSES = 200_000
"""Classes up to which the nearest are sought among all of them; among more, in lists."""
_STATISTICS_COPIES = 30.0
"""Time of class statistics, in copies of the float32 rows: two passes in float64, block by block."""
_SCANNED = 1.5
"""Time of comparing with all rows, in that of the multiplication alone."""
_LISTED = 12.0
"""Time of comparing with one row of an inverted list, in that of a row in a large multiplication."""
_CHOSEN = 70_000.0
"""Time to choose, order and settle one neighbor that is listed, in float32 operations."""
_TRAINING_ROUNDS, _TRAINING_ROWS = 10, 64
"""Rounds of k-means for inverted lists, and rows for each list."""
_ROW_BYTES = 64
"""Labels, places, steps and radii of one row while a shard is summed up."""
_SUMMED_BYTES = 16 * 2**20
"""Rows in float64 while a shard is summed up, block by block."""


@dataclass(frozen=True, kw_only=True)
class IndexSize:
    """What an index is to hold, and to tell.

    Args:
        rows: M, rows of the training split.
        classes: C.
        dim: D.
        storage: Numbers that the table keeps embeddings in.
        shards: S, actors that share the rows, whole classes each.
        neighbors: k, nearest classes (and nearest negatives) listed.
        positives: p, farthest positives listed.
        row_lists: Whether neighbors of rows are listed at all.
        kind: How negatives of rows are searched.
        lists: Lists of an ivf index over a shard; None for four times the square root of its rows.
        probes: Lists that a query looks at.
    """

    rows: int
    classes: int
    dim: int
    storage: Storage = "float32"
    shards: int = 1
    neighbors: int = 100
    positives: int = 16
    row_lists: bool = False
    kind: Kind = "flat"
    lists: int | None = None
    probes: int = 32

    @property
    def rows_per_shard(self) -> int:
        """Rows of the largest shard, if classes are spread evenly."""
        return -(-self.rows // self.shards)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a machine does per second.

    Args:
        flops: Additions and multiplications of a large float32 matrix product, two for each pair of numbers.
        bytes_per_second: Read and written when memory is copied.
    """

    flops: float
    bytes_per_second: float


TWO_CORES = Speed(flops=1e11, bytes_per_second=2e10)
"""About what two cores of a server's processor do."""


@dataclass(frozen=True, kw_only=True)
class BuildBytes:
    """Memory at the worst moment of a rebuild, in bytes; with one shard all of it is in one actor.

    Args:
        table: The embedding table of one shard.
        views: Two copies of it: what the last build saw, against which drift is measured, and what this one sees.
        search: The searcher of its rows as it is built, rows in float32 where the table keeps fewer bits, one block.
        work: What a shard holds per row while it is summed up, and one block.
        classes: Statistics of all classes while nearest ones are sought, and one block; in one actor.
        snapshots: The published snapshot and the one that is being built; in the same.
    """

    table: int
    views: int
    search: int
    work: int
    classes: int
    snapshots: int

    @property
    def shard(self) -> int:
        """Of an actor that holds rows."""
        return self.table + self.views + self.search + self.work

    @property
    def coordinator(self) -> int:
        """What the actor holds that builds the snapshot, on top of rows if it has any."""
        return self.classes + self.snapshots


@dataclass(frozen=True, kw_only=True)
class BuildSeconds:
    """Time of a rebuild with all shards at work at once, in seconds.

    Args:
        copy: Copying the table.
        statistics: Centers and radii of the classes.
        classes: Nearest classes, which one actor finds for all.
        negatives: Nearest rows of other classes.
        positives: Farthest rows of the same class.
    """

    copy: float
    statistics: float
    classes: float
    negatives: float
    positives: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.copy + self.statistics + self.classes + self.negatives + self.positives


def table_bytes(rows: int, dim: int, storage: Storage = "float32") -> int:
    """An embedding table without views: M (D s + 12), s the bytes of a number, and a step and a label per row."""
    return rows * (dim * _width(storage) + 12)


def view_bytes(rows: int, dim: int, storage: Storage = "float32") -> int:
    """A view of a table: M (D s + 8)."""
    return rows * (dim * _width(storage) + 8)


def statistics_bytes(classes: int, dim: int) -> int:
    """Class statistics: C (8 D + 40)."""
    return classes * (8 * dim + 40)


def found_bytes(queries: int, k: int) -> int:
    """What a search found: 20 Q k, a row and its distance, squared in full precision too."""
    return 20 * queries * k


def snapshot_bytes(size: IndexSize) -> int:
    """A snapshot: C (4 D + 16 + 8 k), and where rows are listed 8 M (k + p)."""
    of_classes = min(size.neighbors, max(1, size.classes - 1))
    found = size.classes * (4 * size.dim + 16 + 8 * of_classes) + 8 * len(STALENESS)
    if size.row_lists:
        others = max(1, size.rows - 1)
        found += 8 * size.rows * (min(size.neighbors, others) + min(size.positives, others))
    return found


def num_lists(rows: int, lists: int | None = None) -> int:
    """Lists of an ivf index over so many rows: four times the square root, with 39 rows or more for each."""
    return lists or max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def searcher_bytes(rows: int, dim: int, kind: Kind = "flat", lists: int | None = None) -> int:
    """A FAISS index over rows that somebody else keeps: flat 4 M D; ivf M (4 D + 8) and its centers."""
    if kind == "flat":
        return 4 * rows * dim
    return rows * (4 * dim + 8) + 4 * num_lists(rows, lists) * dim


def search_operations(
    queries: int, rows: int, dim: int, k: int, kind: Kind = "flat", lists: int | None = None, probes: int = 32
) -> float:
    """Time to search rows for the k nearest of each query, in float32 operations of a large multiplication.

    flat: 2 Q M D a + Q k c; ivf: 2 Q D (L + b P M / L) + Q k c, with L lists, P probes and fitted a, b, c
    """
    if kind == "flat":
        compared = _SCANNED * rows
    else:
        total = num_lists(rows, lists)
        compared = total + _LISTED * min(probes, total) * rows / total
    return 2 * queries * dim * compared + _CHOSEN * queries * k


def training_operations(rows: int, dim: int, lists: int | None = None) -> float:
    """Time to make the lists of an ivf index over rows, in float32 operations: k-means, and filling them."""
    total = num_lists(rows, lists)
    sample = min(rows, _TRAINING_ROWS * total)
    return 2 * dim * total * (_TRAINING_ROUNDS * sample + rows)


def build_bytes(size: IndexSize) -> BuildBytes:
    """Memory of a rebuild.

    Args:
        size: Of the index.
    """
    rows, dim = size.rows_per_shard, size.dim
    k = min(size.neighbors, max(1, size.classes - 1))
    block = min(BLOCK_BYTES, size.classes * (100 * k + 32 * dim))
    of_classes = searcher_bytes(size.classes, dim + 1, _kind_of_classes(size))
    of_classes += 4 * size.classes * (dim + 1) * (1 if _kind_of_classes(size) == "flat" else 3)
    search = 0
    if size.row_lists:
        copies = (
            1 if size.kind == "flat" else 3
        )  # beside the index: what goes into it; a flat one to measure recall
        search = searcher_bytes(rows, dim, size.kind, size.lists) + 4 * rows * dim * copies
        search += 0 if size.storage == "float32" else 4 * rows * dim
        search += min(BLOCK_BYTES, rows * (96 * int(size.neighbors + size.rows / size.classes) + 12 * dim))
    return BuildBytes(
        table=table_bytes(rows, dim, size.storage),
        views=2 * view_bytes(rows, dim, size.storage),
        search=search,
        work=_ROW_BYTES * rows + min(_SUMMED_BYTES, 8 * rows * dim),
        classes=2 * statistics_bytes(size.classes, dim)
        + size.classes * (8 * (dim + 1) + 24 * k)
        + of_classes
        + block,
        snapshots=2 * snapshot_bytes(size),
    )


def build_seconds(size: IndexSize, speed: Speed) -> BuildSeconds:
    """Time of a rebuild, from what a machine does per second.

    Args:
        size: Of the index.
        speed: Of the machine of each shard.

    Good to a factor of about two; what it leaves out is the way of the results between shards.
    """
    rows, dim = size.rows_per_shard, size.dim
    k = min(size.neighbors, max(1, size.classes - 1))
    members = size.rows / size.classes
    classes = search_operations(size.classes, size.classes, dim + 1, k, _kind_of_classes(size))
    classes += training_operations(size.classes, dim + 1) if _kind_of_classes(size) == "ivf" else 0
    negatives = positives = 0.0
    if size.row_lists:
        wanted = int(size.neighbors + members)
        negatives = search_operations(size.rows, rows, dim, wanted, size.kind, size.lists, size.probes)
        negatives += training_operations(rows, dim, size.lists) if size.kind == "ivf" else 0
        positives = _FLOAT64 * 2 * rows * members * dim + _CHOSEN * rows * min(size.positives, members)
    return BuildSeconds(
        copy=2 * view_bytes(rows, dim, size.storage) / speed.bytes_per_second,
        statistics=_STATISTICS_COPIES * 8 * rows * dim / speed.bytes_per_second,
        classes=classes / speed.flops,
        negatives=negatives / speed.flops,
        positives=positives / speed.flops,
    )


def _kind_of_classes(size: IndexSize) -> Kind:
    return "flat" if size.classes <= _FLAT_CLASSES else "ivf"


def _width(storage: Storage) -> int:
    return 4 if storage == "float32" else 2


def table(speed: Speed = TWO_CORES) -> str:
    """What rebuilds of up to 10^8 rows take with the default settings, as a Markdown table.

    Args:
        speed: Of the machine of each shard.
    """
    titles = [
        "rows",
        "D",
        "classes",
        "shards",
        "GiB per shard",
        "GiB for classes",
        "GiB of a snapshot",
        "time",
    ]
    titles += [f"{title}, with rows" for title in ("GiB per shard", "GiB of a snapshot", "time")]
    lines = [titles, ["---:"] * len(titles)]
    for rows, shards in ((10**6, 1), (10**7, 4), (10**8, 32)):
        for dim in (128, 512):
            for members in (100, 10):
                lines.append(
                    _line(IndexSize(rows=rows, classes=rows // members, dim=dim, shards=shards), speed)
                )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(size: IndexSize, speed: Speed) -> list[str]:
    listed = replace(size, row_lists=True, kind="ivf")
    memory, more = build_bytes(size), build_bytes(listed)
    return [
        *(f"{size.rows:,}", str(size.dim), f"{size.classes:,}", str(size.shards)),
        *(_gib(memory.shard), _gib(memory.coordinator), _gib(snapshot_bytes(size))),
        _time(build_seconds(size, speed).total),
        *(_gib(more.shard), _gib(snapshot_bytes(listed)), _time(build_seconds(listed, speed).total)),
    ]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g}"


def _time(seconds: float) -> str:
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        if seconds < 100 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.2g} d"


if __name__ == "__main__":
    print(table())
