"""Jobs in processes of their own, for tests that kill some of these: by process id, and only what they started."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from distmetric.benchmarks.training_job import kill

__all__ = [
    "REPOSITORY",
    "descendants",
    "end",
    "finished",
    "kill",
    "running",
    "start",
    "steps_saved",
    "wait_for",
]

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
    return running(psutil.Process(driver.pid).children(recursive=True), name)


def running(processes: Iterable[psutil.Process], name: str = "") -> list[psutil.Process]:
    """Those that have not ended, with `name` in their command line."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):  # ended meanwhile, though nobody may have asked yet how
            if process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()):
                found.append(process)
    return found


def finished(job: str, *overrides: str, seconds: float) -> dict[str, Any]:
    """The result of a job that has to end well, without a traceback, within some seconds."""
    command = [sys.executable, f"jobs/{job}.py", *overrides]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds)
    assert ran.returncode == 0, ran.stderr[-3000:]
    # Of this process; Ray ends its own with a signal, and what that interrupts may say so behind a prefix.
    assert not any(line.startswith("Traceback") for line in ran.stderr.splitlines()), ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


def end(driver: subprocess.Popen[str]) -> None:
    """Leave nobody behind, of a job that has not ended by itself."""
    if driver.poll() is None:
        kill([*descendants(driver), psutil.Process(driver.pid)])
        driver.wait()
