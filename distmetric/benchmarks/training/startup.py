"""Runs of jobs/train.py in processes of their own: how long they take to a first step, and what their parts cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distmetric.errors import ResourceError
from distmetric.startup import PREFIX
from distmetric.tracking.journal import read_history
from distmetric.tracking.tracker import History
from distmetric.training.ledger import PHASES

if TYPE_CHECKING:
    import psutil

_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.2
_STEPS_BEFORE, _STEPS = 20, 120
_SETTINGS = ("experiment=quickstart", "report=false", "trainer.num_workers=2", "eval.resamples=0")


@dataclass(frozen=True)
class Start:
    """One start of a training.

    Args:
        seconds: From the birth of the process to the end of the first step.
        cpu: Of all processes of the run until about then, busy ones only.
        parts: `seconds` by part, in their order.
    """

    seconds: float
    cpu: float
    parts: dict[str, float]


def measure_startup(times: int) -> list[Start]:
    """Start `jobs/train.py experiment=quickstart` with two workers and a Ray of its own, again and again.

    A first start, which draws the data and brings files into memory, does not count.
    """
    return [_started() for _ in range(times + 1)][1:]


def measure_hard_neighbors(size: int) -> tuple[list[float], dict[str, float]]:
    """Train with hard neighbors of an index that is fed by the batches, whose embeddings are pushed at every step.

    Args:
        size: N of the global batch.

    Returns:
        Seconds of the steps, and the median seconds of each phase.
    """
    history, _ = _trained(
        *("sampler=hard_neighbors", "sampler.warmup_steps=0", f"sampler.classes_per_batch={size // 4}"),
        *("loss=supcon", f"train.steps={_STEPS}", f"eval.every_steps={_STEPS}"),
    )
    phases = {phase: [value for _, value in history[f"time/{phase}"]][_STEPS_BEFORE:] for phase in PHASES}
    steps = [sum(step) for step in zip(*phases.values(), strict=True)]
    return steps, {phase: median(values) for phase, values in phases.items()}


def _started() -> Start:
    history, samples = _trained("train.steps=1")
    parts = {
        name.removeprefix(PREFIX): points[0][1] for name, points in history.items() if name.startswith(PREFIX)
    }
    seconds = parts.pop("total")
    return Start(seconds, _busy_until(seconds, samples), parts)


def _trained(*settings: str) -> tuple[History, list[tuple[float, float]]]:
    """What a run has told, and (seconds since its birth, CPU seconds of all its processes) while it went on.

    Raises:
        ResourceError: If it fails, or psutil is missing.
    """
    try:
        import psutil

        from distmetric.benchmarks.training_job import TrainingJob
    except ImportError:
        raise ResourceError("this needs the package psutil: pip install 'distmetric[bench]'") from None
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        job = TrainingJob(
            [*_SETTINGS, *settings, f"output_dir={folder}", "name=run"], Path(folder, "run.log")
        )
        try:
            samples, busy = list[tuple[float, float]](), dict[psutil.Process, float]()
            while job.exit_code is None:
                if time.monotonic() - started > _TIMEOUT_S:
                    raise ResourceError(f"jobs/train.py was not done after {_TIMEOUT_S:g} s")
                _count(job.look(), busy)
                samples.append((time.monotonic() - started, sum(busy.values())))
                time.sleep(_LOOK_EVERY_S)
            if job.exit_code:
                raise ResourceError(f"jobs/train.py failed: {job.last_words()}")
            return read_history(f"{folder}/run"), samples
        finally:
            job.end()


def _count(processes: set[psutil.Process], busy: dict[psutil.Process, float]) -> None:
    """Note how long each process was busy; what has ended keeps what it had."""
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            busy[process] = times.user + times.system


def _busy_until(seconds: float, samples: Sequence[tuple[float, float]]) -> float:
    return max((cpu for at, cpu in samples if at <= seconds), default=0.0)
