"""Runs in which the numbers of chosen steps are not finite, whatever the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.training.batches import Batch
from distmetric.training.loop import TrainResult, train
from distmetric.training.worker import Worker
from runs import CPU, ListTracker

Poison = Literal["embedding", "gradient", "", "forget"]
"""One embedding is NaN; a gradient is infinite and the loss is not; nothing; the step is undone by hand."""


class Poisoned:
    """A worker whose steps are poisoned: step counted from 0 -> how; on one rank, or on all."""

    def __init__(self, worker: Worker, poisons: Mapping[int, Poison], rank: int | None = None) -> None:
        self.worker, self.poisons = worker, poisons
        self.poison: Poison = ""
        self.applies = rank is None or rank == worker.replica.rank
        self.batches: dict[int, Batch] = {}
        self._get, self._take, self._hold = worker.batches.get, worker.steps.take, worker.steps.hold
        worker.batches.get = self.get
        worker.steps.take = self.take
        worker.embedder.head.register_forward_hook(self.embedded)
        worker.trained_parameters[0].register_hook(self.differentiated)

    def get(self, step: int) -> Batch:
        self.poison = self.poisons.get(step, "")
        if self.poison == "forget":
            self.before = states(self.worker)
        self.batches[step] = self._get(step)
        return self.batches[step]

    def take(self, step: int, *rest: Any) -> None:
        if self.poison != "forget":
            self._take(step, *rest)
            return
        for part, state in zip(parts(self.worker), self.before, strict=True):
            part.load_state_dict(state)

    def embedded(self, module: nn.Module, inputs: object, outputs: Tensor) -> Tensor:
        if self.poison != "embedding" or not module.training or not self.applies:
            return outputs
        return outputs.index_fill(0, torch.tensor([1]), torch.nan)

    def differentiated(self, gradient: Tensor) -> Tensor:
        return gradient * torch.inf if self.poison == "gradient" and self.applies else gradient


def parts(worker: Worker) -> tuple[nn.Module, nn.Module]:
    return worker.embedder, worker.criterion


def states(worker: Worker) -> list[dict[str, Any]]:
    """Copies of what the model and the loss know."""
    return [{name: value.clone() for name, value in part.state_dict().items()} for part in parts(worker)]


def poisoned_run(
    config: Config,
    run_dir: Path,
    poisons: Mapping[int, Poison],
    tracker: ListTracker | None = None,
    replica: Replica | None = None,
    rank: int | None = None,
) -> tuple[Poisoned, TrainResult, ListTracker]:
    """Train with the steps poisoned."""
    tracker = tracker or ListTracker()
    poisoned = Poisoned(Worker(config, str(run_dir), tracker, replica or Replica(), CPU), poisons, rank)
    return poisoned, train(poisoned.worker), tracker
