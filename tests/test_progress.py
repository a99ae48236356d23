"""One live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from distmetric import progress as progress_module
from distmetric.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_done_rate_and_remaining_time(clock) -> None:
    shown = Progress("images", 3000, stream=io.StringIO())
    clock[0] += 10
    shown.update(1000, "2 bad")
    assert shown.line() == "images: 1,000 of 3,000, 100.0/s, 0:20 left, 2 bad"


def test_plain_lines_come_now_and_then_and_the_last_one_is_complete(clock) -> None:
    stream = io.StringIO()
    shown = Progress("steps", 100, every_s=10, stream=stream)
    for _ in range(100):
        clock[0] += 0.3
        shown.update(note="loss 0.5")
    shown.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("steps: 100 of 100, 3.3/s, loss 0.5")
    assert "\r" not in stream.getvalue()


def test_short_work_says_nothing_in_a_log(clock) -> None:
    stream = io.StringIO()
    shown = Progress("steps", 2, stream=stream)
    shown.update(2)
    shown.close()
    assert stream.getvalue() == ""


def test_a_terminal_has_one_line_that_is_rewritten(clock) -> None:
    stream = Terminal()
    shown = Progress("steps", 10, stream=stream)
    for _ in range(10):
        clock[0] += 1
        shown.update()
    shown.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("steps: 10 of 10, 1.0/s\n")
    assert stream.getvalue().count("\r") == 11


def test_what_was_there_before_does_not_count_as_speed(clock) -> None:
    shown = Progress("steps", 400, stream=io.StringIO())
    clock[0] += 50  # starting workers
    shown.start_at(200)
    clock[0] += 10
    shown.update(100)
    assert shown.line() == "steps: 300 of 400, 10.0/s, 0:10 left"


def test_an_empty_note_keeps_the_one_before(clock) -> None:
    shown = Progress("steps", stream=io.StringIO())
    shown.update(5, "recall@1 0.9")
    shown.update(1)
    assert shown.line().endswith("recall@1 0.9")
