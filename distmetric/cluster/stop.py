"""How a training on Ray is asked to save or to stop: signals to the driver, the desk in between, rank 0 who asks it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError

from distmetric.config.signals import Interrupted, end_at_once, handled, signal_name
from distmetric.training.stop import Wish

_ASK_EVERY_S = 0.2
_LAST_WORDS_S = 1.0
_PATIENCE_S = 30.0  # with a desk that does not answer, as while it is being started anew

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listener:
    """How the rank 0 of the newest group listens.

    Args:
        state: "nobody" before the first, "starting" until its training asks, "training", and "left" after its end.
        silent_s: Seconds since it was last heard of.
        step: Steps done, of one that has left.
    """

    state: Literal["nobody", "starting", "training", "left"] = "nobody"
    silent_s: float = 0.0
    step: int = 0


class StopDesk:
    """Holds what is asked of the workers until rank 0 comes to know; a part of the `ProgressBoard`."""

    def __init__(self) -> None:
        self._stop, self._leave = "", (0, "")
        self._saves, self._save_reason = 0, ""
        self._listener, self._heard = Listener(), time.monotonic()

    def ask_stop(self, reason: str) -> Listener:
        """Have the training save and end, whichever group is at it; asking again changes nothing."""
        self._stop = reason
        return self.listener()

    def ask_leave(self, group: int, reason: str) -> None:
        """Have one group save and end."""
        self._leave = group, reason

    def ask_save(self, reason: str) -> None:
        """Have the training save and go on."""
        self._saves, self._save_reason = self._saves + 1, reason

    def listener(self) -> Listener:
        """Who listens."""
        return replace(self._listener, silent_s=time.monotonic() - self._heard)

    def asked(self, group: int, is_training: bool) -> tuple[str, int, str]:
        """Tell rank 0 of a group.

        Returns:
            Why to stop, empty if it need not; how often a save was asked for; and why.
        """
        self._listen(Listener("training" if is_training else "starting"))
        stop = self._stop or (self._leave[1] if self._leave[0] == group else "")
        return stop, self._saves, self._save_reason

    def left(self, step: int) -> None:
        """Note that rank 0 has ended its training in order, with so many steps done."""
        self._listen(Listener("left", step=step))

    def _listen(self, listener: Listener) -> None:
        self._listener, self._heard = listener, time.monotonic()


class RemoteRequest:
    """The `StopRequest` of rank 0: a thread asks the desk, so that the training need not wait for an answer.

    A desk that is gone for good means that nobody waits for this training any more: it is to stop.

    Args:
        desk: Handle of the `ProgressBoard`.
        group: Number of the group of workers.
    """

    def __init__(self, desk: Any, group: int) -> None:
        self._desk, self._group = desk, group
        self._is_training = False
        self._reason, self._save = "", False
        self._saves: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="stop-request", daemon=True)
        self._thread.start()

    def wanted(self) -> Wish:
        """See `StopRequest.wanted`."""
        self._is_training = True
        if self._reason:
            return "stop"
        wish: Wish = "save" if self._save else ""
        self._save = False
        return wish

    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return self._reason

    def leave(self, step: int) -> None:
        """Ask no more, and tell the desk how many steps are done: the training has ended in order."""
        self.close()
        with suppress(Exception):  # whoever waits for it will see that the training has ended
            ray.get(self._desk.left.remote(step), timeout=5)

    def close(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join(timeout=5)

    def _ask(self) -> None:
        while True:
            try:
                answer = ray.get(self._desk.asked.remote(self._group, self._is_training), timeout=_PATIENCE_S)
            except ActorDiedError:
                self._reason = "the end of the process that had started it"
                return
            except Exception as error:  # it is being started anew, or the cluster is busy
                log.debug("no answer whether to stop: %s", error)
            else:
                self._note(*answer)
            if self._over.wait(_ASK_EVERY_S):
                return

    def _note(self, stop: str, saves: int, why: str) -> None:
        if self._saves is not None and saves > self._saves:
            log.warning("writing a checkpoint: %s", why)
            self._save = True
        self._saves = saves
        self._reason = self._reason or stop


class StopSignals:
    """What signals ask of the driver of a run: the first one to stop in order, the second to end at once."""

    def __init__(self) -> None:
        self._number = 0
        self._at_once = False
        self._last_words: threading.Thread | None = None

    @classmethod
    @contextmanager
    def heard(cls) -> Iterator[StopSignals]:
        """Hear them during a block."""
        signals = cls()
        with handled(signals._handle):
            yield signals

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """During a block that has nothing to save, have the first signal end it.

        Raises:
            Interrupted: By a signal, one before the block included.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """End here if a signal has come.

        Raises:
            Interrupted: If so.
        """
        if self._number:
            raise Interrupted(self._number)

    def say(self, last_words: Callable[[], None]) -> None:
        """Say something in a thread, for which an end at once waits a moment, but no longer."""
        self._last_words = threading.Thread(target=last_words, name="last-words", daemon=True)
        self._last_words.start()

    def name(self) -> str:
        """The signal that has come, such as SIGTERM; empty if none has."""
        return signal_name(self._number) if self._number else ""

    def _handle(self, number: int) -> None:
        if self._number:
            if self._last_words is not None:
                self._last_words.join(_LAST_WORDS_S)
            end_at_once(number)
        self._number = number
        if self._at_once:
            raise Interrupted(number)
