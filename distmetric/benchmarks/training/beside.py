"""Our loop and the bare one in turn, block by block, in one process, while neither knows of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from distmetric.benchmarks.training.bare import BareLoop, Batch
from distmetric.data.augment import augment
from distmetric.losses.supcon import SupConLossConfig
from distmetric.models.build import build_embedder
from distmetric.samplers.slices import rank_slice
from distmetric.training.run_data import build_sampler, training_labels
from distmetric.training.stop import Wish
from distmetric.training.worker import Worker

_WARM_UP = 2  # turns that do not count: kernels are chosen, buckets of gradients sorted
_MOST_TURNS, _WANTED_S = 30, 20.0


@dataclass
class Spent:
    """Seconds of each block of steps.

    Args:
        wall: By the clock on the wall.
        cpu: Of all threads of this process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _begun: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """A block begins now."""
        self._begun = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """The block ends now."""
        self.wall.append(time.perf_counter() - self._begun[0])
        self.cpu.append(time.process_time() - self._begun[1])


class Turns:
    """A `StopRequest` that, when it is asked before a step, lets the bare loop have its turn.

    So the training is the real one, whole, and each block of its steps stands between two of the bare loop's.

    Args:
        turns: Least number of turns that count; short ones are repeated for some seconds.
        has_bare: Whether there is a bare loop at all.

    Attributes:
        worker: The training, set before it starts.
        ours, bare: Time of the turns that count.
        bare_losses: Of each of the bare loop's steps.
    """

    def __init__(self, turns: int, has_bare: bool = True) -> None:
        self._turns, self._has_bare = turns, has_bare
        self._loop: BareLoop | None = None
        self._batches: Callable[[int, int], list[Batch]] | None = None
        self._done = self._steps = 0
        self.worker: Worker | None = None
        self.ours, self.bare = Spent(), Spent()
        self.bare_losses: list[float] = []

    @property
    def steps(self) -> int:
        """Of the training, that count."""
        return len(self.ours.wall) * self._block

    def wanted(self) -> Wish:
        """See `StopRequest.wanted`; all ranks are asked before the same step."""
        assert self.worker is not None, "it is set before the training starts"
        if self._steps % self._block == 0:
            if self._steps:
                self._end_turn()
                if self._is_over():
                    return "stop"
            if self._has_bare:
                self._bare_turn(self.worker)
            self.worker.replica.barrier()
            self.ours.begin()
        self._steps += 1
        return ""

    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return "the end of the measurement"

    @property
    def _block(self) -> int:
        assert self.worker is not None
        return self.worker.config.train.log_every

    def _end_turn(self) -> None:
        self.ours.end()
        self._done += 1
        if self._done == _WARM_UP:
            self.ours, self.bare = Spent(), Spent()

    def _is_over(self) -> bool:
        assert self.worker is not None
        counted = self._done - _WARM_UP
        long_enough = sum(self.ours.wall) >= _WANTED_S or counted >= _MOST_TURNS
        return bool(self.worker.replica.broadcast(counted >= self._turns and long_enough))

    def _bare_turn(self, worker: Worker) -> None:
        if self._loop is None or self._batches is None:
            self._loop, self._batches = bare_loop(worker), batches_of(worker)
        batches = self._batches(self._steps, self._block)
        worker.replica.barrier()
        self.bare.begin()
        losses = self._loop.run(batches, self._steps)
        self.bare.end()
        self.bare_losses += torch.stack(losses).tolist()


def bare_loop(worker: Worker) -> BareLoop:
    """The bare loop that learns what a worker learns: the same weights to begin with, the same variations."""
    config = worker.config
    assert isinstance(config.loss, SupConLossConfig), "it is the loss that the bare loop has"
    model = build_embedder(config.model, config.seed, worker.replica)
    vary = None if config.augment.is_identity else partial(augment, spec=config.augment, seed=config.seed)
    return BareLoop(model, config.optim.lr, config.loss.temperature, worker.replica, vary)


def batches_of(worker: Worker) -> Callable[[int, int], list[Batch]]:
    """(first step, number) -> the batches of those steps, of the same rows as the worker's, ready in memory."""
    sampler, replica = build_sampler(worker.config, worker.catalog), worker.replica
    labels = torch.from_numpy(training_labels(worker.catalog, worker.config.data.train_split))

    def batch(step: int) -> Batch:
        plan = sampler.batch(step)
        own = rank_slice(plan, replica.rank, replica.world_size)
        places = torch.from_numpy(np.searchsorted(worker.train_rows, plan))
        return Batch(
            worker.images.images(own).float() / 255, labels[places], torch.from_numpy(worker.catalog.ids[own])
        )

    return lambda first, count: [batch(step) for step in range(first, first + count)]
