"""N-way K-shot episodes: is a query put to its class by a few examples of each of N classes?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.distance_grid import as_anchors, on_grid
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.functional.counter_random import uniform

Method = Literal["nearest", "prototype"]
"""The class of the nearest example, or of the nearest mean of a class's examples."""

_GROUP, _WAYS, _ORDER_OF_WAYS, _ROWS, _ORDER_OF_ROWS = range(5)  # streams of random numbers


@dataclass(frozen=True)
class EpisodeMetrics:
    """How often queries of episodes get their class.

    Attributes:
        accuracy: mean over episodes, 0..1.
        interval: 95 % confidence interval of it: 1.96 standard errors of the mean over episodes to either side.
        std: standard deviation over episodes.
        ways: classes of an episode.
        shots: examples of a class.
        queries: queries of a class.
        episodes: how many there were.
    """

    accuracy: float
    interval: tuple[float, float]
    std: float
    ways: int
    shots: int
    queries: int
    episodes: int

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The interval by the name its mean has in `to_dict`."""
        return {"accuracy": self.interval}

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats: `accuracy`, `accuracy_std`, `ways`, `shots`, `queries`, `num_episodes`."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.std,
            "ways": float(self.ways),
            "shots": float(self.shots),
            "queries": float(self.queries),
            "num_episodes": float(self.episodes),
        }


@dataclass(frozen=True, eq=False)
class _Pool:
    """Classes of enough rows, and their rows.

    Attributes:
        rows: (N,) int64 rows ordered by class.
        starts: (C,) int64 where the rows of a class begin.
        sizes: (C,) int64 how many there are.
        classes: (C,) int64 classes ordered by group.
        group_starts: (G,) int64 where the classes of a group begin.
        group_sizes: (G,) int64 how many there are, as many as ways or more.
    """

    rows: Tensor
    starts: Tensor
    sizes: Tensor
    classes: Tensor
    group_starts: Tensor
    group_sizes: Tensor


@torch.no_grad()
def evaluate_episodes(
    embeddings: Array,
    labels: Array,
    *,
    ways: int = 20,
    shots: int = 1,
    queries: int = 1,
    episodes: int = 1000,
    seed: int = 0,
    groups: Array | None = None,
    method: Method = "nearest",
    block_bytes: int = BLOCK_BYTES,
) -> EpisodeMetrics:
    """Classify queries among `ways` classes by `shots` examples of each, in many small tasks.

    An episode draws a group, `ways` of its classes, and `shots` + `queries` rows of each, all without replacement and
    with equal probability among the groups of enough classes, and the classes of enough rows. Its accuracy is the
    fraction of its `ways` x `queries` queries whose nearest example (or mean of a class's examples) is of their class.

    Args:
        embeddings: (N, D) real numbers.
        labels: (N,) integer classes.
        ways: classes of an episode, at least 2.
        shots: examples of a class, at least 1.
        queries: queries of a class, at least 1.
        episodes: how many to draw, at least 1.
        seed: key of the draws; an episode's do not depend on how many others there are.
        groups: (N,) integers, the same for all rows of a class: all classes of an episode are of one group (Omniglot:
            of one alphabet). None for a single group.
        method: "nearest" or "prototype".
        block_bytes: memory for a block of episodes, in bytes.

    Returns:
        The metrics, the same for any block size, number of threads and device.

    Raises:
        InputError: when embeddings are not finite or not (N, D), a class is in two groups, no group has enough classes
            of enough rows, or a setting is out of range.

    Cost: episodes x (ways^2 x shots x queries) x D multiplications in float64; `block_bytes` and N x (D + 2) float64
    values.

    At equal distances the class that was drawn first wins, which is by lot: a collapsed model is right once in `ways`
    times. Distances are those of rows rounded by `on_grid`.

    Source: Lake, Salakhutdinov and Tenenbaum, Science 2015 (20-way one-shot within alphabets); Snell, Swersky and
    Zemel, Prototypical networks, NeurIPS 2017.
    """
    for name, value, least in (
        ("ways", ways, 2),
        ("shots", shots, 1),
        ("queries", queries, 1),
        ("episodes", episodes, 1),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, got {method}")
    rows = as_embeddings(embeddings)
    classes = as_labels(labels, rows)
    pool = _pool(
        classes, None if groups is None else as_labels(groups, rows, "groups"), ways, shots + queries
    )
    points = on_grid(rows).points
    right = torch.empty(episodes, dtype=torch.int64, device=points.device)
    # Rows of an episode in two forms, and all distances of queries to examples.
    size = 8 * ways * (2 * (shots + queries) * points.shape[1] + 3 * ways * shots * queries)
    for block in torch.split(torch.arange(episodes, device=points.device), max(1, block_bytes // size)):
        drawn = points[_drawn_rows(pool, block, ways, shots + queries, seed)]
        right[block] = _right_answers(drawn, shots, method)
    return _metrics(right, ways, shots, queries)


def _pool(classes: Tensor, groups: Tensor | None, ways: int, count: int) -> _Pool:
    names, numbers, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
    order = numbers.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    group_of = torch.zeros_like(names) if groups is None else groups[order[starts]]
    if groups is not None and not torch.equal(group_of[numbers], groups):
        first = int((group_of[numbers] != groups).nonzero()[0])
        raise InputError(f"class {int(classes[first])} is in two groups; give all of its rows the same one")
    enough = (sizes >= count).nonzero().squeeze(1)
    members = enough[group_of[enough].argsort(stable=True)]
    _, group_sizes = torch.unique(group_of[members], return_counts=True)
    group_starts = group_sizes.cumsum(0) - group_sizes
    large = group_sizes >= ways
    if not bool(large.any()):
        most = int(group_sizes.max()) if len(group_sizes) else 0
        where = "" if groups is None else " in a group"
        raise InputError(
            f"episodes of {ways} ways need as many classes of {count} rows or more{where}, but there are at most "
            f"{most}; take fewer ways, shots or queries"
        )
    return _Pool(order, starts, sizes, members, group_starts[large], group_sizes[large])


def _drawn_rows(pool: _Pool, episodes: Tensor, ways: int, count: int, seed: int) -> Tensor:
    """(E, ways, count) rows of some episodes, those of a class in random order."""
    lots = uniform(seed, _GROUP, episodes, 1)
    group = (lots.squeeze(1) * len(pool.group_sizes)).long()
    places = _without_replacement(uniform(seed, _WAYS, episodes, ways), pool.group_sizes[group])
    places = _shuffled(places, uniform(seed, _ORDER_OF_WAYS, episodes, ways))
    chosen = pool.classes[pool.group_starts[group].unsqueeze(1) + places].flatten()
    slots = (episodes.unsqueeze(1) * ways + torch.arange(ways, device=episodes.device)).flatten()
    places = _without_replacement(uniform(seed, _ROWS, slots, count), pool.sizes[chosen])
    places = _shuffled(places, uniform(seed, _ORDER_OF_ROWS, slots, count))
    rows = pool.rows[pool.starts[chosen].unsqueeze(1) + places]
    return rows.view(len(episodes), ways, count)


def _without_replacement(lots: Tensor, sizes: Tensor) -> Tensor:
    """(B, m) different whole numbers below each of (B,) sizes, every set of m as probable as any other.

    Source: Floyd's algorithm (Bentley and Floyd, A sample of brilliance, 1987).
    """
    count = lots.shape[1]
    chosen = torch.full(lots.shape, -1, dtype=torch.int64, device=lots.device)
    for number in range(count):
        last = sizes - count + number
        place = (lots[:, number] * (last + 1)).long()
        taken = (chosen == place.unsqueeze(1)).any(dim=1)
        chosen[:, number] = torch.where(taken, last, place)
    return chosen


def _shuffled(places: Tensor, lots: Tensor) -> Tensor:
    return places.gather(1, lots.argsort(dim=1, stable=True))


def _right_answers(drawn: Tensor, shots: int, method: Method) -> Tensor:
    """(E,) right answers of episodes of points (E, ways, shots + queries, D + 2)."""
    ways = drawn.shape[1]
    examples, queries = drawn[:, :, :shots], drawn[:, :, shots:]
    if method == "prototype":
        examples = (examples.sum(dim=2, keepdim=True) / shots).round_()
        examples[..., -2] = 1.0
        examples[..., -1] = examples[..., :-2].square().sum(dim=-1)
    squared = as_anchors(queries.flatten(1, 2)) @ examples.flatten(1, 2).mT
    by_class = squared.view(*squared.shape[:2], ways, -1)
    truth = torch.arange(ways, device=drawn.device).repeat_interleave(queries.shape[2])
    right: Tensor = by_class.amin(dim=3).argmin(dim=2) == truth
    return right.sum(dim=1)


def _metrics(right: Tensor, ways: int, shots: int, queries: int) -> EpisodeMetrics:
    episodes, answers = len(right), ways * queries
    # Sums of whole numbers, so that the order of the episodes does not matter.
    total, squares = int(right.sum()), int(right.square().sum())
    variance = (episodes * squares - total**2) / (episodes * (episodes - 1)) if episodes > 1 else 0.0
    accuracy, std = total / (episodes * answers), math.sqrt(variance) / answers
    half = 1.96 * std / math.sqrt(episodes)
    interval = (max(0.0, accuracy - half), min(1.0, accuracy + half))
    return EpisodeMetrics(accuracy, interval, std, ways, shots, queries, episodes)
