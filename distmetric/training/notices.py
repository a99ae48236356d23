"""What a run has to tell whoever looks at it later: `notices.json` in its folder, at the top of its report."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypedDict

from pyarrow import fs

from distmetric.locations import open_location, put_in_place

NOTICES_FILE = "notices.json"

log = logging.getLogger(__name__)


class Notice(TypedDict):
    """One notice: what it is about, the step at which it became known, and one line with what to do."""

    kind: str
    step: int
    message: str


class Notices:
    """Adds notices to the folder of a run.

    Several processes may each have one for the same folder, and several threads may share one. A folder that cannot be
    written costs the file and not the run: the notice is logged all the same, and written
    with the next one.

    Args:
        run_dir: Folder of the run, a path or URI; made when there is something to write.
    """

    def __init__(self, run_dir: str) -> None:
        self._location = f"{run_dir.rstrip('/')}/{NOTICES_FILE}"
        self._lock = threading.Lock()
        self._added: list[Notice] = []

    def add(self, kind: str, step: int, message: str) -> None:
        """Keep a notice and log it as a warning; one that is there already (a replayed step's) adds nothing.

        Args:
            kind: What it is about, such as "collapse" or "tracking".
            step: Optimizer steps done when it became known.
            message: One line: what happened, and what to do.
        """
        notice = Notice(kind=kind, step=step, message=message)
        with self._lock:
            if notice in self._added:
                return
            self._added.append(notice)
            try:
                new = self._write(notice)
            except OSError as error:
                new = True
                log.warning("%s cannot be written (%s)", self._location, " ".join(str(error).split()))
        if new:
            log.warning("step %d: %s", step, message)

    def _write(self, notice: Notice) -> bool:
        """Put the file in place with every notice of this one and of others; whether that one was not there yet."""
        filesystem, path = open_location(self._location)
        folder = path.rpartition("/")[0]
        filesystem.create_dir(folder, recursive=True)
        with _alone(filesystem, folder):
            known = _read(self._location)
            missing = [added for added in self._added if added not in known]
            if missing:
                with (
                    put_in_place(filesystem, path) as target,
                    filesystem.open_output_stream(target) as stream,
                ):
                    stream.write(json.dumps([*known, *missing], indent=1).encode())
        return notice in missing


def read_notices(run_dir: str) -> list[Notice]:
    """The notices of a run in the order in which they were added; empty for runs that had nothing to tell."""
    return _read(f"{str(run_dir).rstrip('/')}/{NOTICES_FILE}")


def _read(location: str) -> list[Notice]:
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            return [
                Notice(kind=str(one["kind"]), step=int(one["step"]), message=str(one["message"]))
                for one in json.loads(stream.read())
            ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged and taken as empty (%s)", location, error)
        return []


@contextmanager
def _alone(filesystem: fs.FileSystem, folder: str) -> Iterator[None]:
    """Keep other processes from writing meanwhile, where the folder is a local one."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
