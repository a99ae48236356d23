"""The history of a run in its folder: the truth, of which a tracking server gets a copy.

    RUN_DIR/history/measured-0002-000005.jsonl

is the sixth file of the third process that measured something for this run: one record a line, in order. A file is put
in place whole, and again with every record until it is full, so it can be on any storage, is never torn, and is read
while it is written. A process has files of its own and only adds to the newest of them, so one that was taken for dead
destroys nothing. There are two streams: what is `measured` by steps (rank 0), and what else is `told` of the run (its
driver).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distmetric.errors import ResourceError
from distmetric.locations import make_folder, open_location, put_in_place, reason
from distmetric.tracking.tracker import History

FOLDER = "history"
MEASURED, TOLD = "measured", "told"

_FILE_BYTES = 1 << 19
_CHECK_BYTES = len(',"check":"01234567"}')

Record = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Place:
    """A place in a stream, behind some records.

    Args:
        process: Number of the process that wrote the next one.
        file: Number of its file.
        line: Lines of that file before it.
    """

    process: int = 0
    file: int = 0
    line: int = 0


def now() -> int:
    """Milliseconds since 1970, as MLflow has them."""
    return int(time.time() * 1000)


class JournalWriter:
    """Writes a stream, as one of the processes that did.

    Args:
        run_dir: Folder of the run, a path or URI; made if it is not there.
        stream: `MEASURED` or `TOLD`.

    Raises:
        ResourceError: If the folder cannot be written.
    """

    def __init__(self, run_dir: str, stream: str) -> None:
        self._folder, self._stream = _Folder(run_dir, stream), stream
        process = 0
        while self._folder.has(Place(process)):
            process += 1
        self._place, self._lines = Place(process), list[str]()
        self.write([{"kind": "process", "time": now(), "host": socket.gethostname(), "pid": os.getpid()}])

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records; they are on the storage when this returns.

        Raises:
            ResourceError: If they cannot be written, or not all of them; whoever writes them again, doubles none (see
                `read_history`).
        """
        new = [_line(record) for record in records]
        place, lines = self._place, self._lines
        try:
            while new:
                room = _FILE_BYTES - sum(map(len, lines))
                fitting = _fitting(new, room) if lines else max(1, _fitting(new, room))
                if fitting:
                    lines = [*lines, *new[:fitting]]
                    self._folder.write(place, lines)
                    new = new[fitting:]
                if new:
                    place, lines = replace(place, file=place.file + 1), []
        except OSError as error:
            # The file may hold the new lines all the same: from now on it is left alone.
            if self._lines:
                self._place, self._lines = replace(self._place, file=self._place.file + 1), []
            raise ResourceError(
                f"the history of the run in {self._folder.location} cannot be written ({reason(error)}): free space "
                "or fix access, then resume the run"
            ) from None
        self._place, self._lines = place, lines


class JournalReader:
    """Reads a stream from a place on, also while it is written.

    Args:
        run_dir: Folder of the run.
        stream: `MEASURED` or `TOLD`.
        place: Where to begin.

    Attributes:
        place: What is read next is behind it; whoever has dealt with a record moves it on.
    """

    def __init__(self, run_dir: str, stream: str, place: Place | None = None) -> None:
        self._folder, self.place = _Folder(run_dir, stream), place or Place()
        self._seen: tuple[Place, int] | None = None  # where there was nothing new, and bytes of the file then

    def read(self) -> list[tuple[Record, Place]]:
        """The next records, of one file at most, each with the place behind it; empty at the end of what is there."""
        while True:
            place = self.place
            # Before the file itself: once there is a later one, this one is complete.
            later = self._later(place)
            size = self._folder.size(place)
            if size is None or (later is None and self._seen == (place, size)):
                return []
            told = [
                (record, replace(place, line=number))
                for number, record in self._folder.read(place)
                if number > place.line and not _is_header(record)
            ]
            if told:
                return told
            if later is None:
                self._seen = (place, size)
                return []
            self.place = later

    def _later(self, place: Place) -> Place | None:
        following = (Place(place.process, place.file + 1), Place(place.process + 1))
        return next((later for later in following if self._folder.has(later)), None)


def read_stream(run_dir: str, stream: str, place: Place | None = None) -> Iterator[Record]:
    """The records of a stream behind a place, in order; by default all."""
    reader = JournalReader(run_dir, stream, place)
    while records := reader.read():
        yield from (record for record, _ in records)
        reader.place = records[-1][1]


def read_history(run_dir: str) -> History:
    """All measurements of a run by name, in order of steps, each step once; empty where there are none."""
    history: History = {}
    for record in read_stream(run_dir, MEASURED):
        for name, value in record["metrics"].items():
            points = history.setdefault(name, [])
            if not points or record["step"] > points[-1][0]:
                points.append((record["step"], value))
    return history


def read_status(run_dir: str) -> tuple[str, str]:
    """RUNNING, FINISHED, FAILED or KILLED, and the reason for the latter two; empty texts where nothing was told."""
    status = reason = ""
    for record in read_stream(run_dir, TOLD):
        if record["kind"] == "status":
            status, reason = record["status"], record["reason"]
    return status, reason


def read_run_record(run_dir: str) -> Record | None:
    """What a run was opened with; None where there is none, or only one of an older version."""
    return next((record for record in read_stream(run_dir, TOLD) if record["kind"] == "run"), None)


def remove_history(run_dir: str) -> None:
    """Remove what there is of a run's history.

    Raises:
        ResourceError: If it cannot be removed.
    """
    filesystem, path = open_location(f"{run_dir.rstrip('/')}/{FOLDER}")
    try:
        filesystem.delete_dir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be removed ({reason(error)}): fix access, or give another name"
        ) from None


class _Folder:
    """The files of one stream."""

    def __init__(self, run_dir: str, stream: str) -> None:
        self.location = f"{run_dir.rstrip('/')}/{FOLDER}"
        self._filesystem, self._path = open_location(self.location)
        self._stream = stream

    def has(self, place: Place) -> bool:
        return self.size(place) is not None

    def size(self, place: Place) -> int | None:
        """Bytes of a file; None where it is not there."""
        info = self._filesystem.get_file_info(self._file(place))
        return int(info.size) if info.is_file else None

    def read(self, place: Place) -> Iterator[tuple[int, Record]]:
        """The records of a file with the number of each line, from 1; a damaged line is passed over."""
        path = self._file(place)
        with self._filesystem.open_input_stream(path) as stream:
            lines = stream.read().removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, start=1):
            if (record := _record(line)) is None:
                log.warning("line %d of %s is damaged and passed over", number, path)
            else:
                yield number, record

    def write(self, place: Place, lines: Sequence[str]) -> None:
        make_folder(self._filesystem, self._path)
        path = self._file(place)
        with (
            put_in_place(self._filesystem, path) as part,
            self._filesystem.open_output_stream(part) as stream,
        ):
            stream.write("".join(f"{line}\n" for line in lines).encode())

    def _file(self, place: Place) -> str:
        return f"{self._path}/{self._stream}-{place.process:04d}-{place.file:06d}.jsonl"


def _is_header(record: Record) -> bool:
    """Whether it says who writes what follows."""
    return record.get("kind") == "process"


def _line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON, which tells at its end whether it is intact."""
    text = json.dumps(record, separators=(",", ":"))
    return f'{text[:-1]},"check":"{zlib.crc32(text.encode()):08x}"}}'


def _record(line: bytes) -> Record | None:
    """What `_line` made into a line; None if it is damaged."""
    text, check = line[:-_CHECK_BYTES] + b"}", line[-_CHECK_BYTES:]
    if check != b',"check":"%08x"}' % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record


def _fitting(lines: Sequence[str], room: int) -> int:
    """How many of the lines fit."""
    for count, line in enumerate(lines):
        room -= len(line)
        if room < 0:
            return count
    return len(lines)
