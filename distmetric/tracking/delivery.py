"""Brings the history of a run to a tracking server: in order, from a thread of its own, whenever the server answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from distmetric.errors import ResourceError
from distmetric.locations import read_document, reason, write_document
from distmetric.secrets import masked
from distmetric.tracking.attachments import fetched, forget
from distmetric.tracking.journal import FOLDER, MEASURED, TOLD, JournalReader, Place, Record, read_stream
from distmetric.tracking.server import (
    NoAnswerError,
    Point,
    RefusedError,
    Server,
    ServerError,
    UnacceptableError,
)

BATCH = 1000
"""Most measurements that are sent at once."""

_LOOK_EVERY_S, _LOOK_FAR_EVERY_S = 2.0, 10.0  # on a disk, and on storage where looking costs
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_PATIENCE_IN_TROUBLE_S = 5.0  # with a server that is known not to answer

Tell = Callable[[int, str], None]

log = logging.getLogger(__name__)


class Delivery:
    """Brings what is in the history of a run to a server, and keeps in the run's folder how far it has come.

    The server is asked by one thread only, which nobody waits for but `begin` and `settle`, and these not for ever.
    What the server does not take stays in the folder. What it may have taken without our knowing is sent again, since
    sending something twice changes nothing (see `Server`).

    Args:
        run_dir: Folder of the run, a path or URI.
        server: Where to bring it.
        tell: Called with a step and a line when the server stops taking records, and when it takes them again.

    Attributes:
        run_id: Identity of the run there; None as long as it has none.
        step: The newest step that was brought.
    """

    def __init__(self, run_dir: str, server: Server, tell: Tell) -> None:
        self._run_dir, self._server, self._tell = run_dir, server, tell
        known = _state(run_dir, server.address)
        self.run_id: str | None = known.get("run_id")
        self._readers = {
            stream: JournalReader(run_dir, stream, Place(*known.get(stream, ())))
            for stream in (MEASURED, TOLD)
        }
        self._run: Mapping[str, Any] = {}
        self._is_open, self.step, self._kept, self._dropped = False, 0, 0, set[str]()
        # What the thread and those who wait for it share.
        self._changed = threading.Condition()
        self._round = self._progress = 0
        self._ended: tuple[int, ServerError | None] = (0, None)
        self._is_out = self._hurry = self._over = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def begin(self, run: Mapping[str, Any]) -> None:
        """Open the run at the server, and from then on bring what its history has.

        Args:
            run: What the server needs to know of it, see `Server.open`.

        Raises:
            ResourceError: If the server answers and does not want us. If it does not answer, that is told.
        """
        self._run = run
        self._thread.start()
        error = self._wait_for_round(1, or_open=True)
        if isinstance(error, (RefusedError, UnacceptableError)):
            self.close()
            raise ResourceError(
                f"MLflow at {self._server.address} cannot be used: {masked(str(error))}; check tracking.uri or set "
                "tracking=none"
            )
        if error is not None:
            self._trouble(error)

    def settle(self) -> bool:
        """Wait until the server has everything that is there now, as long as it goes on taking it.

        Returns:
            Whether it has; False as soon as it does not take something, or is silent for longer than its patience.
        """
        with self._changed:
            if self._over:
                return self._ended[1] is None
            number = self._round + 1
            self._hurry = True
            self._changed.notify_all()
        error = self._wait_for_round(number)
        if error is not None:
            self._trouble(error)
        return error is None

    def close(self) -> None:
        """Bring nothing more; what is being sent now may still arrive."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _wait_for_round(self, number: int, or_open: bool = False) -> ServerError | None:
        """Wait for the end of that round or a later one, or for silence; returns how it failed."""
        with self._changed:
            while self._ended[0] < number and not (or_open and self._is_open):
                before = self._progress
                patience = self._server.patience_s
                if self._is_out:
                    patience = min(patience, _PATIENCE_IN_TROUBLE_S)
                if not self._changed.wait_for(
                    lambda: self._ended[0] >= number or self._progress > before,  # noqa: B023 (called within this turn)
                    timeout=patience,
                ):
                    return NoAnswerError(f"nothing within {patience:g} s")
            return None if or_open and self._is_open else self._ended[1]

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        idle = _LOOK_FAR_EVERY_S if "://" in self._run_dir else _LOOK_EVERY_S
        while not self._over:
            with self._changed:
                self._round += 1
                self._hurry = False
            error = self._bring_or_fail()
            if error is None:
                self._relief()
            elif self._round > 1:  # of the first one `begin` decides what it means
                self._trouble(error)
            with self._changed:
                self._ended = (self._round, error)
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._hurry or self._over, timeout=idle if error is None else pause
                )
            pause = _FIRST_PAUSE_S if error is None else min(2 * pause, _LONGEST_PAUSE_S)

    def _bring_or_fail(self) -> ServerError | None:
        """One round: bring everything that is there."""
        try:
            if not self._is_open:
                self._open()
            while not self._over and self._bring_some():
                self._keep()
        except ServerError as error:
            return error
        except Exception as error:  # the run goes on, whatever it is
            log.debug("the history could not be brought to the server", exc_info=True)
            return NoAnswerError(f"{type(error).__name__}: {reason(error)}")
        finally:
            self._keep()
        return None

    def _bring_some(self) -> bool:
        """Bring what one file has; whether there was anything."""
        try:
            return self._bring_measured() or self._bring_told()
        except _AnotherRunError:
            self._say(
                f"MLflow at {self._server.address} did not know the run any more: it gets all of it again"
            )
            return True

    def _open(self) -> None:
        run_id = self._server.open(self._run, self.run_id)
        if run_id != self.run_id:  # to a server that does not know the run, everything is news
            self._readers = {stream: JournalReader(self._run_dir, stream) for stream in self._readers}
        with self._changed:
            self.run_id, self._is_open = run_id, True
        self._advance()

    def _bring_measured(self) -> bool:
        reader = self._readers[MEASURED]
        records = reader.read()
        points, behind = list[Point](), reader.place
        for number, (record, place) in enumerate(records, start=1):
            points += [
                Point(name, value, record["time"], record["step"])
                for name, value in record["metrics"].items()
            ]
            behind = place
            if len(points) >= BATCH or number == len(records):
                for start in range(0, len(points), BATCH):
                    self._log(points[start : start + BATCH])
                self.step = max(self.step, record["step"])
                reader.place, points = behind, []
                self._advance()
        return bool(records)

    def _log(self, points: list[Point]) -> None:
        try:
            self._attempt(lambda run_id: self._server.log(run_id, points))
        except UnacceptableError as error:
            if len(points) > 1:
                for point in points:
                    self._log([point])
            elif points[0].name not in self._dropped:
                self._dropped.add(points[0].name)
                self._say(
                    f"MLflow does not accept the metric {points[0].name}, which it goes without: {error}"
                )

    def _bring_told(self) -> bool:
        reader = self._readers[TOLD]
        records = reader.read()
        for record, place in records:
            try:
                self._bring_record(record)
            except UnacceptableError as error:
                what = record.get("file", f"its {record['kind']}")
                self._say(f"MLflow does not accept {what} of the run, which it goes without: {error}")
            reader.place = place
            self._advance()
        return bool(records)

    def _bring_record(self, record: Record) -> None:
        if record["kind"] == "attach":
            with fetched(self._run_dir, record["file"]) as local:
                if local is None:  # it has been brought before
                    return
                folder = record["file"].rpartition("/")[0]
                self._attempt(lambda run_id: self._server.attach(run_id, str(local), folder))
            forget(self._run_dir, record["file"])
        elif record["kind"] != "run":
            self._attempt(lambda run_id: self._server.tell(run_id, record))

    def _attempt(self, send: Callable[[str], None]) -> None:
        """Send something; where it is not accepted, see whether that is because of the run."""
        assert self.run_id is not None
        try:
            send(self.run_id)
        except UnacceptableError:
            self._is_open = False
            known = self.run_id
            self._open()
            if self.run_id != known:
                raise _AnotherRunError from None
            raise

    def _advance(self) -> None:
        with self._changed:
            self._progress += 1
            self._changed.notify_all()

    def _keep(self) -> None:
        """Write down how far this has come; what it does not say is brought again, which changes nothing."""
        if self._progress == self._kept:
            return
        state: dict[str, Any] = {"uri": self._server.address, "run_id": self.run_id}
        for stream, reader in self._readers.items():
            state[stream] = [reader.place.process, reader.place.file, reader.place.line]
        try:
            write_document(_delivered(self._run_dir), state)
            self._kept = self._progress
        except OSError as error:
            log.debug("%s cannot be written: %s", _delivered(self._run_dir), error)

    def _trouble(self, error: ServerError) -> None:
        """Say once that the server takes nothing."""
        with self._changed:
            if self._is_out:
                return
            self._is_out = True
        does = "does not answer" if isinstance(error, NoAnswerError) else "refuses what it is told"
        self._say(
            f"MLflow at {self._server.address} {does} ({error}): the run goes on without it, and what it is to get "
            f"waits in {self._run_dir}/{FOLDER}"
        )

    def _relief(self) -> None:
        with self._changed:
            if not self._is_out:
                return
            self._is_out = False
        self._say(f"MLflow at {self._server.address} answers again and has what was waiting for it")

    def _say(self, line: str) -> None:
        self._tell(self.step, masked(" ".join(line.split())))


class _AnotherRunError(Exception):
    """The server had lost the run, and has made a new one."""


def read_delivered(run_dir: str) -> dict[str, Any]:
    """What was noted of how far the history of a run was brought: "uri", "run_id" and a place for each stream.

    Empty where nothing was, or the note is damaged: then all of it is brought again.
    """
    try:
        state = read_document(_delivered(run_dir))
        places = [state[stream] for stream in (MEASURED, TOLD)]
        sound = all(len(place) == 3 and all(isinstance(number, int) for number in place) for place in places)
        return state if sound and isinstance(state["run_id"], str) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s is damaged and taken as empty (%s)", _delivered(run_dir), reason(error))
        return {}


def count_waiting(run_dir: str, address: str) -> int:
    """How many records of a run the server at an address has not taken yet, as far as is known."""
    state = _state(run_dir, address)
    places = {stream: Place(*state.get(stream, ())) for stream in (MEASURED, TOLD)}
    return sum(1 for stream, place in places.items() for _ in read_stream(run_dir, stream, place))


def _state(run_dir: str, address: str) -> dict[str, Any]:
    """What was noted for that server; nothing for another one."""
    state = read_delivered(run_dir)
    return state if state.get("uri") == address else {}


def _delivered(run_dir: str) -> str:
    return f"{run_dir}/{FOLDER}/delivered.json"
