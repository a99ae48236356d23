"""What the index actor decides, in this process: when it builds, what it publishes, and what it survives."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from distmetric.cluster.index_actor import NeighborIndexActor
from distmetric.cluster.index_messages import News, in_one_line
from distmetric.cluster.index_shard import HeldClasses, usable_search
from distmetric.index.config import SearchConfig, SweepIndexConfig
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import build_snapshot
from distmetric.index.snapshot_store import SnapshotStore
from index_rows import CLASSES, DIM, LABELS, ROWS, STREAM, assert_same, by_hand, embeddings

PATIENCE = 20.0


def actor(
    tmp_path: Any, config: Any = STREAM, of: type[NeighborIndexActor] = NeighborIndexActor
) -> NeighborIndexActor:
    return of(lambda: LABELS, DIM, config, str(tmp_path / "index"), True)


async def push_all(index: NeighborIndexActor, step: int, moved: float = 1.0, rows: Any = None) -> None:
    rows = np.arange(ROWS) if rows is None else rows
    for part in np.array_split(rows, 4):
        await index.push(step, part, embeddings(step, moved)[part])


async def newer(index: NeighborIndexActor, after: int) -> News:
    news = await index.next_snapshot(after, PATIENCE)
    assert news.snapshot is not None, "no newer snapshot in time"
    return news


async def nothing_newer(index: NeighborIndexActor, after: int) -> News:
    news = await index.next_snapshot(after, 0.7)
    assert news.snapshot is None, f"version {news.snapshot.version} came unasked"
    return news


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


class Held(NeighborIndexActor):
    """Its builds wait until they are let go."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.begun, self.go = threading.Event(), threading.Event()

    def _build_snapshot(self, held: Sequence[HeldClasses], version: int, effort: int) -> NeighborSnapshot:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return super()._build_snapshot(held, version, effort)


class Failing(NeighborIndexActor):
    """Its first builds fail."""

    failures: tuple[Exception, ...] = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.left, self.tried = list(self.failures), []

    def _build_snapshot(self, held: Sequence[HeldClasses], version: int, effort: int) -> NeighborSnapshot:
        self.tried.append(effort)
        if self.left:
            raise self.left.pop(0)
        return super()._build_snapshot(held, version, effort)


def failing(*failures: Exception) -> type[Failing]:
    return type("FailingThen", (Failing,), {"failures": failures})


def test_what_is_pushed_is_what_a_table_filled_by_hand_gives(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path)
        await push_all(index, 3)
        news = await newer(index, 0)
        assert_same(news.snapshot, by_hand(3))
        assert_same(SnapshotStore(str(tmp_path / "index")).newest(), by_hand(3))
        assert news.gauges == {"coverage": 1.0, "rows_embedded": ROWS}
        assert news.counts == {"rebuilds": 1, "failed_rebuilds": 0, "failed_sweeps": 0, "rejected_rows": 0}

    run(work)


def test_it_builds_when_enough_classes_are_known_and_then_every_refresh(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path, replace(STREAM, min_coverage=0.75))
        await push_all(index, 0, rows=np.flatnonzero(LABELS < 8))
        assert (await nothing_newer(index, 0)).gauges["coverage"] == pytest.approx(8 / 12)
        await push_all(index, 1, rows=np.flatnonzero(LABELS == 8))
        first = (await newer(index, 0)).snapshot
        assert (first.version, first.step) == (1, 1)
        assert first.class_counts.tolist() == [5] * 9 + [0] * 3
        await push_all(index, 10)
        await nothing_newer(index, 1)
        await push_all(index, 11)
        second = (await newer(index, 1)).snapshot
        assert (second.version, second.step) == (2, 11)

    run(work)


def test_drift_asks_for_an_early_build_and_rest_does_not(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path, replace(STREAM, drift_fraction=0.25, refresh_steps=1000))
        await push_all(index, 0, moved=0.0)
        await newer(index, 0)
        await push_all(index, 300, moved=0.0)
        await nothing_newer(index, 1)
        await push_all(index, 600, moved=2.0)
        assert (await newer(index, 1)).snapshot.step == 600

    run(work)


def test_pushes_and_questions_are_answered_during_a_build_and_no_second_one_begins(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path, of=Held)
        await push_all(index, 3)
        while not index.begun.is_set():
            await asyncio.sleep(0.01)
        await push_all(index, 4)
        await push_all(index, 40)
        assert (await index.next_snapshot(0, 0.05)).snapshot is None
        assert not await index.rebuild()
        index.go.set()
        assert_same((await newer(index, 0)).snapshot, by_hand(3))
        assert_same((await newer(index, 1)).snapshot, by_hand(40, version=2))

    run(work)


def test_out_of_memory_twice_then_smaller(tmp_path, caplog) -> None:
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    async def work() -> None:
        index = actor(tmp_path, of=failing(MemoryError("12 GiB"), error))
        await push_all(index, 3)
        news = await newer(index, 0)
        assert (news.counts["failed_rebuilds"], news.counts["rebuilds"]) == (2, 1)
        whole = by_hand(3)
        assert_same(
            news.snapshot,
            replace(
                whole,
                class_neighbors=whole.class_neighbors[:, :2],
                class_distances=whole.class_distances[:, :2],
                row_negatives=whole.row_negatives[:, :2],
                row_negative_distances=whole.row_negative_distances[:, :2],
                row_positives=whole.row_positives[:, :1],
                row_positive_distances=whole.row_positive_distances[:, :1],
            ),
        )
        for step, efforts in ((20, [0, 1, 2, 1]), (40, [0, 1, 2, 1, 0])):  # and step by step back
            await push_all(index, step)
            await newer(index, index._newest)
            assert index.tried == efforts

    with caplog.at_level(logging.WARNING):
        run(work)
    lines = [record.message for record in caplog.records]
    assert [line for line in lines if "\n" in line] == []
    assert lines == [
        "snapshot 1 of the index failed, trying again with smaller blocks, on the CPU (MemoryError: 12 GiB)",
        f"snapshot 1 of the index failed, trying again with half the neighbors (RuntimeError: {error})",
    ]


def test_a_build_that_fails_at_every_size_waits_for_the_next_refresh(tmp_path, caplog) -> None:
    async def work() -> None:
        index = actor(tmp_path, of=failing(*(MemoryError() for _ in range(4))))
        await push_all(index, 3)
        news = await nothing_newer(index, 0)
        assert (news.counts["failed_rebuilds"], news.counts["rebuilds"], index.tried) == (4, 0, [0, 1, 2, 3])
        await push_all(index, 12)
        assert (await nothing_newer(index, 0)).counts["failed_rebuilds"] == 4
        await push_all(index, 13)
        assert_same((await newer(index, 0)).snapshot, by_hand(13))

    with caplog.at_level(logging.WARNING):
        run(work)
    assert "there is none until the next refresh" in caplog.records[-1].message


def test_what_cannot_be_stored_is_not_published(tmp_path, caplog) -> None:
    (tmp_path / "index").write_text("a file where the folder should be")

    async def work() -> None:
        index = actor(tmp_path)
        await push_all(index, 3)
        assert (await nothing_newer(index, 0)).counts["failed_rebuilds"] == 1
        (tmp_path / "index").unlink()
        await push_all(index, 13)
        assert_same((await newer(index, 0)).snapshot, by_hand(13))

    with caplog.at_level(logging.WARNING):
        run(work)
    assert "cannot be written" in caplog.text


def test_a_new_incarnation_publishes_what_is_stored_and_counts_on(tmp_path) -> None:
    async def work() -> None:
        first = actor(tmp_path)
        await push_all(first, 30)
        before = await newer(first, 0)
        second = actor(tmp_path)
        after = await newer(second, 0)
        assert after.incarnation != before.incarnation
        assert_same(after.snapshot, before.snapshot)
        assert after.gauges["rows_embedded"] == 0
        await push_all(second, 39)
        await nothing_newer(second, 1)
        await push_all(second, 40)
        assert_same((await newer(second, 1)).snapshot, by_hand(40, version=2))

    run(work)


def test_training_resumed_from_before_the_stored_snapshot_gets_a_new_one_a_refresh_later(tmp_path) -> None:
    async def work() -> None:
        first = actor(tmp_path)
        await push_all(first, 500)
        await newer(first, 0)
        second = actor(tmp_path)
        await push_all(second, 400)
        await nothing_newer(second, 1)
        await push_all(second, 410)
        assert (await newer(second, 1)).snapshot.step == 410

    run(work)


def test_versions_never_go_back_even_if_the_store_is_lost(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path)
        await nothing_newer(index, 7)
        await push_all(index, 3)
        assert (await newer(index, 7)).snapshot.version == 8

    run(work)


def test_a_damaged_stored_snapshot_is_passed_over(tmp_path, caplog) -> None:
    store = SnapshotStore(str(tmp_path / "index"))
    for version in (1, 2):
        store.save(by_hand(3, version))
    (tmp_path / "index" / "snapshot_00000002.arrow").write_bytes(b"nothing")

    async def work() -> None:
        index = actor(tmp_path)
        assert_same((await newer(index, 0)).snapshot, by_hand(3, 1))
        await push_all(index, 30)
        assert_same((await newer(index, 1)).snapshot, by_hand(30, 3))

    run(work)


def test_stale_rows_come_with_the_answer_to_a_push_and_only_if_asked_for(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path)
        await push_all(index, 10, rows=np.arange(0, ROWS, 2))
        seen = np.array([0, 2])
        assert len((await index.push(50, seen, embeddings(50)[seen])).stale_rows) == 0
        stale = [(await index.push(50, seen, embeddings(50)[seen], 20, 40)).stale_rows for _ in range(3)]
        assert [len(rows) for rows in stale] == [20, 20, ROWS - 2 - 40]
        assert sorted(np.concatenate(stale)) == sorted(set(range(ROWS)) - {0, 2})
        assert set(stale[0]) <= set(range(1, ROWS, 2)), "those never seen come first"

    run(work)


def test_rejected_rows_are_counted_and_do_no_harm(tmp_path) -> None:
    async def work() -> None:
        index = actor(tmp_path)
        broken = embeddings(2)
        broken[5] = np.nan
        await index.push(2, np.arange(ROWS), broken)
        news = await newer(index, 0)
        assert news.counts["rejected_rows"] == 1
        assert news.snapshot.class_counts.sum() == ROWS - 1

    run(work)


def test_shards_hold_the_same_rows_as_one(tmp_path) -> None:
    held = [HeldClasses(LABELS, DIM, STREAM, True, place, 3) for place in range(3)]
    for place, one in enumerate(held):
        rows = np.flatnonzero(place == LABELS % 3)
        ack = one.push(3, rows[::-1], embeddings(3)[rows[::-1]], 0, 0)
        assert ack.wanted
        one.freeze()
    found = build_snapshot(
        [one.open(0) for one in held], version=1, num_rows=ROWS, num_classes=CLASSES, config=STREAM, rows=True
    )
    assert_same(found, by_hand(3))
    statuses = [one.status() for one in held]
    assert [status.embedded for status in statuses] == [20, 20, 20]
    assert [(status.covered, status.classes) for status in statuses] == [(4, 4)] * 3
    late = held[1].push(100, np.array([7]), embeddings(100)[[7]], 100, 90)
    assert LABELS[7] % 3 == 1
    assert sorted(late.stale_rows) == sorted(set(np.flatnonzero(LABELS % 3 == 1)) - {7})


def test_a_sweep_keeps_its_own_step_only() -> None:
    held = HeldClasses(LABELS, DIM, SweepIndexConfig(), False)
    rows = np.arange(ROWS)

    def push(step: int) -> bool:
        return held.push(step, rows, embeddings(step), 0, 0).wanted

    assert not push(1)
    held.begin_sweep(5)
    assert not push(4)
    assert push(5)
    assert held.status().embedded == ROWS
    held.end_sweep()
    assert not push(5)
    assert held.status().embedded == ROWS
    held.begin_sweep(3)  # workers that resumed from an older checkpoint
    assert held.status().embedded == 0
    assert push(3)


def test_a_search_that_the_machine_cannot_do_becomes_one_that_it_can(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert usable_search(SearchConfig(device="cuda"), 1.0).device == "cpu"
    assert [record.message for record in caplog.records] == [
        "index.search.device=cuda but the index actor has no GPU: it searches on the CPU"
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert usable_search(SearchConfig(device="cuda"), 0.0).device == "cuda"
    assert usable_search(SearchConfig(), 1.0).device == "auto"
    assert usable_search(SearchConfig(), 0.0).device == "cpu", "the trainers' GPUs are not its own"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    search = usable_search(SearchConfig(backend="faiss", kind="ivf"), 0.0)
    assert (search.backend, search.kind) == ("torch", "flat")


def test_errors_become_one_line_with_the_reason_in_it() -> None:
    assert in_one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    wrapped = RayTaskError("push", "a traceback\nof many lines", KeyError("reason"))
    assert in_one_line(wrapped) == "KeyError: 'reason'"
    long = in_one_line(RuntimeError("first " + "x" * 1000 + " last"))
    assert len(long) < 310
    assert long.startswith("RuntimeError: first")
    assert long.endswith(" last")
