"""Small training runs for tests: seconds, on a few glyph classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from distmetric.benchmarks.soak.reference import StopAt
from distmetric.config import schema
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.data.augment import AugmentSpec
from distmetric.distributed.replica import Replica
from distmetric.index.config import StreamIndexConfig
from distmetric.losses import TripletLossConfig
from distmetric.miners import NoMinerConfig
from distmetric.models.spec import ConvSpec
from distmetric.samplers import PKSamplerConfig
from distmetric.training.loop import TrainResult, train
from distmetric.training.stop import Wish
from distmetric.training.worker import Worker

CPU = torch.device("cpu")
FEW_GLYPHS = ("data.max_classes=60",)
# What `loss=custom` needs beside its name.
LOSS_OF_OTHERS = ("loss.target=pytorch_metric_learning.losses.SupConLoss", "allow_custom_targets=true")


def default_config() -> Config:
    """What the dataclasses say where nothing is set."""
    return Config(
        data=schema.GlyphsDataConfig(),
        augment=AugmentSpec(),
        model=ConvSpec(),
        loss=TripletLossConfig(),
        miner=NoMinerConfig(),
        sampler=PKSamplerConfig(),
        index=StreamIndexConfig(),
        optim=schema.AdamWConfig(),
        schedule=schema.ScheduleConfig(),
        train=schema.TrainConfig(),
        trainer=schema.TrainerConfig(),
        eval=schema.EvalConfig(),
        checkpoint=schema.CheckpointConfig(),
        tracking=schema.MLflowConfig(),
    )


def tiny_config(cache: Path, *overrides: str) -> Config:
    """`debug=tiny` on a few glyphs, drawn into `cache`."""
    tiny = ("debug=tiny", *FEW_GLYPHS, "model.widths=[16, 16, 16]", "model.embedding_dim=32", "tracking=none")
    return decode(Config, compose("config", [*tiny, f"data.cache_dir={cache}", *overrides]))


class ListTracker:
    """Keeps what is logged; optionally fails at a step, as a killed process would stop there."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self._fail_at = fail_at

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._fail_at:
            raise InterruptedError(f"stopped at step {step}")
        self.logged.append((step, dict(metrics)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def series(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.logged if name in metrics}


def final_state(
    config: Config, run_dir: Path, fail_at: int | None = None
) -> tuple[list[NDArray[Any]], ListTracker]:
    """The model's and the loss's tensors after a run, resumed after it was stopped at a step, and the last tracker."""
    if fail_at is not None:
        with pytest.raises(InterruptedError):
            run_once(config, run_dir, ListTracker(fail_at))
    worker, _, tracker = run_once(config, run_dir)
    return [tensor.numpy().copy() for tensor in tensors_of(worker)], tracker


def run_once(
    config: Config, run_dir: Path, tracker: ListTracker | None = None, replica: Replica | None = None
) -> tuple[Worker, TrainResult, ListTracker]:
    """Train in this process."""
    tracker = tracker or ListTracker()
    worker = Worker(config, str(run_dir), tracker, replica or Replica(), CPU)
    return worker, train(worker), tracker


def tensors_of(worker: Worker) -> list[torch.Tensor]:
    """Those of the model and of the loss."""
    return [*worker.embedder.state_dict().values(), *worker.criterion.state_dict().values()]


class LeaveAt(StopAt):
    """Asks the workers to leave at a step before the last, as where there is room for a larger group."""

    def wanted(self) -> Wish:
        is_last = self.worker is not None and self._step >= self.worker.config.train.steps
        return "" if is_last else super().wanted()

    def reason(self) -> str:
        return "room for more workers"
