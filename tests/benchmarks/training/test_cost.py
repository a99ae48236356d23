"""What telling costs is counted where it is spent."""

from __future__ import annotations

import itertools
import threading
import time

from distmetric.benchmarks.training.cost import CountedTracker, thread_seconds
from distmetric.tracking.tracker import NullTracker


def test_the_time_in_the_tracker_is_counted_and_losses_are_kept(monkeypatch) -> None:
    times = itertools.count(0.0, 0.25)
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    tracker = CountedTracker(NullTracker())
    tracker.log(1, {"train/loss": 2.0})
    tracker.log(1, {"eval/recall": 1.0})
    tracker.log(2, {"train/loss": 1.5})
    tracker.flush()
    assert tracker.seconds == 4 * 0.25
    assert tracker.losses == [2.0, 1.5]


def test_a_busy_thread_is_told_from_an_idle_one() -> None:
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            sum(range(1000))

    busy = threading.Thread(target=work, name="busy")
    idle = threading.Thread(target=over.wait, name="idle")
    for thread in (busy, idle):
        thread.start()
    try:
        deadline = time.monotonic() + 30
        while thread_seconds()["busy"] < 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert thread_seconds()["idle"] < thread_seconds()["busy"]
    finally:
        over.set()
        for thread in (busy, idle):
            thread.join()
    assert "busy" not in thread_seconds()
