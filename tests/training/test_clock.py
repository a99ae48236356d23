"""The clock of the machine may jump by days in the middle of a run: nothing but dates depends on it."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest

from distmetric.distributed import Replica
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from runs import CPU, final_state, tiny_config

ROOT = Path(__file__).parents[2]
SMALL = (
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    "train.steps=12",
    "train.log_every=1",
    "eval.every_steps=6",
)
DAY = 86_400.0
# Where a date is wanted, and not how long something took; the deadline of a machine is told as a date.
DATES = {
    "distmetric/tracking/journal.py": "when a measurement was made",
    "distmetric/benchmarks/report.py": "a name",
    "distmetric/benchmarks/machine.py": "a date in a table",
    "distmetric/cluster/preemption.py": "for the text of a warning",
}


def go_mad(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have dates jump back and forth by days at every look."""
    real, jumps = time.time, itertools.cycle([0.0, 3 * DAY, -2 * DAY, 400 * DAY, -400 * DAY])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


def test_a_clock_that_jumps_changes_no_weight_and_no_measurement(glyph_cache, tmp_path, monkeypatch) -> None:
    config = tiny_config(glyph_cache, *SMALL)
    whole, expected = final_state(config, tmp_path / "whole")
    go_mad(monkeypatch)
    jumped, tracker = final_state(config, tmp_path / "jumped", fail_at=8)
    for ours, theirs in zip(jumped, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tracker.series("train/loss") == {
        step: loss for step, loss in expected.series("train/loss").items() if step > 6
    }
    times = [
        value for _, metrics in tracker.logged for name, value in metrics.items() if name.startswith("time/")
    ]
    assert times
    assert all(0 <= value < DAY / 24 for value in times)


def test_the_history_is_in_order_of_steps_whatever_the_dates(glyph_cache, tmp_path, monkeypatch) -> None:
    go_mad(monkeypatch)
    config = tiny_config(glyph_cache, *SMALL)
    run_dir = str(tmp_path / "run")
    tracker = JournalTracker(run_dir)
    result = train(Worker(config, run_dir, tracker, Replica(), CPU))
    tracker.close()
    assert 0 <= result.seconds < DAY / 24
    history = TrackedRun(run_dir).history()
    assert [step for step, _ in history["train/loss"]] == list(range(1, 13))
    assert all(
        value >= 0 for name, points in history.items() if name.startswith("time/") for _, value in points
    )


def asks_for_the_date(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return (
        re.search(r"\b(time\.time(_ns)?|datetime\.(now|today|utcnow)|from time import.*\btime)\b", text)
        is not None
    )


def test_durations_come_from_the_clock_that_does_not_jump() -> None:
    files = [*(ROOT / "distmetric").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if asks_for_the_date(path)}
    assert found == set(DATES)
