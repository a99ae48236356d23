"""What a tracking server has to be able to do, and the ways in which it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class ServerError(Exception):
    """A server did not take what it was given; the message is a reason on one line."""


class NoAnswerError(ServerError):
    """It is not there, does not answer in time, or is in trouble itself: another time it may do."""


class RefusedError(ServerError):
    """It answers, and does not want this from us: who we are, or what was deleted there, has to be mended first."""


class UnacceptableError(ServerError):
    """It answers, and does not want just this piece; the next one may be fine."""


class Point(NamedTuple):
    """One measurement: name, value, time in milliseconds since 1970, step."""

    name: str
    value: float
    time: int
    step: int


class Server(Protocol):
    """Takes what a run has to tell. Every call may be repeated: what is there already stays as it is, once.

    All of them raise `NoAnswerError` and `RefusedError`, some `UnacceptableError`; none waits for ever.
    """

    uri: str
    """Where it is."""
    address: str
    """Where it is, without credentials."""
    patience_s: float
    """How long to wait for an answer before it counts as none."""

    def open(self, run: Mapping[str, Any], run_id: str | None) -> str:
        """Find or make a run.

        Args:
            run: "name", "key" (its identity before it has one there), "time", and "params" and "tags" as texts by name.
            run_id: Identity that it had there; None if it had none yet.

        Returns:
            Its identity: another one where the server does not know that run any more.
        """

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add measurements, any number; may raise `UnacceptableError`."""

    def tell(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Take a record of kind "tags", "dataset" or "status" (see `TrackedRun`); may raise `UnacceptableError`."""

    def attach(self, run_id: str, path: str, folder: str) -> None:
        """Attach a local file to a folder of the run's artifacts ("": none); may raise `UnacceptableError`."""
