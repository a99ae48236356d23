"""Snapshots and notes are kept before the run drops them, and the newest note tells how far it is."""

from __future__ import annotations

import time
from pathlib import Path

from distmetric.benchmarks.soak.watch import IndexWatch
from distmetric.index.snapshot_store import SnapshotStore
from snapshots import random_snapshot


def test_what_was_there_is_kept_though_it_is_dropped(tmp_path: Path) -> None:
    watch = IndexWatch(tmp_path / "run", tmp_path / "kept")
    assert watch.newest_round == -1
    store = SnapshotStore(str(tmp_path / "run" / "index"))
    store.save(random_snapshot(5, 1, 10))
    for number in range(3):
        store.note_swap(number, min(number, 1))
    assert watch.wait_beyond(1, seconds=10)
    store.prune(keep_versions=set(), before_round=3)
    store.note_swap(4, 1)
    watch.close()
    kept = SnapshotStore(str(tmp_path / "kept"))
    assert [kept.swap_at(number) for number in range(5)] == [0, 1, 1, None, 1]
    assert kept.load(1).step == 10
    assert watch.newest_round == 4
    assert watch.missing(5) == [3]


def test_waiting_for_a_round_that_does_not_come_ends(tmp_path: Path) -> None:
    watch = IndexWatch(tmp_path / "run", tmp_path / "kept")
    started = time.monotonic()
    assert not watch.wait_beyond(-1, seconds=0.2)
    assert time.monotonic() - started >= 0.2
    assert not watch.wait_beyond(-1, seconds=1000, is_hopeless=lambda: True)
    watch.close()
