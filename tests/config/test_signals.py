"""The first signal is taken up in order, the second ends the process at once, and the handlers before are put back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distmetric.config.signals import Interrupted, attended, handled, interruptible, kept_handlers

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


@BOTH
def test_the_first_signal_raises_what_no_except_exception_catches(number) -> None:
    def wait() -> None:
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as found, interruptible():
        wait()
    assert (found.value.exit_code, str(found.value)) == (128 + number, number.name)
    assert signal.getsignal(number) is before


@BOTH
def test_the_second_signal_ends_the_process_whatever_it_is_doing(number) -> None:
    script = """
import os, signal, sys, time
from distmetric.config.signals import interruptible
with interruptible():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", flush=True)
        time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in ("ready\n", "cleaning up\n"):
                assert process.stdout.readline() == line
                process.send_signal(number)
            assert process.wait(timeout=240) == 128 + number
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_handlers_that_a_block_sets_for_itself_do_not_outlast_it() -> None:
    heard: list[int] = []
    with handled(heard.append):
        with kept_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]


def test_in_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def look() -> None:
        with handled(lambda _: None), kept_handlers(), interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(timeout=240)
    assert seen == [before]


def test_attended_work_gives_what_it_returns_or_raises_and_is_left_when_a_look_says_so() -> None:
    assert attended(lambda: 3, lambda: None) == 3
    with pytest.raises(ZeroDivisionError):
        attended(lambda: 1 / 0, lambda: None)
    never = threading.Event()
    looks = iter([None, None, LookupError()])

    def look() -> None:
        if error := next(looks):
            raise error

    with pytest.raises(LookupError):
        attended(never.wait, look)
    never.set()


@BOTH
def test_a_job_that_is_interrupted_says_so_in_one_line_and_leaves_nothing_half_written(
    number, tmp_path: Path
) -> None:
    script = f"""
import sys, time
from distmetric.config.command import run_command
from distmetric.locations import open_location, put_in_place

def main(overrides):
    filesystem, path = open_location({str(tmp_path / "out")!r})
    with put_in_place(filesystem, path) as target, open(target, "w") as stream:
        stream.write("half")
        stream.flush()
        print("ready", flush=True)
        time.sleep(60)

sys.exit(run_command("ingest", "a job", main, []))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert (tmp_path / "out.part").exists()
            process.send_signal(number)
            output, errors = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert output == ""
    assert errors == f"stopped on {number.name}: what was complete is kept, and nothing half-written\n"
    assert list(tmp_path.glob("out*")) == []
