"""The arithmetic of scale: bytes equal those of the real objects, and both bytes and seconds grow as they must."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.benchmarks.data import clusters
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from distmetric.index import scale
from distmetric.index.class_statistics import class_statistics
from distmetric.index.config import InlineIndexConfig, SearchConfig
from distmetric.index.embedding_table import EmbeddingTable
from distmetric.index.scale import BuildBytes, IndexSize, Speed
from distmetric.index.search import build_searcher
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import build_snapshot
from distmetric.index.snapshot_shards import LocalShard
from memory_process import measured

Storage = Literal["float32", "float16"]
MIB = 1 << 20
SPEED = Speed(flops=1e11, bytes_per_second=2e10)


def table_of(rows: int, per_class: int, dim: int, storage: Storage = "float32") -> EmbeddingTable:
    embeddings, labels = clusters(rows, dim, per_class, 0.1, 0)
    table = EmbeddingTable(labels.numpy(), int(labels.max()) + 1, dim, storage)
    table.put(np.arange(rows), embeddings.numpy(), step=3)
    return table


def snapshot_of(table: EmbeddingTable, config: InlineIndexConfig, rows: bool) -> NeighborSnapshot:
    return build_snapshot(
        [LocalShard(table.view(), config.search)],
        version=1,
        num_rows=len(table.labels),
        num_classes=table.num_classes,
        config=config,
        rows=rows,
    )


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 60),
    dim=st.integers(1, 9),
    per_class=st.integers(1, 7),
    storage=st.sampled_from(["float32", "float16"]),
)
def test_a_table_and_its_views_take_what_is_said(
    rows: int, dim: int, per_class: int, storage: Storage
) -> None:
    table = table_of(rows, per_class, dim, storage)
    view = table.view()
    assert table.nbytes == scale.table_bytes(rows, dim, storage)
    assert view.nbytes == scale.view_bytes(rows, dim, storage)
    table.mark_built(view)
    assert table.nbytes == scale.table_bytes(rows, dim, storage) + scale.view_bytes(rows, dim, storage)


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(2, 40),
    per_class=st.integers(1, 6),
    neighbors=st.integers(1, 50),
    positives=st.integers(1, 50),
    lists=st.booleans(),
)
def test_a_snapshot_takes_what_is_said(
    rows: int, per_class: int, neighbors: int, positives: int, lists: bool
) -> None:
    table = table_of(rows, per_class, 5)
    config = InlineIndexConfig(
        neighbors=neighbors, positives=positives, search=SearchConfig(backend="torch", kind="flat")
    )
    size = IndexSize(
        rows=rows,
        classes=table.num_classes,
        dim=5,
        neighbors=neighbors,
        positives=positives,
        row_lists=lists,
    )
    assert snapshot_of(table, config, lists).nbytes == scale.snapshot_bytes(size)


def test_statistics_and_results_take_what_is_said() -> None:
    embeddings, labels = clusters(30, 6, 4, 0.1, 0)
    statistics = class_statistics(embeddings, labels)
    assert sum(each.nbytes for each in vars(statistics).values()) == scale.statistics_bytes(8, 6)
    found = build_searcher(embeddings, SearchConfig(backend="torch")).search(embeddings[:7], 3)
    assert sum(each.nbytes for each in vars(found).values()) == scale.found_bytes(7, 3)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_searcher_takes_what_is_said(kind: Literal["flat", "ivf"]) -> None:
    faiss = pytest.importorskip("faiss")
    embeddings, _ = clusters(4000, 24, 4, 0.1, 0)
    searcher = build_searcher(embeddings, SearchConfig(backend="faiss", kind=kind, device="cpu"))
    written = len(faiss.serialize_index(searcher._index))
    assert written == pytest.approx(scale.searcher_bytes(4000, 24, kind), rel=0.02)
    if kind == "ivf":
        assert f"ivf {scale.num_lists(4000)}/" in searcher.name


REBUILD = """
import sys
from index.test_scale import rebuild_bytes
print(*rebuild_bytes(sys.argv[1] == "True"))
"""


def rebuild_bytes(row_lists: bool) -> tuple[float, float]:
    """Memory that a rebuild takes, and that it is said to take, in a process that has done nothing else."""
    rows, dim = (8_000, 256) if row_lists else (60_000, 128)
    table = table_of(rows, 10, dim)
    config = InlineIndexConfig(neighbors=20, positives=4)
    snapshot_of(table_of(600, 10, dim), config, row_lists)  # libraries and threads
    taken = []
    for _ in range(3):  # how the heap lies differs, what a rebuild needs does not
        give_back_free()
        memory = PeakMemory(torch.device("cpu"))
        snapshot_of(table, config, row_lists)
        taken.append(memory.above_base())
    size = IndexSize(rows=rows, classes=rows // 10, dim=dim, neighbors=20, positives=4, row_lists=row_lists)
    said = scale.build_bytes(size)
    return min(taken), said.views // 2 + said.search + said.work + said.classes + said.snapshots // 2


@pytest.mark.parametrize("row_lists", [False, True])
def test_a_rebuild_takes_no_more_memory_than_is_said(row_lists: bool) -> None:
    (line,) = measured(REBUILD, row_lists)
    taken, beside = map(float, line.split())
    assert 0.3 * beside < taken < 1.15 * beside


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_shards_divide_what_belongs_to_rows_and_nothing_else(kind: Literal["flat", "ivf"]) -> None:
    one = IndexSize(rows=10**8, classes=10**6, dim=128, row_lists=True, kind=kind, lists=4096)
    ten = replace(one, shards=10)
    alone, shared = scale.build_bytes(one), scale.build_bytes(ten)
    assert shared.table * 10 == alone.table
    assert shared.shard * 10 == pytest.approx(alone.shard, rel=0.01)
    assert shared.coordinator == alone.coordinator
    alone_s, shared_s = scale.build_seconds(one, SPEED), scale.build_seconds(ten, SPEED)
    assert shared_s.copy * 10 == pytest.approx(alone_s.copy)
    assert shared_s.positives * 10 == pytest.approx(alone_s.positives)
    assert shared_s.classes == alone_s.classes
    assert alone_s.negatives / 10 <= shared_s.negatives < alone_s.negatives
    assert alone_s.total == pytest.approx(
        alone_s.copy + alone_s.statistics + alone_s.classes + alone_s.negatives + alone_s.positives
    )


def test_what_is_not_asked_for_costs_nothing() -> None:
    size = IndexSize(rows=10**6, classes=10**4, dim=64)
    assert scale.build_bytes(size).search == 0
    seconds = scale.build_seconds(size, SPEED)
    assert seconds.negatives == seconds.positives == 0
    half = replace(size, storage="float16")
    assert scale.table_bytes(1, 64, "float16") == 128 + 12
    # Rows that are searched are searched in float32.
    more = scale.build_bytes(replace(half, row_lists=True)).search
    assert more - scale.build_bytes(replace(size, row_lists=True)).search == 4 * 10**6 * 64  # blocks are full


def test_lists_pay_only_where_there_are_many_rows() -> None:
    def operations(rows: int, kind: Literal["flat", "ivf"]) -> float:
        own = scale.training_operations(rows, 128) if kind == "ivf" else 0.0
        return own + scale.search_operations(rows, rows, 128, 10, kind)

    assert operations(2_000, "ivf") > 0.5 * operations(2_000, "flat")
    assert operations(10**7, "ivf") < 0.05 * operations(10**7, "flat")


@pytest.mark.parametrize("faster", [replace(SPEED, flops=2e11), replace(SPEED, bytes_per_second=4e10)])
def test_a_faster_machine_is_faster(faster: Speed) -> None:
    size = IndexSize(rows=10**6, classes=10**5, dim=128, row_lists=True)
    assert scale.build_seconds(size, faster).total < scale.build_seconds(size, SPEED).total


def test_ten_times_the_rows_of_as_many_classes_take_ten_times_the_memory() -> None:
    small = scale.build_bytes(IndexSize(rows=10**6, classes=10**4, dim=128))
    large = scale.build_bytes(IndexSize(rows=10**7, classes=10**4, dim=128))
    assert (large.table, large.views) == (10 * small.table, 10 * small.views)
    assert isinstance(small, BuildBytes)
    assert large.coordinator == small.coordinator


def test_the_table_has_a_line_for_every_size_and_both_modes() -> None:
    lines = [line.strip("| ").split(" | ") for line in scale.table(SPEED).splitlines()]
    assert len(lines) == 2 + 3 * 2 * 2
    assert {len(line) for line in lines} == {11}
    size = IndexSize(rows=10**7, classes=10**5, dim=128, shards=4)
    line = next(line for line in lines if line[:4] == ["10,000,000", "128", "100,000", "4"])
    assert line[4] == f"{scale.build_bytes(size).shard / 2**30:.3g}"
    assert line[6] == f"{scale.snapshot_bytes(size) / 2**30:.3g}"
    assert line[7] == f"{scale.build_seconds(size, SPEED).total:.2g} s"
    units = [line[column].split()[1] for line in lines[2:] for column in (7, 10)]
    assert set(units) == {"s", "min", "h"}
