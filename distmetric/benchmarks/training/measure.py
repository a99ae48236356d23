"""One cell of the trainings, in this process: our loop in turn with the bare one, or with all that it tells."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import ClassVar, Literal

import torch

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.memory import PeakMemory
from distmetric.benchmarks.training.beside import Turns
from distmetric.benchmarks.training.cost import CountedTracker, thread_seconds
from distmetric.benchmarks.training.startup import measure_hard_neighbors, measure_startup
from distmetric.config.compose import load
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.tracking.tracked_run import TrackedRun, tracking_server
from distmetric.tracking.tracker import NullTracker
from distmetric.training.loop import train
from distmetric.training.worker import Worker

What = Literal["beside", "tracking", "startup", "index"]
Model = Literal["conv", "resnet"]

MODELS: dict[Model, list[str]] = {
    "conv": ["model=conv"],
    "resnet": ["model=resnet", "model.widths=[16,32,64]"],
}
"""What is trained: the settings of each."""

_SETTINGS = (
    *("loss=supcon", "optim.weight_decay=0", "optim.lr=1e-3", "schedule=constant", "schedule.warmup_steps=0"),
    *("train.steps=1000000", "eval.every_steps=1000000", "checkpoint.every_steps=1000000", "tracking=none"),
)
SAMPLES_PER_CLASS = 4


@dataclass(frozen=True)
class TrainingSpec(Spec):
    """What one cell measures; `steps` counts blocks of ten steps, or starts.

    Args:
        what: beside: our loop in turn with the bare one. tracking: what it costs to tell. startup and index: a run of
            jobs/train.py, until its first step, or with hard neighbors.
        model: Of `MODELS`.
        augment: Of conf/augment, in both loops.
        size: N, images in the batch of all processes together.
    """

    suite: ClassVar[str] = "training"

    what: What
    model: Model
    augment: str
    size: int


@dataclass(frozen=True)
class TrainingMeasurement(Measurement):
    """What one process of a cell found; `seconds` are those of one step, mean over each block, or of each start.

    Args:
        bare_seconds: The same of the bare loop, of the block right before each of ours.
        cpu_seconds: As `seconds`, of all threads, busy ones only.
        bare_cpu_seconds: The same of the bare loop.
        loss_difference: Between the two loops in the first ten steps, at most, relative.
        parts: What else there is, by name, in seconds.
    """

    bare_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    bare_cpu_seconds: list[float] = field(default_factory=list)
    loss_difference: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


def configuration(spec: TrainingSpec) -> list[str]:
    """The settings of the training of a cell."""
    return [
        *MODELS[spec.model],
        f"augment={spec.augment}",
        f"sampler.classes_per_batch={spec.size // SAMPLES_PER_CLASS}",
        f"sampler.samples_per_class={SAMPLES_PER_CLASS}",
        *_SETTINGS,
    ]


def measure_training(spec: TrainingSpec, replica: Replica | None = None) -> TrainingMeasurement:
    """Measure a cell in this process, or in processes that it starts.

    Args:
        spec: What to measure.
        replica: Which of its ranks this process is.
    """
    if spec.what == "startup":
        starts = measure_startup(spec.steps)
        parts = {name: mean(start.parts[name] for start in starts) for name in starts[0].parts}
        return TrainingMeasurement(
            [start.seconds for start in starts], [], 0, 0, cpu_seconds=[s.cpu for s in starts], parts=parts
        )
    if spec.what == "index":
        steps, parts = measure_hard_neighbors(spec.size)
        return TrainingMeasurement(steps, [], 0, 0, parts=parts)
    with ExitStack() as stack:
        return _measure_loop(spec, replica or Replica(), stack)


def _measure_loop(spec: TrainingSpec, replica: Replica, stack: ExitStack) -> TrainingMeasurement:
    folder = stack.enter_context(_common_folder(replica))
    config = load("config", Config, [*configuration(spec), f"output_dir={folder}"])
    tracked = TrackedRun(folder)
    if spec.what == "tracking" and replica.is_main:
        server = tracking_server(f"sqlite:///{Path(folder, 'mlflow.db')}", "benchmark", folder)
        tracked = TrackedRun.create(folder, server, "benchmark", {}, {})
        stack.callback(tracked.close)
    before = thread_seconds()
    tracker = CountedTracker(tracked.tracker() if replica.is_main else NullTracker())
    stack.callback(tracker.close)
    turns = Turns(spec.steps, has_bare=spec.what == "beside")
    worker = Worker(config, folder, tracker, replica, torch.device("cpu"), stop=turns)
    turns.worker = worker
    memory = PeakMemory(worker.device)
    result = train(worker)
    tracked.settle()
    block, steps = config.train.log_every, result.step
    threads = {name: seconds - before.get(name, 0.0) for name, seconds in thread_seconds().items()}
    return TrainingMeasurement(
        [seconds / block for seconds in turns.ours.wall],
        [],
        memory.base,
        memory.above_base(),
        bare_seconds=[seconds / block for seconds in turns.bare.wall],
        cpu_seconds=[seconds / block for seconds in turns.ours.cpu],
        bare_cpu_seconds=[seconds / block for seconds in turns.bare.cpu],
        loss_difference=_difference(tracker.losses[:block], turns.bare_losses[:block]),
        parts={
            "noted": tracker.seconds / steps,
            "written": threads.get("history", 0.0) / steps,
            "delivered": threads.get("tracking", 0.0) / steps,
        },
    )


@contextmanager
def _common_folder(replica: Replica) -> Iterator[str]:
    """A folder that all ranks know the name of, and that rank 0 makes and removes."""
    number = int(replica.broadcast(secrets.randbelow(1 << 53)))
    folder = Path(gettempdir(), f"distmetric-training-{number}")
    if replica.is_main:
        folder.mkdir(mode=0o700)
    try:
        yield str(folder)
    finally:
        replica.barrier()
        if replica.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _difference(ours: list[float], bare: list[float]) -> float:
    return max((abs(a - b) / abs(b) for a, b in zip(ours, bare, strict=False)), default=0.0)
