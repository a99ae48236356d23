"""Calls to actors that may die, be restarted, or never come back, for threads that can wait where training cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from distmetric.cluster.index_messages import in_one_line

_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class SilentError(Exception):
    """No answer in time."""


class PatientCalls:
    """Asks actors until they answer, and tells of each incident once; safe to use from several threads.

    An incident begins when a call finds its actor dead, restarting or silent, and ends when a call that was made later
    is answered. A call that an actor answers with an exception is not repeated: it would only fail again.

    Args:
        timeout_s: How long an actor may be silent.
        closed: Set when nobody wants answers any more.
        on_loss: Called once per incident with its reason, from the thread that noticed.
        on_error: Called with every exception that an actor answered with.
    """

    def __init__(
        self,
        timeout_s: float,
        closed: threading.Event,
        on_loss: Callable[[str], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._timeout_s, self._closed = timeout_s, closed
        self._on_loss, self._on_error = on_loss, on_error
        self._lock = threading.Lock()
        self._lost = False
        self._last_sign = 0.0

    def ask(
        self, submit: Callable[[], Sequence[Any]], *, again: bool = True, patient: bool = False
    ) -> list[Any] | None:
        """Make calls until all of them are answered.

        Args:
            submit: Makes them and gives their references; called again for every new try, so the calls have to
                be such that repeating one does no harm.
            again: Whether to try again when an actor is lost.
            patient: Whether silence is no sign of loss, as in a call that may take as long as it takes.

        Returns:
            The answers; None if an actor answered with an exception, was lost and `again` is off, or nobody
            wants answers any more.
        """
        pause = _FIRST_PAUSE
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                references = list(submit())
                if not self._answered(references, None if patient else started + self._timeout_s):
                    return None
                answers: list[Any] = ray.get(references)
            except RayTaskError as error:
                self._on_error(in_one_line(error))
                return None
            except Exception as error:  # whatever it is, training goes on
                self._note_loss(started, error)
                if not again:
                    return None
                self._closed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self._note_sign(started)
            return answers
        return None

    def _answered(self, references: list[Any], deadline: float | None) -> bool:
        """Wait until there are answers or errors, and say whether anybody still wants them."""
        while not self._closed.is_set():
            ready, _ = ray.wait(references, num_returns=len(references), timeout=_LOOK_SECONDS)
            if len(ready) == len(references):
                return True
            if deadline is not None and time.monotonic() > deadline:
                raise SilentError(f"silent for {self._timeout_s:g} s")
        return False

    def _note_loss(self, started: float, error: Exception) -> None:
        with self._lock:
            news = not self._lost and started >= self._last_sign and not self._closed.is_set()
            self._lost = self._lost or news
        if news:
            self._on_loss(in_one_line(error))

    def _note_sign(self, started: float) -> None:
        with self._lock:
            self._lost, self._last_sign = False, max(self._last_sign, started)
