"""Rounds of batches planned from neighbors: which snapshot all ranks plan from, agreed upon without waiting for any."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.distributed.replica import Replica
from distmetric.errors import InputError, ResourceError, UserError
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.index.source import Rows, SnapshotSource, Weights
from distmetric.samplers.back_off import BackOff
from distmetric.samplers.hard_neighbors import HardNeighborSampler
from distmetric.samplers.pk import PKSampler
from distmetric.training.probe import HardnessProbe

_FAILED = -2.0

log = logging.getLogger(__name__)


class Rounds:
    """Begins every round of a sampler of hard neighbors: looks for a newer snapshot, agrees, plans, measures.

    The version that a round is planned from is the newest one which every rank holds when the round is planned, one
    step before it begins. Rank 0 notes it before anybody uses it, so a run that is killed and resumed repeats its
    rounds from the same snapshots; only rounds that were never begun look for newer ones.

    Args:
        sampler: Plans the batches.
        source: Where snapshots come from and embeddings go.
        store: Keeps snapshots and notes in the run's folder; all ranks read, rank 0 writes.
        back_off: Lowers hardness when training is about to collapse.
        random: Plans the random batches that hard ones are compared with.
        probe: Compares them.
        embed: (B,) places in the training split -> (B, D) embeddings in evaluation mode.
        weights: Gives the model's state.
        train_rows: (M,) catalog rows of the training split, ascending.
        replica: Who this rank is.
        device: Where it computes.
    """

    def __init__(
        self,
        sampler: HardNeighborSampler,
        source: SnapshotSource,
        store: SnapshotStore,
        back_off: BackOff,
        random: PKSampler,
        probe: HardnessProbe,
        embed: Callable[[Rows], Tensor],
        weights: Callable[[], Weights],
        train_rows: Rows,
        replica: Replica,
        device: torch.device,
    ) -> None:
        self._sampler, self._source, self._store, self._back_off = sampler, source, store, back_off
        self._random, self._probe, self._embed, self._weights = random, probe, embed, weights
        self._train_rows, self._replica, self._device = train_rows, replica, device
        self._snapshot: NeighborSnapshot | None = None
        self._begun = -1
        self._measured: list[tuple[int, dict[str, float]]] = []
        self._held: list[tuple[int, dict[str, float]]] = []

    @property
    def version(self) -> int:
        """Version of the snapshot in use; 0 before the first."""
        return 0 if self._snapshot is None else self._snapshot.version

    @property
    def nearest_classes(self) -> NDArray[np.int32] | None:
        """(C, k) nearest classes of each, as of the snapshot in use; None before the first."""
        return None if self._snapshot is None else self._snapshot.class_neighbors

    def prepare(self, step: int) -> None:
        """Have the rounds of `step` and of the one after it begun; all ranks call it before every step.

        The one after it, because the loader reads a step ahead.
        """
        for wanted in (self._sampler.round_of(step), self._sampler.round_of(step + 1)):
            if wanted > self._begun:
                self._begin(wanted, step)

    def share(self, step: int, places: Rows, embeddings: Tensor) -> None:
        """Hand the embeddings of a training step to the index.

        Args:
            step: Steps that the weights had done.
            places: (B,) places of the rows in the training split.
            embeddings: (B, D).
        """
        self._source.push(step, places, embeddings.detach())

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Let the back-off see what a step measured, after what was held; equal on all ranks."""
        for earlier in self._held:
            self._back_off.observe(*earlier)
        self._held.clear()
        self._back_off.observe(step, metrics)

    def hold(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what a step measured until more is observed: read early, it would change rounds that are to come."""
        self._held.append((step, {name: metrics[name] for name in self._back_off.READS if name in metrics}))

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """Measurements of the rounds begun since the last flush, as (step, metrics)."""
        measured, self._measured = self._measured, []
        return measured

    def state_dict(self, step: int) -> dict[str, Any]:
        """What it takes to go on at `step` with the same batches, beside the snapshots in the store."""
        held = [[step, metrics] for step, metrics in self._held]
        return {
            "sampler": self._sampler.state_dict(step),
            "back_off": self._back_off.state_dict(),
            "held": held,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; all ranks call it.

        Raises:
            ConfigError: If that run had other batches than this one's settings ask for.
        """
        self._back_off.load_state_dict(state["back_off"])
        self._held = [(int(step), dict(metrics)) for step, metrics in state.get("held", [])]
        kept = state["sampler"]
        self._sampler.load_state_dict(kept)
        self._begun = int(kept["round"]) - 1
        if kept["hardness"] is not None:  # the round had begun
            self._hold(int(kept["snapshot_version"]))
            self._begun += 1
            self._sampler.begin_round(self._begun, self._snapshot, float(kept["hardness"]))

    def prune(self, oldest_step: int) -> None:
        """Drop the snapshots and notes that no resumption from `oldest_step` on will ask for; rank 0 only."""
        first = self._sampler.round_of(oldest_step)
        noted = (self._store.swap_at(number) for number in range(first, self._begun + 1))
        self._store.prune({self.version, *(version for version in noted if version)}, before_round=first)

    def close(self) -> None:
        """Stop the source."""
        self._source.close()

    def _begin(self, number: int, step: int) -> None:
        version = self._agreed(number, step)
        swapped = version != self.version
        self._hold(version)
        self._sampler.begin_round(number, self._snapshot, self._back_off.level)
        self._begun = number
        first = number * self._sampler.config.round_steps
        hard, random = (
            np.searchsorted(self._train_rows, plan.batch(first)) for plan in (self._sampler, self._random)
        )
        measured, embedded = self._probe.compare(hard, random)
        for places, embeddings in embedded:
            self._source.push(step, places, embeddings)
        stale = self._source.stale_rows()
        if len(stale):
            self._source.push(step, stale, self._embed(stale))
        self._measured.append((first, self._metrics(number, first, swapped) | measured))

    def _agreed(self, number: int, step: int) -> int:
        """The version that a round is planned from: the noted one, else the newest that every rank holds."""

        def noted() -> int:
            found = self._store.swap_at(number)
            return -1 if found is None else found

        unread = InputError("rank 0 could not read which snapshot the round was planned from")
        version = self._from_main(noted, unread)
        if version >= 0:
            return version
        self._source.push_weights(step, self._weights)
        version = int(self._replica.min(self._source.newest(), self._device))
        if version > self.version:
            held = self._source.snapshot(version) is not None
            version = version if self._replica.min(held, self._device) else self.version
        else:
            version = self.version
        return self._noted(number, version)

    def _noted(self, number: int, version: int) -> int:
        def note() -> int:
            self._store.note_swap(number, version)
            return version

        return self._from_main(note, ResourceError("rank 0 could not note the round's snapshot"))

    def _from_main(self, act: Callable[[], int], otherwise: UserError) -> int:
        """The number that rank 0 gets, on all ranks; where it cannot, all of them raise, `otherwise` on the others."""
        number, failure = 0, None
        if self._replica.is_main:
            try:
                number = act()
            except UserError as error:
                failure = error
        number = int(self._replica.broadcast(_FAILED if failure else number, self._device))
        if number == _FAILED:
            raise failure or otherwise
        return number

    def _hold(self, version: int) -> None:
        """Have that snapshot at hand on all ranks, or on none of them."""
        if version == self.version:
            return
        found = self._source.snapshot(version) if version else None
        if version and found is None:
            try:
                found = self._store.load(version)
            except UserError as error:
                log.warning(
                    "snapshot %d of the index is lost, so batches are random for now: %s", version, error
                )
        everywhere = self._replica.min(found is not None, self._device)
        self._snapshot = found if everywhere else None

    def _metrics(self, number: int, first: int, swapped: bool) -> dict[str, float]:
        known = self._source.metrics()
        counts = torch.tensor(
            [known.get(name, 0.0) for name in _SUMMED], dtype=torch.float64, device=self._device
        )
        metrics = known | dict(zip(_SUMMED, self._replica.sum_(counts).tolist(), strict=True))
        metrics |= self._sampler.round_metrics(number)
        metrics |= {"index/version": float(self.version), "index/swapped": float(swapped)}
        metrics["hard/back_off_level"] = self._back_off.level
        if self._snapshot is not None:
            age = float(first - self._snapshot.step)
            metrics |= {
                "index/snapshot_age_steps": age,
                "index/staleness_p50_steps": age + float(self._snapshot.staleness[1]),
                "index/staleness_max_steps": age + float(self._snapshot.staleness[-1]),
                "index/build_seconds": self._snapshot.seconds,
            }
        return metrics


_SUMMED = ("index/pushed", "index/dropped_pushes", "index/wait_seconds")
"""Counts of single ranks, logged as sums."""
