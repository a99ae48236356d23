"""A training job in a process of its own, and all that it has started: found, and ended, by process id."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from distmetric.errors import ResourceError

_JOB = Path(__file__).parents[2] / "jobs" / "train.py"
_JOINED = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")  # of somebody else, where nothing is to be killed


class TrainingJob:
    """One process of jobs/train.py.

    Args:
        overrides: Its settings.
        log: Where its standard output and error go.

    Raises:
        ResourceError: If there is no jobs/train.py beside this package, as in an installed one.
    """

    def __init__(self, overrides: Sequence[str], log: Path) -> None:
        if not _JOB.is_file():
            raise ResourceError(f"this starts {_JOB}, which is not there: run it in a checkout of distmetric")
        environment = {name: value for name, value in os.environ.items() if name not in _JOINED}
        with log.open("w", encoding="utf-8") as file:
            self._popen = subprocess.Popen(
                [*_with_us(), sys.executable, str(_JOB), *overrides],
                cwd=_JOB.parents[1],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends what it has started
            )
        self.log = log
        self.driver = psutil.Process(self._popen.pid)
        self._seen: set[psutil.Process] = {self.driver}

    @property
    def exit_code(self) -> int | None:
        """None while the driver runs; -9 for SIGKILL."""
        return self._popen.poll()

    def wait(self, seconds: float) -> int | None:
        """The driver's exit code; None if it runs for longer."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def look(self) -> set[psutil.Process]:
        """All processes of the job that are alive, those that have lost their parent too, if they were seen before."""
        with suppress(psutil.Error):
            self._seen.update(self.driver.children(recursive=True))
        return {process for process in self._seen if alive(process)}

    def find(self, title: str) -> list[psutil.Process]:
        """The living processes of a Ray class, by process id."""
        return sorted(
            (process for process in self.look() if _title(process).startswith(f"ray::{title}")),
            key=lambda process: process.pid,
        )

    def end(self) -> None:
        """SIGKILL of all that is left, and wait for it."""
        deadline = time.monotonic() + 20
        while (left := self.look()) and time.monotonic() < deadline:
            kill(left)
            psutil.wait_procs(left, timeout=1)
        self._popen.wait()

    def last_words(self, lines: int = 3) -> str:
        """The end of its log, on one line."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in text[-lines:])[-500:]


def _with_us() -> list[str]:
    """What has the kernel ask a job to stop when this process is gone, however it went; where util-linux is there."""
    command = shutil.which("setpriv")
    return [command, "--pdeathsig", "TERM", "--"] if command else []


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL; who is gone already is no error. psutil makes sure that an id was not given to somebody else."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def alive(process: psutil.Process) -> bool:
    """Whether it runs, is stopped, or waits; not what only waits to be collected."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
