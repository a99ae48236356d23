"""What travels between the training processes and the actors of the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError

from distmetric.index.config import StreamIndexConfig, SweepIndexConfig
from distmetric.index.snapshot import NeighborSnapshot

Rows = NDArray[np.int64]
Labels = NDArray[np.int32]
ActorHandle = Any


@dataclass(frozen=True)
class IndexHandles:
    """The actors of a run's index, as every training process gets them.

    Args:
        config: Settings of the index.
        coordinator: Builds and publishes snapshots.
        holders: Those that hold embeddings, class c at `holders[c % len(holders)]`; a lone one is the coordinator.
        sweepers: Those that embed the training set, for index=sweep.
    """

    config: StreamIndexConfig | SweepIndexConfig
    coordinator: ActorHandle
    holders: tuple[ActorHandle, ...]
    sweepers: tuple[ActorHandle, ...] = ()

    @property
    def actors(self) -> tuple[ActorHandle, ...]:
        """All of them, once each."""
        shards = self.holders if len(self.holders) > 1 else ()
        return (self.coordinator, *shards, *self.sweepers)


@dataclass(frozen=True)
class Ack:
    """The answer to a push.

    Args:
        incarnation: Who answered: a restarted actor has another one.
        wanted: Whether more of this step is wanted; False where a sweep was given up.
        stale_rows: Places of rows to embed again.
    """

    incarnation: str
    wanted: bool
    stale_rows: Rows


@dataclass(frozen=True)
class News:
    """The answer to the question for a newer snapshot.

    Args:
        incarnation: Who answered.
        snapshot: The newest one, by value, so that it outlives the actor; None where there is no newer one.
        counts: What the actor counted since it was started.
        gauges: What holds now.
    """

    incarnation: str
    snapshot: NeighborSnapshot | None
    counts: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)


def by_holder(rows: Rows, labels: Labels | None, holders: int) -> Sequence[tuple[int, slice | Rows]]:
    """Which of a batch goes to which holder.

    Args:
        rows: (B,) places in the training split.
        labels: (M,) training labels by place; None where there is one holder.
        holders: S; class c is held by holder c % S.

    Returns:
        (holder, what of the batch), without holders that get nothing.
    """
    if labels is None or holders == 1:
        return [(0, slice(None))]
    holder = labels[rows] % holders
    return [(int(one), np.flatnonzero(holder == one)) for one in np.unique(holder)]


def in_one_line(error: BaseException) -> str:
    """Type and message of an error, or of the one that an actor's error wraps, short enough for a log line."""
    if isinstance(error, ActorUnavailableError):
        return "it was killed or cannot be reached"  # Ray's text has nothing more that could be acted on
    cause = getattr(error, "cause", None) or error
    line = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return (
        line if len(line) <= 300 else f"{line[:140]} ... {line[-150:]}"
    )  # the reason often stands at the end
