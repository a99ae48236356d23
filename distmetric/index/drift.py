"""Mining in embeddings that have moved since they were stored: what stays certain, and exact answers all the same.

Stored rows y^, current ones y, |y - y^| <= delta_c for all rows of class c. Every bound on stored rows then holds for
current ones with delta_c more room. Distances here are euclidean, for cosine those of rows of length one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_embeddings, as_tensor
from distmetric.functional.distances import pair_chunks
from distmetric.functional.segments import segment_extreme
from distmetric.index.ball_search import BlockSearch, Wanted
from distmetric.index.batch import Batch, squared_distances
from distmetric.index.class_balls import MARGIN
from distmetric.index.pruned_search import ClassBallIndex, Mined, Queries, to_length_one
from distmetric.index.shortlist import Shortlist

Embed = Callable[[Tensor], Array]
"""Rows (n,) int64 of the index, each at most once, to their current embeddings (n, D)."""

PAIRS_PER_BLOCK = 1 << 25
"""Queries times rows that are searched at once; a drift that rules nothing out makes candidates of all of them."""


@dataclass(frozen=True, eq=False)
class StaleMined:
    """Exact answers about the stored rows, and what they are worth now.

    Attributes:
        mined: The answers.
        excess: (Q, k) float64 how much farther the i-th answer may now be than what is now the i-th nearest, at most;
            0 where there is no answer.
    """

    mined: Mined
    excess: Tensor


@dataclass(frozen=True, eq=False)
class CurrentMined:
    """Exact answers about current rows.

    Attributes:
        rows: (Q, k) int64, nearest first, ties by row; -1 where there are no more.
        distances: (Q, k) float64 in the index's metric; inf where there are no more.
        embedded: How many rows were embedded for them, each once.
        violations: How many of these had moved farther than their class was said to; above 0 the answers, too, are
            only as good as the drift that was given.
    """

    rows: Tensor
    distances: Tensor
    embedded: int
    violations: int


class DriftingIndex:
    """Hardest negatives among rows that have moved since they were indexed, by no more than a given drift.

    Args:
        index: The stored rows.
        drift: (C,) float64 largest distance that a row of each class may have moved, classes as in
            `index.statistics.labels`; see `measured_drift`.

    Raises:
        InputError: If a drift is negative or not finite, or there is not one for each class.
    """

    def __init__(self, index: ClassBallIndex, drift: Array) -> None:
        self._index = index
        self._drift = as_tensor(drift).to(index.rows.device, torch.float64)
        if self._drift.shape != index.statistics.labels.shape:
            raise InputError(f"drift must be one number for each of {len(index.statistics.labels)} classes")
        if not bool(((self._drift >= 0) & (self._drift < torch.inf)).all()):
            raise InputError("drift must be finite and not negative")

    def k_hardest_negatives(self, queries: Queries, k: int = 1, *, query_drift: float = 0.0) -> StaleMined:
        """The k nearest stored rows of other classes: exact on the snapshot, with a guarantee for now.

        excess_i = delta_(class of i) + max_c delta_c + 2 query_drift, c over the other classes

        Args:
            queries: Q of them.
            k: At least 1.
            query_drift: How far the queries themselves may have moved; 0 if they are fresh.

        Returns:
            The answers and their guarantee: at most twice the largest drift for fresh queries.
        """
        index, drift = self._index, self._drift
        mined = index.k_hardest_negatives(queries, k)
        batch = index.prepare(queries)
        others = _largest_of_others(drift, batch.classes)
        there = mined.rows >= 0
        own = drift[index.layout.class_of_row[mined.rows.clamp_min(0)]]
        excess = torch.where(there, own + others[:, None] + 2 * query_drift, 0.0)
        return StaleMined(mined, excess)

    @torch.no_grad()
    def k_hardest_negatives_now(self, queries: Queries, embed: Embed, k: int = 1) -> CurrentMined:
        """The k nearest current rows of other classes, embedding only rows that can be among them.

        The k nearest stored rows are embedded first; the k-th of their current distances is tau. A row can be nearer
        only if its class has LB - delta_c <= tau, and its stored distance less delta_c is at most tau.

        Args:
            queries: Fresh embeddings, Q of them.
            embed: Gives current embeddings of rows.
            k: At least 1.

        Returns:
            What brute force over current embeddings of all rows finds, in the same arithmetic.

        Raises:
            InputError: If what was embedded is not finite or has another shape.
        """
        index = self._index
        batch = index.prepare(queries)
        winners = index.k_hardest_negatives(queries, k).rows
        current = _Current(index, embed, self._drift)
        rows = torch.full((len(batch), k), -1, dtype=torch.int64, device=index.rows.device)
        squares = torch.full(rows.shape, torch.inf, dtype=torch.float64, device=rows.device)
        size = min(1024, max(16, PAIRS_PER_BLOCK // len(index)))
        for start in range(0, len(batch), size):
            block = torch.arange(start, min(start + size, len(batch)), device=rows.device)
            part = batch.only(block)
            query, place = (winners[block] >= 0).nonzero(as_tuple=True)
            _, found = current.nearest(part, query, winners[block][query, place], k)
            tau = found[:, -1].sqrt() * (1 + MARGIN)
            rows[block], squares[block] = current.nearest(part, *self._candidates(part, tau), k)
        return CurrentMined(rows, index.from_squares(squares), current.embedded, current.violations)

    def _candidates(self, batch: Batch, tau: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) queries and (P,) rows whose current distance may be within (q,) tau."""
        layout = self._index.layout
        drift = (self._drift * (1 + MARGIN)) / layout.scale + MARGIN
        reach = tau / layout.scale
        search = BlockSearch(layout, batch, Wanted(len(layout.order)))
        query, position, lower = search.everything_within((reach + drift.max()).square())
        stored = lower.clamp_min(0.0).sqrt_() * (1 - MARGIN)
        near = stored - drift[layout.class_of_position[position]] <= reach[query]
        return query[near], layout.order[position[near]]


class _Current:
    """Current embeddings of those rows that were asked for."""

    def __init__(self, index: ClassBallIndex, embed: Embed, drift: Tensor) -> None:
        self._index, self._embed, self._drift = index, embed, drift
        self._vectors = index.rows[:0]
        self._place = torch.full((len(index),), -1, dtype=torch.int64, device=index.rows.device)
        self.violations = 0

    @property
    def embedded(self) -> int:
        return len(self._vectors)

    def nearest(self, batch: Batch, query: Tensor, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(q, k) the nearest of listed rows as they are now, and their squared distances."""
        self._fetch(row)

        def exact(query: Tensor, row: Tensor) -> Tensor:
            squares = torch.empty(len(query), dtype=torch.float64, device=query.device)
            for part in pair_chunks(len(query), batch.points):
                now = self._vectors[self._place[row[part]]]
                squares[part] = squared_distances(batch.points[query[part]], now)
            return squares

        limit = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=query.device)
        listed = Shortlist(limit, k, exact, torch.arange(len(self._place), device=query.device))
        keys = exact(query, row)
        listed.add(query, row, keys, keys)
        return listed.settle()

    def _fetch(self, row: Tensor) -> None:
        index = self._index
        missing = torch.unique(row[self._place[row] < 0])
        if len(missing) == 0:
            return
        fresh = as_embeddings(self._embed(missing), "current embeddings").to(index.rows.device)
        if fresh.shape != (len(missing), index.rows.shape[1]):
            raise InputError(
                f"current embeddings must have shape {(len(missing), index.rows.shape[1])}, got {tuple(fresh.shape)}"
            )
        if index.metric == "cosine":
            fresh = to_length_one(fresh, "current embeddings")
        moved = squared_distances(fresh, index.rows[missing]).sqrt_()
        allowed = self._drift[index.layout.class_of_row[missing]] * (1 + MARGIN) + MARGIN * index.layout.scale
        self.violations += int((moved > allowed).sum())
        self._place[missing] = torch.arange(len(missing), device=row.device) + len(self._vectors)
        self._vectors = torch.cat(
            [self._vectors, fresh.to(torch.promote_types(fresh.dtype, index.rows.dtype))]
        )


def measured_drift(
    index: ClassBallIndex, rows: Array | Sequence[int], embeddings: Array, *, slack: float = 1.5
) -> Tensor:
    """Drift of every class, from rows that were embedded again, such as those of training batches.

    delta_c = slack max_{y in c} |y - y^| over its rows that were seen; over all that were, for a class without any

    Args:
        index: The stored rows y^.
        rows: (n,) int64 rows of it.
        embeddings: (n, D) their current embeddings y.
        slack: Allowance for rows that were not seen, at least 1: a maximum over some underestimates that over all.

    Returns:
        (C,) float64, classes as in `index.statistics.labels`; an estimate, which `CurrentMined.violations` checks.

    Raises:
        InputError: If nothing was seen, or embeddings do not fit.
    """
    seen = torch.as_tensor(rows, dtype=torch.int64, device=index.rows.device)
    fresh = as_embeddings(embeddings).to(index.rows.device)
    if len(seen) == 0 or fresh.shape != (len(seen), index.rows.shape[1]):
        raise InputError(f"{len(seen)} rows and embeddings of shape {tuple(fresh.shape)} measure no drift")
    if index.metric == "cosine":
        fresh = to_length_one(fresh, "embeddings")
    moved = squared_distances(fresh, index.rows[seen]).sqrt_()
    size = len(index.statistics.labels)
    drift = segment_extreme(moved, index.layout.class_of_row[seen], size, largest=True)
    return slack * torch.where(drift >= 0, drift, moved.max())


def _largest_of_others(drift: Tensor, classes: Tensor) -> Tensor:
    """(q,) largest drift of a class other than the query's own; 0 where there is none."""
    best = drift.topk(min(2, len(drift)))
    second = best.values[1] if len(drift) > 1 else torch.zeros_like(best.values[0])
    return torch.where(classes == best.indices[0], second, best.values[0])
