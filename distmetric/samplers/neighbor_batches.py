"""Batches of classes that are hard to tell apart, and of random ones, so that all are met equally often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from distmetric.samplers.least_visited import LeastVisited
from distmetric.samplers.neighborhoods import Neighborhood, Neighbors, Places
from distmetric.samplers.reading_order import ClassRows, Rows

# Numbers drawn for a step rather than for a round: the order of the classes has purpose 0.
_STEP = 1


@dataclass(frozen=True, kw_only=True)
class Hardness:
    """How hard the batch of a step is meant to be; the fields are those of `HardNeighborSamplerConfig`."""

    fraction: float
    skip: int
    width: int
    temperature: float


@dataclass(frozen=True)
class PlannedBatch:
    """A global batch before its rows are looked up.

    Args:
        classes: In the order in which they came; the last may be cut short.
        visits: How often each was met before.
        first_rows: Class -> places of the rows that it has to give.
    """

    classes: list[int]
    visits: list[int]
    first_rows: Mapping[int, Places]

    def rows(self, rows: ClassRows, size: int) -> Rows:
        """(size,) catalog rows: of each class those it has to give, then the next ones in reading order, K in all."""
        chosen = []
        read = rows.places(self.classes, self.visits)
        ends = np.cumsum(rows.gives[self.classes])[:-1]
        for label, places in zip(self.classes, np.split(read, ends), strict=True):
            if (first := self.first_rows.get(label)) is not None:
                others = places[~np.isin(places, first)]
                places = np.concatenate([first, others])[: len(places)]
            chosen.append(places)
        return rows.catalog_rows[np.concatenate(chosen)[:size]]


@dataclass
class Tally:
    """What became of the hardness that was asked for, summed over the steps of a round."""

    steps: int = 0
    fraction: float = 0.0
    classes: int = 0
    hard_groups: int = 0
    mates: int = 0
    rank_sum: int = 0
    guarded: int = 0
    ineligible: int = 0

    def metrics(self) -> dict[str, float]:
        """By name; what has no value is left out."""
        metrics = {
            "hard/fraction": self.fraction / self.steps,
            "hard/mates_fraction": self.mates / self.classes,
            "hard/guarded": float(self.guarded),
            "hard/ineligible": float(self.ineligible),
        }
        if self.hard_groups:
            metrics["hard/mates_per_group"] = self.mates / self.hard_groups
        if self.mates:
            metrics["hard/mean_neighbor_rank"] = self.rank_sum / self.mates
        return metrics


@dataclass
class BatchPlanner:
    """Plans the batches of a round, one after the other.

    A batch is filled group by group. A group begins with the least visited class that is not in the batch (ties in the
    round's random order). In a random group the `mates` next ones follow. In a hard group the seed's neighbors follow,
    `mates` of them at most, of its ranks skip .. skip + width - 1: those that the guard lets through, that are not in
    the batch, and that were visited at most `max_lead` times more than the least visited class. If there are fewer, the
    group is smaller. Of i groups floor(u + i fraction) are hard, with a u in [0, 1) drawn for the step. The
    batch is full when its classes give P K rows; the last may be cut short.

    Which neighbors: without replacement, the next one always with p(rank r) ~ exp(-r / temperature) among those left.

    Args:
        rows: Rows of the classes, K at a visit.
        queue: All classes, least visited first.
        neighborhood: Lists of neighbors; None where there are none yet.
        batch_size: P K.
        mates: Classes that join a seed.
        max_lead: Visits that a mate may be ahead of the least visited class.

    Cost of a batch: O(P (width log width + log C)), a few numpy calls for each hard group.
    """

    rows: ClassRows
    queue: LeastVisited
    neighborhood: Neighborhood | None
    batch_size: int
    mates: int
    max_lead: int
    tally: Tally = field(default_factory=Tally)
    _missing: int = field(default=0, init=False)

    def plan(self, step: int, hardness: Hardness) -> PlannedBatch:
        """The batch of the next step."""
        most_visits = self.queue.open_batch() + self.max_lead
        draws = self.rows.generator(step, _STEP)
        offset = float(draws.random())
        fraction = hardness.fraction if self.neighborhood is not None else 0.0
        self._missing = self.batch_size
        first_rows: dict[int, Places] = {}
        for group in count():
            if self._missing <= 0:
                break
            seed = self._take()
            rises = math.floor(offset + (group + 1) * fraction) > math.floor(offset + group * fraction)
            if rises and self.neighborhood is not None:
                first_rows |= self._add_neighbors(self.neighborhood, seed, most_visits, hardness, draws)
            else:
                for _ in range(self.mates):
                    if self._missing > 0:
                        self._take()
        members = self.queue.members
        planned = PlannedBatch(members, self.queue.visits[members].tolist(), first_rows)
        self.queue.close_batch()
        self.tally.steps += 1
        self.tally.fraction += fraction
        self.tally.classes += len(members)
        return planned

    def _take(self) -> int:
        label = self.queue.take()
        self._missing -= int(self.rows.gives[label])
        return label

    def _add_neighbors(
        self,
        neighborhood: Neighborhood,
        seed: int,
        most_visits: int,
        hardness: Hardness,
        draws: np.random.Generator,
    ) -> dict[int, Places]:
        """Let neighbors of the seed join; the rows that seed and neighbors have to give."""
        visit = int(self.queue.visits[seed])
        near = neighborhood.neighbors(seed, visit, hardness.skip, hardness.width)
        visited = self.queue.visits[near.classes] > most_visits
        free = ~visited & ~self.queue.is_in_batch(near.classes)
        first_rows = {seed: neighborhood.first_rows(seed, visit)}
        self.tally.hard_groups += 1
        self.tally.guarded += near.guarded
        self.tally.ineligible += int(visited.sum())
        joined: set[int] = set()
        for place in _drawn_order(near, hardness.temperature, draws).tolist():
            label = int(near.classes[place])
            if self._missing <= 0 or len(joined) == self.mates:
                break
            if not free[place] or label in joined:
                continue
            joined.add(label)
            self.queue.join(label)
            self._missing -= int(self.rows.gives[label])
            self.tally.rank_sum += int(near.ranks[place])
            if near.places is not None:
                first_rows[label] = near.places[near.classes == label][: self.rows.per_visit]
        self.tally.mates += len(joined)
        return first_rows


def _drawn_order(near: Neighbors, temperature: float, draws: np.random.Generator) -> NDArray[np.int64]:
    """Draw without replacement, p ~ exp(-rank / temperature): sort by Gumbel noise - rank / temperature."""
    noise = draws.gumbel(size=len(near.ranks))
    keys = noise if temperature == math.inf else temperature * noise - near.ranks
    return np.argsort(-keys, kind="stable")
