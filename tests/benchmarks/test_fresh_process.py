"""A cell in fresh processes that run out of memory or time, crash, or are left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.losses.measure import LossMeasurement, LossSpec
from distmetric.benchmarks.memory import is_out_of_memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    """No process outlives the call that started it; Python keeps one of its own, once any test has spawned."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def wait_until(done: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_fresh_process_that_takes_too_much_is_out_of_memory_and_ours_is_not() -> None:
    limit = 160 * MIB  # the peer asks for P x Q = 768 x 64,512 floats at once, which are 189 MiB
    peer = run_fresh(LossSpec("lifted", "peer", 256, memory_limit_bytes=limit), timeout_s=600)
    assert (peer.status, peer.ranks) == ("out of memory", [])
    assert is_out_of_memory(peer.message)
    ours = run_fresh(LossSpec("lifted", "ours", 256, steps=1, memory_limit_bytes=limit), timeout_s=600)
    assert ours.status == "ok", ours.message
    assert 0 < ours.peak_bytes < limit


def test_where_one_rank_is_out_of_memory_the_others_do_not_wait() -> None:
    spec = LossSpec("lifted", "peer", 256, processes=2, memory_limit_bytes=160 * MIB)
    outcome = run_fresh(spec, timeout_s=600)
    assert outcome.status == "out of memory", outcome.message


def test_a_fresh_process_that_takes_too_long_is_ended() -> None:
    outcome = run_fresh(LossSpec("batch_hard", "ours", 64), timeout_s=0.2)
    assert (outcome.status, outcome.message) == ("timed out", "not done after 0.2 s")


def test_a_crash_is_told_and_not_raised() -> None:
    outcome = run_fresh(LossSpec("no_such_loss", "ours", 64), timeout_s=600)
    assert (outcome.status, outcome.message) == ("failed", "KeyError: 'no_such_loss'")


def test_medians_are_of_the_slowest_rank_and_of_paired_ratios() -> None:
    first = LossMeasurement([1.0, 9.0, 3.0], [0.5, 3.0, 1.0], 0, 10, 0.1)
    second = LossMeasurement([2.0, 4.0, 4.0], [1.0, 2.0, 2.0], 0, 20, 0.1)
    outcome = Outcome(LossSpec("batch_hard", "ours", 64, processes=2), "ok", ranks=[first, second])
    assert outcome.seconds == 4.0  # of 2, 9, 4
    assert outcome.times_matmul == 2.0  # of 2, 3, 3, 2, 2, 2
    assert outcome.peak_bytes == 20


LONG = """
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.losses.measure import LossSpec
run_fresh(LossSpec("batch_all", "ours", 4096, processes=2, steps=100_000), timeout_s=600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nobody_is_left_behind_when_the_job_is_stopped(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LONG], stderr=subprocess.DEVNULL) as job:
        try:
            watched = psutil.Process(job.pid)
            wait_until(lambda: len(watched.children()) == 2)
            ranks = watched.children()
            wait_until(lambda: all(rank.cpu_times().user > 2 for rank in ranks))  # in the midst of it
            job.send_signal(how)
            job.wait(timeout=240)
            wait_until(lambda: not any(rank.is_running() for rank in ranks))
        finally:
            job.kill()
