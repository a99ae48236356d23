"""A run from its opening to its truthful end, in its folder and on a tracking server, and which code made it."""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from distmetric.errors import ResourceError, StoppedError, TakenOverError
from distmetric.secrets import masked
from distmetric.tracking import attachments
from distmetric.tracking.delivery import Delivery, count_waiting, read_delivered
from distmetric.tracking.journal import (
    FOLDER,
    TOLD,
    JournalWriter,
    now,
    read_history,
    read_run_record,
    read_status,
    read_stream,
    remove_history,
)
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.server import Server, ServerError
from distmetric.tracking.tracker import History, NullTracker, Tracker

_NOTE, _ERROR, _RESUMED = "mlflow.note.content", "distmetric.error", "resumed"

log = logging.getLogger(__name__)


def _say(_: int, line: str) -> None:
    log.warning("%s", line)


class TrackedRun:
    """A run, as the process that drives it sees it: all that it tells is kept in the history in the run's folder.

    Where there is a server, what the history has, rank 0's measurements too, is brought there meanwhile (`Delivery`).
    Secrets are masked before anything is kept. Several threads may tell.

    Args:
        run_dir: Folder of the run, a path or URI; None for a run that keeps nothing.

    The history has these records, beside measurements: {"kind": "run", "name", "key", "time", "params", "tags"},
    {"kind": "tags", "tags"} where None deletes one, {"kind": "dataset", "name", "digest", "location"},
    {"kind": "attach", "file"} and {"kind": "status", "status", "reason", "time"}.
    """

    def __init__(self, run_dir: str | None = None) -> None:
        self._run_dir = None if run_dir is None else run_dir.rstrip("/")
        self._server: Server | None = None
        self._delivery: Delivery | None = None
        self._writer: JournalWriter | None = None
        self._writing = threading.Lock()
        self._tell: Callable[[int, str], None] = _say
        self._owed = self._said_waiting = False
        self._later = f"resume={self._run_dir} delivers it, whether the run has ended or not"

    @classmethod
    def create(
        cls,
        run_dir: str,
        server: Server | None,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        tell: Callable[[int, str], None] = _say,
        later: str | None = None,
        fresh: bool = True,
    ) -> TrackedRun:
        """Open a new run.

        Args:
            run_dir: Its folder, a path or URI; nothing is written if the server refuses.
            server: Where it is tracked; None for nowhere.
            name: Name of the run.
            params: Dotted keys and values of the configuration.
            tags: What else to know of the run; the commit, the command and the user are added.
            tell: Called with a step and a line when the server does not take records, and when it does again.
            later: What becomes of what the server has not taken in the end, where it is not what a run does.
            fresh: Whether a history that is there is of a run that was killed before it had a name, and is removed.

        Raises:
            ResourceError: If the server answers and refuses, or the folder cannot be written.
        """
        tracked = cls(run_dir)
        tracked._later = later or tracked._later
        run = {
            "kind": "run",
            "name": name,
            "key": uuid.uuid4().hex,
            "time": now(),
            "params": {
                key: "null" if value is None else str(value) for key, value in masked(dict(params)).items()
            },
            "tags": masked({**_origin(), **tags}),
        }
        if fresh:
            remove_history(run_dir)
        tracked._bring_to(server, run, tell)
        tracked._write(run, _status("RUNNING"))
        return tracked

    @classmethod
    def resume(
        cls, run_dir: str, server: Server | None, tell: Callable[[int, str], None] = _say
    ) -> TrackedRun:
        """Open a run again that was opened before, and mark it as running.

        Args:
            run_dir: Its folder.
            server: Where it is tracked from now on; one that does not know the run gets all of its history.
            tell: See `create`.

        Raises:
            ResourceError: If the server answers and refuses, or the folder cannot be written.
        """
        tracked = cls.own(run_dir, server, tell)
        begun = sum(
            record["kind"] == "status" and record["status"] == "RUNNING"
            for record in read_stream(run_dir, TOLD)
        )
        tracked._write(
            _status("RUNNING"), {"kind": "tags", "tags": {_ERROR: None, _RESUMED: str(max(begun, 1))}}
        )
        return tracked

    @classmethod
    def own(cls, run_dir: str, server: Server | None, tell: Callable[[int, str], None] = _say) -> TrackedRun:
        """Speak for a run that was opened before and that no other process speaks for; see `resume`."""
        tracked = cls(run_dir)
        if (run := read_run_record(run_dir)) is not None:
            ended = tracked.status()[0] not in ("", "RUNNING")
            tracked._owed = ended and server is not None and count_waiting(run_dir, server.address) > 0
            tracked._bring_to(server, run, tell)
        return tracked

    @property
    def run_id(self) -> str | None:
        """Its identity on the server; None without one, and as long as the server has not given it one."""
        if self._delivery is not None:
            return self._delivery.run_id
        return None if self._run_dir is None else read_delivered(self._run_dir).get("run_id")

    @property
    def server(self) -> Server | None:
        """Where it is tracked."""
        return self._server

    @property
    def uri(self) -> str | None:
        """Address of the server, without credentials."""
        return None if self._server is None else self._server.address

    @contextmanager
    def watch(self) -> Iterator[None]:
        """End the run as finished, as failed after an exception, as killed after it was stopped.

        Nothing is told of a run that another process has taken over.
        """
        try:
            yield
        except TakenOverError:  # it goes on, and who has taken it speaks for it
            self._let_go()
            raise
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit, StoppedError))
            status: Literal["KILLED", "FAILED"] = "KILLED" if interrupted else "FAILED"
            reason = " ".join(str(error).split())
            try:
                self.end(status, reason)
            except ResourceError as second:
                log.warning("%s", second)
                self._let_go()
                self._tell_at_once(status, reason)
            self._let_go()
            raise
        self.end("FINISHED")

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """End the run as it has ended, and have the server know, if it answers in time."""
        if self.status() == (status, masked(reason)[:5000]):
            self.settle()
            return
        told: list[dict[str, Any]] = []
        if reason or self.status()[1]:
            told = [{"kind": "tags", "tags": {_ERROR: masked(reason)[:5000] or None}}]
        self._write(*told, _status(status, masked(reason)[:5000]))
        self.settle()

    def _tell_at_once(self, status: Literal["KILLED", "FAILED"], reason: str) -> None:
        """Have the server know how the run has ended where that cannot be kept for it, as on a full disk."""
        if self._server is None or (run_id := self.run_id) is None:
            return
        reason = masked(reason)[:5000]
        try:
            self._server.tell(run_id, {"kind": "tags", "tags": {_ERROR: reason}})
            self._server.tell(run_id, _status(status, reason))
        except ServerError as error:
            log.warning("MLflow at %s does not know how the run has ended: %s", self.uri, error)

    def settle(self) -> int:
        """Wait until the server has everything, as long as it goes on taking it.

        Returns:
            How many records wait for it; that they do is told once.
        """
        if self._delivery is None:
            return 0
        if self._delivery.settle():
            if self._owed:
                self._owed = False
                self._tell(self._delivery.step, f"MLflow at {self.uri} has got all of the run since")
            return 0
        assert self._run_dir is not None
        assert self._server is not None
        waiting = count_waiting(self._run_dir, self._server.address)
        if waiting and not self._said_waiting:
            self._said_waiting = True
            self._tell(
                self._delivery.step,
                f"MLflow at {self.uri} has not got all of the run; what it lacks is in {self._run_dir}/{FOLDER}: "
                f"{self._later}",
            )
        return waiting

    def close(self) -> int:
        """Settle, then let go of the server; returns what `settle` does."""
        waiting = self.settle()
        self._let_go()
        return waiting

    def tracker(self) -> Tracker:
        """What logs measurements into the run from this process."""
        return NullTracker() if self._run_dir is None else JournalTracker(self._run_dir)

    def describe(self, note: str) -> None:
        """Set the Markdown text that the run's page begins with."""
        self._write({"kind": "tags", "tags": {_NOTE: masked(note)}})

    def tag(self, name: str, text: str) -> None:
        """Set a tag of the run."""
        self._write({"kind": "tags", "tags": {name: masked(text)[:5000]}})

    def log_dataset(self, name: str, digest: str, location: str) -> None:
        """Say what data the run works on."""
        self._write({"kind": "dataset", "name": name, "digest": digest, "location": masked(location)})

    def log_artifact(self, path: str) -> None:
        """Attach a local file, for which no secrets are looked for."""
        self._attach(Path(path), Path(path).name)

    def log_text(self, name: str, text: str) -> None:
        """Attach a text as a file of that name; no secrets are looked for."""
        with TemporaryDirectory() as local:
            path = Path(local, name)
            path.write_text(text, encoding="utf-8")
            self._attach(path, name)

    def log_artifacts(self, folder: str, name: str) -> None:
        """Attach the files of a local folder, as a folder of that name."""
        for path in sorted(Path(folder).iterdir()):
            self._attach(path, f"{name}/{path.name}")

    def history(self) -> History:
        """All measurements so far."""
        return {} if self._run_dir is None else read_history(self._run_dir)

    def status(self) -> tuple[str, str]:
        """RUNNING, FINISHED, FAILED or KILLED and the reason of a failure; empty texts where nothing was kept."""
        return ("", "") if self._run_dir is None else read_status(self._run_dir)

    def _bring_to(
        self, server: Server | None, run: Mapping[str, Any], tell: Callable[[int, str], None]
    ) -> None:
        self._tell, self._server = tell, server
        if server is not None:
            assert self._run_dir is not None
            self._delivery = Delivery(self._run_dir, server, tell)
            self._delivery.begin(run)

    def _let_go(self) -> None:
        if self._delivery is not None:
            self._delivery.close()

    def _attach(self, local: Path, name: str) -> None:
        # Without a server the run's own files are all there is.
        if self._delivery is not None:
            assert self._run_dir is not None
            attachments.keep(self._run_dir, str(local), name)
            self._write({"kind": "attach", "file": name})

    def _write(self, *records: Mapping[str, Any]) -> None:
        if self._run_dir is None:
            return
        with self._writing:
            if self._writer is None:
                self._writer = JournalWriter(self._run_dir, TOLD)
            self._writer.write(records)


def _status(status: str, reason: str = "") -> dict[str, Any]:
    return {"kind": "status", "status": status, "reason": reason, "time": now()}


def tracking_server(uri: str, experiment: str, output_dir: str) -> Server:
    """The server at a tracking URI, not yet asked.

    Args:
        uri: With credentials where it needs some.
        experiment: Name of the experiment; made if it is not there.
        output_dir: Where the outputs go, and the artifacts too where tracking is a local database.
    """
    from distmetric.tracking.mlflow_server import MLflowServer

    local = uri.startswith("sqlite:") and "://" not in output_dir
    artifacts = (Path(output_dir).expanduser().absolute() / "artifacts").as_uri() if local else None
    return MLflowServer(uri, experiment, artifacts)


def _origin() -> dict[str, str]:
    """Where a run comes from, under the names that MLflow's own pages show."""
    tags = {
        "mlflow.source.git.commit": git_revision(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError, ImportError):  # of a user without a name, as in many containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def git_revision() -> str:
    """Commit of the code that runs, with "+changes" where files differ from it.

    Outside a checkout, as in a submitted job, it is what DISTMETRIC_REVISION says, else "unknown".
    """
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("DISTMETRIC_REVISION", "unknown")
    return f"{commit}+changes" if changed else commit
