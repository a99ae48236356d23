"""Time and memory of a cell, in this process and in fresh ones that run out of memory or time, crash, or are left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
import torch

from distmetric.benchmarks import measure as measuring
from distmetric.benchmarks.fresh_process import Outcome, run_fresh
from distmetric.benchmarks.measure import BareMatmul, Measurement, Spec, measure
from distmetric.benchmarks.memory import PeakMemory, is_out_of_memory

# Fresh processes import torch, which on a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
CPU = torch.device("cpu")


def wait_until(done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_peak_memory_is_that_since_the_beginning_and_includes_what_was_freed() -> None:
    earlier = torch.ones(64 * MIB // 4)
    del earlier
    memory = PeakMemory(CPU)
    passing = torch.ones(32 * MIB // 4)
    del passing
    assert memory.above_base() == pytest.approx(32 * MIB, rel=0.1)


def test_long_steps_are_timed_as_often_as_asked_and_short_ones_more_often(monkeypatch) -> None:
    found = measure(Spec("contrastive", "ours", 64, steps=3))
    assert len(found.seconds) == len(found.matmul_seconds) > 3
    assert min([*found.seconds, *found.matmul_seconds]) > 0
    monkeypatch.setattr(measuring, "_WANTED_S", 0.0)
    assert len(measure(Spec("contrastive", "ours", 64, steps=3)).seconds) == 3


def test_a_cell_of_ours_needs_no_peer(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert measure(Spec("batch_hard", "ours", 64, steps=1)).value > 0


def test_the_bare_matmul_is_whole_and_keeps_little(monkeypatch) -> None:
    monkeypatch.setattr(measuring, "_MATMUL_BYTES", 4 * 60 * 7)
    products = []
    monkeypatch.setattr(torch, "mm", lambda rows, columns, out: products.append((rows @ columns).shape))
    BareMatmul(16, 60, CPU)()
    assert products == [(7, 60), (7, 60), (2, 60)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "RuntimeError [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
            True,
        ),
        ("OutOfMemoryError CUDA out of memory. Tried to allocate 20.00 MiB", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("MemoryError ", True),
        ("RuntimeError mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_errors_about_memory_are_known(text: str, expected: bool) -> None:
    assert is_out_of_memory(text) == expected


def test_a_fresh_process_that_takes_too_much_is_out_of_memory_and_ours_is_not() -> None:
    limit = 160 * MIB  # the peer asks for P x Q = 768 x 64,512 floats at once, which are 189 MiB
    peer = run_fresh(Spec("lifted", "peer", 256, memory_limit_bytes=limit), timeout_s=200)
    assert (peer.status, peer.ranks) == ("out of memory", [])
    assert is_out_of_memory(peer.message)
    ours = run_fresh(Spec("lifted", "ours", 256, steps=1, memory_limit_bytes=limit), timeout_s=200)
    assert ours.status == "ok", ours.message
    assert 0 < ours.peak_bytes < limit
    assert psutil.Process().children() == []


def test_where_one_rank_is_out_of_memory_the_others_do_not_wait() -> None:
    spec = Spec("lifted", "peer", 256, processes=2, memory_limit_bytes=160 * MIB)
    started = time.monotonic()
    outcome = run_fresh(spec, timeout_s=200)
    assert outcome.status == "out of memory", outcome.message
    assert time.monotonic() - started < 200
    assert psutil.Process().children() == []


def test_a_fresh_process_that_takes_too_long_is_ended() -> None:
    outcome = run_fresh(Spec("batch_hard", "ours", 64), timeout_s=0.2)
    assert (outcome.status, outcome.message) == ("timed out", "not done after 0.2 s")
    assert psutil.Process().children() == []


def test_a_crash_is_told_and_not_raised() -> None:
    outcome = run_fresh(Spec("no_such_loss", "ours", 64), timeout_s=200)
    assert (outcome.status, outcome.message) == ("failed", "KeyError: 'no_such_loss'")


def test_medians_are_of_the_slowest_rank_and_of_paired_ratios() -> None:
    first = Measurement([1.0, 9.0, 3.0], [0.5, 3.0, 1.0], 0, 10, 0.1)
    second = Measurement([2.0, 4.0, 4.0], [1.0, 2.0, 2.0], 0, 20, 0.1)
    outcome = Outcome(Spec("batch_hard", "ours", 64, processes=2), "ok", ranks=[first, second])
    assert outcome.seconds == 4.0  # of 2, 9, 4
    assert outcome.times_matmul == 2.0  # of 2, 3, 3, 2, 2, 2
    assert outcome.peak_bytes == 20


LONG = """
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.measure import Spec
run_fresh(Spec("batch_all", "ours", 4096, processes=2, steps=100_000), timeout_s=600)
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
            job.wait(timeout=30)
            wait_until(lambda: not any(rank.is_running() for rank in ranks), seconds=30)
        finally:
            job.kill()
