"""Injecting faults into a training job that runs: from outside, with signals, and by keeping its disk busy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from distmetric.benchmarks.soak.plan import Planned
from distmetric.benchmarks.training_job import TrainingJob, kill

WORKER, INDEX = "RayTrainWorker", "NeighborIndexActor"
STOPPED_CODE = 5
"""Exit code of a driver that was asked to stop and has saved what it had reached."""

_HELD_S = 4.0  # how long pushes back up, and how long the disk is slow
_HELD_IN_WRITE_S = 1.0
_STOP_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.002
_BUSY = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    while os.getppid() == int(sys.argv[2]):
        file.seek(0)
        file.write(bytes(8 << 20))
        os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Effect:
    """What came of injecting a fault.

    Args:
        is_injected: Whether there was something to hit.
        ended: Whether the driver has ended by it, so that the run has to be resumed.
        failure: What went wrong with the fault itself, such as a driver that does not stop; empty if nothing.
        detail: What else to tell.
    """

    is_injected: bool = True
    ended: bool = False
    failure: str = ""
    detail: str = ""


def inject(planned: Planned, job: TrainingJob, run_dir: Path) -> Effect:
    """Inject a fault, and return when it is over or has taken its course.

    Args:
        planned: Which.
        job: Into what.
        run_dir: Folder of the run.
    """
    effects: dict[str, Callable[[], Effect]] = {
        "kill_worker": lambda: _kill_one(job.find(WORKER), planned.draw),
        "kill_index_actor": lambda: _kill_one(job.find(INDEX), planned.draw),
        "drop_pushes": lambda: _hold(job.find(INDEX), _HELD_S),
        "slow_disk": lambda: _slow_disk(job, run_dir),
        "kill_driver": lambda: _kill_driver(job),
        "kill_everything": lambda: _kill_everything(job),
        "stop": lambda: _stop(job),
    }
    return effects[planned.kind]()


def _kill_one(found: Sequence[psutil.Process], draw: float) -> Effect:
    if not found:
        return Effect(is_injected=False)
    chosen = found[int(draw * len(found))]
    kill([chosen])
    psutil.wait_procs([chosen], timeout=10)
    return Effect()


def _hold(found: Sequence[psutil.Process], seconds: float) -> Effect:
    """Stop processes for some time and let them go on."""
    try:
        held = _signal_all(found, "suspend")
        if held:
            time.sleep(seconds)
    finally:
        _signal_all(found, "resume")
    return Effect(is_injected=held > 0)


def _slow_disk(job: TrainingJob, run_dir: Path) -> Effect:
    busy_file = run_dir.parent / "busy-disk"
    held, deadline = 0, time.monotonic() + _HELD_S
    with subprocess.Popen([sys.executable, "-c", _BUSY, str(busy_file), str(psutil.Process().pid)]) as busy:
        try:
            while time.monotonic() < deadline:
                if _is_writing(run_dir / "checkpoints"):
                    held += _hold(job.find(WORKER), _HELD_IN_WRITE_S).is_injected
                time.sleep(_LOOK_EVERY_S)
        finally:
            busy.kill()
    busy_file.unlink(missing_ok=True)
    return Effect(detail=f"held up in the writing of {held} checkpoints")


def _is_writing(checkpoints: Path) -> bool:
    """Whether there is a checkpoint that is not complete."""
    try:
        folders = [path for path in checkpoints.iterdir() if path.name.startswith("step_")]
        return any(not (folder / "manifest.json").exists() and any(folder.iterdir()) for folder in folders)
    except FileNotFoundError:
        return False


def _kill_driver(job: TrainingJob) -> Effect:
    job.look()  # who loses its parent now is found no more
    kill([job.driver])
    job.wait(10)
    return Effect(ended=True)


def _kill_everything(job: TrainingJob) -> Effect:
    job.end()
    return Effect(ended=True)


def _stop(job: TrainingJob) -> Effect:
    job.look()
    job.driver.terminate()
    code = job.wait(_STOP_WITHIN_S)
    if code == STOPPED_CODE:
        return Effect(ended=True)
    job.end()
    said = f"it ended with exit code {code}" if code is not None else f"it ran for {_STOP_WITHIN_S:g} s more"
    return Effect(ended=True, failure=f"asked to stop, {said}: {job.last_words()}")


def _signal_all(processes: Sequence[psutil.Process], method: str) -> int:
    reached = 0
    for process in processes:
        try:
            getattr(process, method)()
            reached += 1
        except psutil.NoSuchProcess:
            continue
    return reached
