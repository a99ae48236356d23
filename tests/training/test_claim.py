"""A run's folder is written by the process that took it last, and by nobody who was thought dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmetric.distributed.replica import Replica
from distmetric.errors import ResourceError, TakenOverError
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.training.claim import CLAIM_FILE, Claim, RunWriter, check_owner
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config
from snapshots import random_snapshot

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "checkpoint.every_steps=5", "train.log_every=1")


def test_the_newest_claim_is_the_one_that_holds(tmp_path: Path) -> None:
    first = Claim(str(tmp_path))
    first.check()
    second = Claim(str(tmp_path))
    second.check()
    with pytest.raises(
        TakenOverError, match=r"was resumed by process \d+ on .*: this one has stopped writing"
    ):
        first.check()


def test_workers_hold_the_folder_in_the_name_of_their_driver_for_as_long_as_it_does(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    driver = Claim(run_dir)
    worker = Claim(run_dir, driver.owner)
    replaced = Claim(run_dir, driver.owner)
    check_owner(run_dir, driver.owner)
    replaced.check()
    with pytest.raises(TakenOverError):
        worker.check()
    Claim(run_dir)
    for late in (
        replaced.check,
        lambda: check_owner(run_dir, driver.owner),
        lambda: Claim(run_dir, driver.owner),
    ):
        with pytest.raises(TakenOverError):
            late()


def test_a_claim_that_cannot_be_read_lets_nobody_write(tmp_path: Path) -> None:
    claim = Claim(str(tmp_path))
    (tmp_path / CLAIM_FILE).write_bytes((tmp_path / CLAIM_FILE).read_bytes()[:20])
    with pytest.raises(ResourceError, match=r"claim.json cannot be read .*nothing more is written"):
        claim.check()
    (tmp_path / CLAIM_FILE).unlink()
    claim.check()


class Usurped(ListTracker):
    """At some step the run is resumed by somebody else."""

    def __init__(self, run_dir: Path, at: int) -> None:
        super().__init__()
        self._run_dir, self._at = run_dir, at

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self._at:
            Claim(str(self._run_dir))


def taken_over(replica: Replica, cache: Path, run_dir: Path) -> tuple[str, int]:
    tracker = Usurped(run_dir, at=8) if replica.is_main else ListTracker()
    with pytest.raises(ResourceError) as caught:
        run_once(tiny_config(cache, *SMALL), run_dir, tracker, replica)
    return type(caught.value).__name__, max((step for step, _ in tracker.logged), default=0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_taken_over_stops_on_all_ranks_and_writes_nothing_more(
    ranks: int, glyph_cache: Path, tmp_path: Path
) -> None:
    told = run_ranks(ranks, taken_over, glyph_cache, tmp_path)
    assert told[0] == ("TakenOverError", 8)
    assert all(name == "ResourceError" for name, _ in told[1:])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


def test_snapshots_and_notes_are_not_written_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    writer = RunWriter(str(tmp_path), Replica(), CPU)
    store = SnapshotStore(str(tmp_path / "index"), writer.check)
    store.save(random_snapshot(5, 1, 10))
    store.note_swap(0, 1)
    Claim(str(tmp_path))
    for late in (lambda: store.save(random_snapshot(5, 2, 20)), lambda: store.note_swap(1, 1)):
        with pytest.raises(TakenOverError):
            late()
    assert (store.versions(), store.swap_at(0), store.swap_at(1)) == ([1], 1, None)
