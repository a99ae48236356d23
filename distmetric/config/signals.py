"""SIGINT (Ctrl-C) and SIGTERM (schedulers, `ray job stop`): the first is taken up in order, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S = 0.25

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end, and there is nothing to save first.

    Like Ctrl-C it passes by everything that goes on after an `Exception`, and what was being written is removed.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal has ended."""
        return 128 + self.number

    def __str__(self) -> str:
        return signal_name(self.number)


def signal_name(number: int) -> str:
    """SIGTERM for 15; the number itself where it has no name."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Have `handle` called with the number of each such signal, in the main thread; in any other nothing changes.

    The handlers that were there before are put back at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        handle(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the handlers of now back after a block that sets its own, as starting Ray does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Have the first signal raise `Interrupted` wherever the main thread is; the second ends the process at once."""
    seen: list[int] = []

    def handle(number: int) -> None:
        if seen:
            end_at_once(number)
        seen.append(number)
        raise Interrupted(number)

    with handled(handle):
        yield


def attended(work: Callable[[], T], look: Callable[[], None]) -> T:
    """Do some work in a thread while this one looks after it, which the main thread can do between two signals.

    In the main thread, a handler would wait for the work to come back from where Python has nothing to say, as from a
    collective that never ends.

    Args:
        work: What to do; what it raises is raised here.
        look: Called before it and a few times a second; what it raises leaves the work to itself.
    """
    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as error:  # it is raised where somebody waits for it
            ended.append((None, error))

    look()
    thread = threading.Thread(target=run, name="attended-work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY_S)
        if thread.is_alive():
            look()
    result, error = ended[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def end_at_once(number: int) -> None:
    """End this process with 128 + the number of a signal, whatever it is doing and without any cleaning up."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(128 + number)


def _restore(before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
