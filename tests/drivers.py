"""Jobs in processes of their own, for tests that kill some of these: by process id, and only what they started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]


def start(*overrides: str, log: Path) -> subprocess.Popen[str]:
    """Start jobs/train.py; its standard error goes into `log`."""
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "jobs/train.py", *overrides],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def wait_for(
    condition: Callable[[], bool], driver: subprocess.Popen[str], log: Path, seconds: float = 400
) -> None:
    """Wait for a condition, and fail if the job ends before it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"the run ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"waited too long:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def steps_saved(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; 0 before the first."""
    found = [
        int(path.parent.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/*/manifest.json")
    ]
    return max(found, default=0)


def descendants(driver: subprocess.Popen[str], name: str = "") -> list[psutil.Process]:
    """Processes that the job has started, with `name` in their command line."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
