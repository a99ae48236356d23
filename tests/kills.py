"""Runs that are killed for real: SIGKILL in forked processes, between two lines of ours that are drawn at random."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch

from distmetric.benchmarks.soak.equality import CLOCKS, state_of
from distmetric.config.schema import Config
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracker import NullTracker
from distmetric.training.batches import Batch, BatchLoader
from distmetric.training.worker import Worker
from runs import run_once

PACKAGE = str(Path(__file__).parents[1] / "distmetric") + "/"
TRAINING = (
    "training/",
    "locations.py",
    "index/snapshot",
    "samplers/",
    "tracking/",
    "losses/cross_batch_memory.py",
)
WRITING = (
    *("tracking/", "training/checkpoint", "training/evaluations.py", "training/claim.py", "locations.py"),
    *("index/snapshot_store.py", "index/snapshot.py", "training/inline_index.py"),
)


def kill_seed(default: int = 6) -> int:
    """Seed of what is drawn: DISTMETRIC_KILL_SEED, else the same one every time; printed, so that it can be set."""
    seed = int(os.environ.get("DISTMETRIC_KILL_SEED", default))
    print(f"DISTMETRIC_KILL_SEED={seed}")
    return seed


class Journal:
    """A run's own tracker, if a folder is given, and a file which has every record before `log` returns."""

    def __init__(self, path: Path, run_dir: Path | None = None) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kept = NullTracker() if run_dir is None else JournalTracker(str(run_dir))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        os.write(self._descriptor, (json.dumps([step, dict(metrics)]) + "\n").encode())
        self._kept.log(step, metrics)

    def flush(self) -> None:
        self._kept.flush()

    def close(self) -> None:
        self._kept.close()
        os.close(self._descriptor)


def journaled(path: Path) -> dict[tuple[str, int], set[float]]:
    """(metric, step) -> the values that were ever logged for it; no clocks."""
    values: dict[tuple[str, int], set[float]] = {}
    for line in path.read_text().splitlines():
        step, metrics = json.loads(line)
        for name, value in metrics.items():
            if not name.startswith(CLOCKS):
                values.setdefault((name, step), set()).add(value)
    return values


def train_forked(
    config: Config,
    run_dir: Path,
    journal: Path,
    kill_after: int | None = None,
    where: tuple[str, ...] = TRAINING,
    prepare: Callable[[], None] = lambda: None,
) -> bool:
    """Train in a process of its own, which is killed after so many lines of `where` if it does not end before.

    A process that has trained before is quicker at it, and so are its forks: torch loads much when it is first used.

    Returns:
        Whether it was killed.
    """

    def child() -> None:
        torch.manual_seed(os.getpid())  # nothing may depend on what the generator of a process happens to be
        prepare()
        with Countdown(kill_after, where):
            run_once(config, run_dir, Journal(journal, run_dir))

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        raise TimeoutError("a forked run did not end")
    if process.exitcode == -signal.SIGKILL:
        return True
    assert process.exitcode == 0, f"a forked run failed with {process.exitcode}"
    return False


class Countdown:
    """Counts the lines of ours that this thread executes, and kills the process after so many of some files."""

    def __init__(self, kill_after: int | None = None, where: tuple[str, ...] = TRAINING) -> None:
        self.lines = Counter[str]()
        self._left, self._where = kill_after, where

    def __enter__(self) -> Countdown:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE) or not (name := path.removeprefix(PACKAGE)).startswith(TRAINING):
            return None
        counts = name.startswith(self._where)

        def line(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
            if event == "line":
                self.lines[name] += 1
                if counts and self._left is not None:
                    self._left -= 1
                    if self._left <= 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            return line

        return line


def lines_in(lines: Counter[str], where: tuple[str, ...]) -> int:
    """How many of them are in some files."""
    return sum(count for name, count in lines.items() if name.startswith(where))


def saved_state(run_dir: Path, step: int) -> dict[str, Any]:
    """Everything in the checkpoint of a step, by dotted name: model, optimizer, loss, memory, sampler, back-off."""
    state = state_of(str(run_dir / "checkpoints" / f"step_{step:08d}"))
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in state.items()}


def assert_same_state(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Bit for bit."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert ours[name].dtype == value.dtype, name
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        else:
            assert ours[name] == value, name


class RecordedBatches:
    """Stands between a worker and its loader, and notes which rows of the training split it takes in which step.

    Args:
        worker: Whose `batches` are noted.
        path: File of lines [step, rank, places].
    """

    def __init__(self, worker: Worker, path: Path) -> None:
        self._loader, self._rank = worker.batches, worker.replica.rank
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        worker.batches = cast(BatchLoader, self)

    def get(self, step: int) -> Batch:
        batch = self._loader.get(step)
        line = json.dumps([step, self._rank, batch.places.tolist()])
        os.write(self._descriptor, f"{line}\n".encode())
        return batch

    def close(self) -> None:
        self._loader.close()


def recorded(path: Path, ranks: int) -> dict[int, list[int]]:
    """Step -> the rows of its batch over all ranks, in their order; steps that all of them have taken."""
    slices: dict[int, dict[int, list[int]]] = {}
    for line in path.read_text().splitlines():
        step, rank, places = json.loads(line)
        slices.setdefault(step, {})[rank] = places
    return {
        step: [place for rank in range(ranks) for place in by_rank[rank]]
        for step, by_rank in slices.items()
        if len(by_rank) == ranks
    }
