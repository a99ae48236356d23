"""Hard batches: classes together with their nearest classes, as a snapshot of the whole training set knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.errors import ConfigError
from distmetric.functional.checks import check_at_least, check_choice
from distmetric.functional.dial import Setting, ends, value_at
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.samplers.back_off import BackOffConfig
from distmetric.samplers.batch_sampler import Rows, check_same_settings
from distmetric.samplers.least_visited import LeastVisited
from distmetric.samplers.neighbor_batches import BatchPlanner, Hardness, PlannedBatch
from distmetric.samplers.neighborhoods import ClassNeighborhood, Neighborhood, RowNeighborhood
from distmetric.samplers.reading_order import ORDER, ClassRows

# What the settings that may follow the steps may be.
_BOUNDS = {
    "hard_fraction": (0.0, 1.0),
    "skip": (0.0, math.inf),
    "width": (1.0, math.inf),
    "temperature": (0.0, math.inf),
}
# Settings that the plan does not depend on.
_OUTSIDE = ("margin", "back_off")


@dataclass(kw_only=True, frozen=True)
class HardNeighborSamplerConfig:
    """Settings of `HardNeighborSampler`."""

    name: Literal["hard_neighbors"] = "hard_neighbors"
    classes_per_batch: int = 64
    """P: how many classes meet in one global batch."""
    samples_per_class: int = 4
    """K: how many rows of each class; at least 2, so that there are positives."""
    mode: Literal["class", "sample"] = "class"
    """What neighbors are: the classes nearest to a class (class), or the classes of the rows nearest to one of its
    rows, with these rows and the farthest positives of that one (sample)."""
    round_steps: int = 10
    """Steps that are planned at once, from one snapshot."""
    hard_fraction: Setting = 0.5
    """Share of the groups of a batch that are a class with its neighbors; the others are random classes. It can follow
    the steps, like skip, width and temperature: {start: 0, end: 0.5, end_step: 5000}, also with begin_step and shape:
    linear or cosine."""
    mates: int = 3
    """Neighbors that join a class in a hard group; as many random classes do in the others."""
    skip: Setting = 0.0
    """How many of the nearest neighbors are passed over."""
    width: Setting = 10.0
    """How many neighbors the window after that has, from which mates are drawn."""
    temperature: Setting = math.inf
    """How many ranks make a neighbor e times less likely to be drawn; 0 takes the nearest of the window, infinity (inf;
    .inf in YAML) any of it with equal probability."""
    guard: float = 0.2
    """How near, in root mean square radii, a neighbor is taken for a duplicate or a wrong label and does not join:
    between the centers of two classes (class), or between a row and a negative (sample); 0 lets all join."""
    warmup_steps: int = 100
    """Steps with random batches at the beginning."""
    max_lead: int = 2
    """Visits that a class may be ahead of the least visited one and still join as a neighbor; so the visits of any two
    classes never differ by more than max_lead + 1."""
    margin: float = 0.0
    """How much farther than its farthest positive an anchor's nearest negative has to be for the logged share of
    violating anchors not to count it; the batches do not depend on it."""
    back_off: BackOffConfig = field(default_factory=BackOffConfig)
    """When hard_fraction is reduced by itself."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_choice("mode", self.mode, ("class", "sample"))
        for name, (least, most) in _BOUNDS.items():
            for value in ends(getattr(self, name)):
                if not least <= value <= most:
                    limits = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
                    raise ValueError(f"{name}={value:g} is wrong: give a number {limits}")
        check_at_least(1, round_steps=self.round_steps, mates=self.mates)
        check_at_least(0, warmup_steps=self.warmup_steps, max_lead=self.max_lead)
        if not 0 <= self.guard < math.inf:
            raise ValueError(f"guard={self.guard} is wrong: give a number from 0 on")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin={self.margin} is wrong: give a finite number")
        if self.mates >= self.classes_per_batch:
            raise ValueError(
                f"mates={self.mates} and their seed are more than classes_per_batch={self.classes_per_batch}: "
                f"set mates={max(1, self.classes_per_batch - 1)} or less"
            )

    def hardness_at(self, step: int, multiplier: float) -> Hardness:
        """The dial at a step; its fraction is multiplied, and 0 in the warm-up."""
        fraction = 0.0 if step < self.warmup_steps else multiplier * value_at(self.hard_fraction, step)
        return Hardness(
            fraction=fraction,
            skip=_rank(value_at(self.skip, step)),
            width=_rank(value_at(self.width, step)),
            temperature=value_at(self.temperature, step),
        )


def _rank(value: float) -> int:
    return round(min(value, 2.0**31))


@dataclass(frozen=True)
class _Round:
    visits: NDArray[np.int32]  # before it
    snapshot_version: int
    hardness: float
    batches: list[PlannedBatch]
    metrics: dict[str, float]


class HardNeighborSampler:
    """Plan global batches of P classes x K rows in which classes meet their nearest classes, a round at a time.

    A batch is made of groups: hard ones, a class and up to `mates` of its neighbors in the snapshot, and random ones
    (`BatchPlanner` has the rule). Before the first snapshot, in the warm-up and for what no snapshot knows yet, all
    groups are random. Small classes, and which rows of a class come, are as with `PKSampler`. Only where
    mode="sample", the seed is a row, the first one that its class gives on this visit; the K rows of its class are it
    and its farthest positives, and those of a mate begin with the rows in the window, nearest first.

    The plan of a round is a pure function of (seed, round, visits before the round, snapshot, hardness). So it is the
    same on every rank, for any number of ranks, and after any interruption.

    Evenness: after every batch max v - min v <= max_lead + 1, where v counts the batches that a class was in. Let it
    be true before a batch, with m = min v, and let m' be the minimum after it; m <= m'. A mate had v <= m + max_lead,
    now it has no more than m' + max_lead + 1. A seed with v = u was taken when no class outside the batch had less
    than u; so in the end those outside have u or more, those inside m + 1 or more, and m' >= min(u, m + 1). Now the
    seed has u + 1, which is at most m' + 1 if u = m, and else at most m' + u - m, where u - m <= max_lead + 1 by
    assumption. No other class moved.

    Args:
        rows: (M,) int64 catalog rows to draw from; a snapshot's rows are places in this order.
        labels: (M,) int64 label of each of them; a snapshot's classes are these in ascending order.
        config: P, K and how hard.
        seed: Key of the plan.

    Raises:
        ConfigError: If no batch of P K rows can be formed, naming the setting to change.

    Cost: a round of R steps takes O(C + R P (w log w + log C)) for windows of w, and in mode="sample" with lists of k
    rows O(k) more for each hard group; a batch O(P n) for classes of n rows. Memory: O(M + C).
    """

    def __init__(self, rows: Rows, labels: Rows, config: HardNeighborSamplerConfig, seed: int) -> None:
        self.config = config
        self._rows = ClassRows(rows, labels, config.samples_per_class, seed)
        self._rows.check_batch(config.classes_per_batch)
        self._classes = self._rows.classes() if config.mode == "sample" else None
        self._visits = np.zeros(self._rows.num_classes, dtype=np.int32)
        self._next_round = 0
        # Replaced and never changed: another thread may be reading it.
        self._rounds: dict[int, _Round] = {}

    @property
    def batch_size(self) -> int:
        """Rows of a global batch, P K."""
        return self.config.classes_per_batch * self.config.samples_per_class

    def round_of(self, step: int) -> int:
        """The round that a step belongs to."""
        return step // self.config.round_steps

    def begin_round(self, round: int, snapshot: NeighborSnapshot | None, hardness: float = 1.0) -> None:
        """Plan the steps of the next round; the round before stays readable, in other threads too.

        Args:
            round: One more than the round begun last, or the round of the state that was loaded.
            snapshot: What is known of neighbors; None: nothing, all batches are random.
            hardness: What hard_fraction is multiplied by, 0..1.

        Raises:
            ValueError: If it is another round's turn, or the snapshot is one of other data.
        """
        if round != self._next_round:
            raise ValueError(f"round {round} cannot begin: it is the turn of round {self._next_round}")
        if not 0 <= hardness <= 1:
            raise ValueError(f"hardness={hardness} is wrong: 0 <= hardness <= 1")
        neighborhood = None if snapshot is None else self._neighborhood(snapshot)
        before, after = self._visits, self._visits.copy()
        order = self._rows.generator(round).permutation(self._rows.num_classes)
        queue = LeastVisited(after, order)
        planner = BatchPlanner(
            self._rows, queue, neighborhood, self.batch_size, self.config.mates, self.config.max_lead
        )
        steps = range(round * self.config.round_steps, (round + 1) * self.config.round_steps)
        batches = [planner.plan(step, self.config.hardness_at(step, hardness)) for step in steps]
        version = 0 if snapshot is None else snapshot.version
        metrics = planner.tally.metrics() | {
            "hard/snapshot_version": float(version),
            "hard/visits_spread": float(after.max() - after.min()),
        }
        kept = {key: each for key, each in self._rounds.items() if key == round - 1}
        self._rounds = {**kept, round: _Round(before, version, hardness, batches, metrics)}
        self._visits, self._next_round = after, round + 1

    def is_planned(self, step: int) -> bool:
        """See `BatchSampler.is_planned`: whether its round has begun."""
        return self.round_of(step) in self._rounds

    def batch(self, step: int) -> Rows:
        """Catalog rows of the global batch of a step, grouped by class; equal on all ranks.

        Raises:
            ValueError: If its round is neither the one begun last nor the one before.
        """
        planned = self._round(self.round_of(step)).batches[step % self.config.round_steps]
        return planned.rows(self._rows, self.batch_size)

    def round_metrics(self, round: int) -> dict[str, float]:
        """What became of the hardness that was asked for.

        Returns:
            `hard/fraction`: hard groups of all groups, as asked for on the average of the round's steps.
            `hard/mates_fraction`: share of the classes of its batches that came as neighbors of another.
            `hard/mates_per_group`: neighbors in a hard group, if there are any such groups.
            `hard/mean_neighbor_rank`: of these neighbors in the list of their seed, 0 for the nearest.
            `hard/guarded`, `hard/ineligible`: entries of the windows that the guard dropped, and entries that were too
            far ahead in visits.
            `hard/visits_spread`: most visits of a class less the fewest, after the round.
            `hard/snapshot_version`: 0 for none.

        Raises:
            ValueError: If it is neither the round begun last nor the one before.
        """
        return dict(self._round(round).metrics)

    def state_dict(self, step: int) -> dict[str, Any]:
        """What it takes to go on with a step of a round that has begun, or with the first of the next round.

        Returns:
            Settings and seed; `round` of the step; `visits` before that round, (C,) int32; its `snapshot_version`, 0
            for none, and `hardness`, both None if the round has not begun.

        Raises:
            ValueError: If the step's round is too long ago, or more than one ahead.
        """
        round = self.round_of(step)
        if round == self._next_round:
            begun, visits = None, self._visits
        else:
            begun = self._round(round)
            visits = begun.visits
        return {
            **self._settings(),
            "seed": self._rows.seed,
            "round": round,
            "visits": torch.from_numpy(visits.copy()),
            "snapshot_version": None if begun is None else begun.snapshot_version,
            "hardness": None if begun is None else begun.hardness,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue another sampler's plan: `begin_round` with the state's round, snapshot and hardness comes next.

        Raises:
            ConfigError: If that plan had other settings, or another number of classes.
        """
        check_same_settings(self._settings(), state)
        visits: NDArray[np.int32] = state["visits"].numpy().astype(np.int32)
        if len(visits) != len(self._visits):
            raise ConfigError(
                f"the training split has {len(self._visits)} classes but the checkpoint's had {len(visits)}: "
                "set data.train_split as it was or start a new run"
            )
        self._rows.seed = int(state["seed"])
        self._visits, self._next_round, self._rounds = visits, int(state["round"]), {}

    def _settings(self) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self.config).items() if key not in _OUTSIDE}
        return settings | {"order": ORDER}

    def _round(self, round: int) -> _Round:
        rounds = self._rounds
        if round not in rounds:
            known = ", ".join(map(str, rounds)) or "none"
            raise ValueError(f"round {round} is not planned: those that are: {known}")
        return rounds[round]

    def _neighborhood(self, snapshot: NeighborSnapshot) -> Neighborhood:
        if snapshot.num_classes != self._rows.num_classes:
            raise ValueError(
                f"the snapshot has {snapshot.num_classes} classes, the sampler {self._rows.num_classes}"
            )
        if self._classes is None:
            return ClassNeighborhood(snapshot, self.config.guard)
        if len(snapshot.row_negatives) != len(self._classes):
            raise ValueError(
                f"the snapshot lists neighbors of {len(snapshot.row_negatives)} rows, "
                f"the sampler has {len(self._classes)}"
            )
        return RowNeighborhood(snapshot, self.config.guard, self._rows, self._classes)
