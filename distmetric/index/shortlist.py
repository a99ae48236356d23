"""The best rows of many queries, from candidates that come with bounds and are settled exactly in the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CAPACITY = 1 << 20
"""Candidates that are kept at most before they are settled, for all queries of a block together."""

Exact = Callable[[Tensor, Tensor], Tensor]


class Shortlist:
    """Keeps, for each of q queries, every candidate that may be among its k best, ties by row.

    A candidate is a row with a lower and an upper bound of its key; small keys are good. `limit` is, for each query, a
    value that the key of its k-th best surely does not exceed; it only falls.

    Args:
        limit: (q,) float64 what is known of that value at first; inf where nothing is. Changed in place.
        k: How many are wanted, at least 1.
        exact: Gives (P,) float64 keys of P listed (query, position) pairs, the same to the last bit whenever asked.
        rows: (N,) int64 row at each position, which decides ties.
        groups: (N,) int64 group of each position, where only the best of each group counts; None otherwise.
    """

    def __init__(
        self,
        limit: Tensor,
        k: int,
        exact: Exact,
        rows: Tensor,
        groups: Tensor | None = None,
    ) -> None:
        self.limit, self._k, self._exact, self._rows, self._groups = limit, k, exact, rows, groups
        self._capacity = max(CAPACITY, 2 * k * len(limit))
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._size = 0

    def add(self, query: Tensor, position: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Take candidates, each pair at most once in the life of the list.

        Args:
            query: (P,) int64, 0 <= query < q.
            position: (P,) int64.
            lower: (P,) float64 bound of the key from below.
            upper: (P,) float64 from above; inf where the candidate may turn out not to count at all.
        """
        if self._k == 1:
            self.limit.scatter_reduce_(0, query, upper, "amin")
            kept = (lower <= self.limit[query]).nonzero().squeeze(1)
            query, position, lower, upper = query[kept], position[kept], lower[kept], upper[kept]
        self._parts.append((query, position, lower, upper))
        self._size += len(query)
        if self._size > self._capacity:
            self.tighten()
            if self._size > self._capacity // 2:
                self._compress()

    def tighten(self) -> None:
        """Lower the limits by what has come, and forget what they rule out."""
        query, position, lower, upper = self._joined()
        if self._k > 1 and len(query):
            order = self._first_of_groups(query, position, upper)
            order = _sorted(order, upper, query)
            at_k = order[_rank(query[order]) == self._k - 1]
            self.limit.scatter_reduce_(0, query[at_k], upper[at_k], "amin")
        kept = (lower <= self.limit[query]).nonzero().squeeze(1)
        self._keep(query[kept], position[kept], lower[kept], upper[kept])

    def settle(self) -> tuple[Tensor, Tensor]:
        """The k best of every query by exact key.

        Returns:
            (q, k) int64 positions, best first, -1 where there are no more, and (q, k) float64 keys, inf there.
        """
        self.tighten()
        query, position, key = self._best()
        rank = _rank(query)
        positions = torch.full((len(self.limit), self._k), -1, dtype=torch.int64, device=self.limit.device)
        keys = torch.full(positions.shape, torch.inf, dtype=torch.float64, device=self.limit.device)
        positions[query, rank], keys[query, rank] = position, key
        return positions, keys

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, positions and lower bounds, (P,) each, of all that is on the list now."""
        return self._joined()[:3]

    def _compress(self) -> None:
        query, position, key = self._best()
        self._keep(query, position, key, key)
        self.tighten()

    def _best(self) -> tuple[Tensor, Tensor, Tensor]:
        """At most k candidates of each query, best first, queries ascending, with exact keys."""
        query, position, _, _ = self._joined()
        key = self._exact(query, position)
        counts = (key < torch.inf).nonzero().squeeze(1)
        query, position, key = query[counts], position[counts], key[counts]
        by_row = self._rows[position].argsort(stable=True)
        order = _sorted(self._first_of_groups(query, position, key, by_row), key, query)
        order = order[_rank(query[order]) < self._k]
        return query[order], position[order], key[order]

    def _first_of_groups(
        self, query: Tensor, position: Tensor, key: Tensor, order: Tensor | None = None
    ) -> Tensor:
        """Which candidates are the best of their query and group, in the order given: all without groups."""
        order = torch.arange(len(query), device=query.device) if order is None else order
        if self._groups is None:
            return order
        groups = self._groups[position]
        ordered = _sorted(order, key, groups, query)
        changes = torch.ones(len(ordered), dtype=torch.bool, device=query.device)
        changes[1:] = (groups[ordered].diff() != 0) | (query[ordered].diff() != 0)
        best = torch.zeros(len(ordered), dtype=torch.bool, device=query.device)
        best[ordered[changes]] = True
        return order[best[order]]

    def _joined(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = self.limit.device
        if not self._parts:
            none = torch.empty(0, dtype=torch.int64, device=device)
            return none, none, none.double(), none.double()
        if len(self._parts) > 1:
            query, position, lower, upper = (torch.cat(part) for part in zip(*self._parts, strict=True))
            self._parts = [(query, position, lower, upper)]
        return self._parts[0]

    def _keep(self, query: Tensor, position: Tensor, lower: Tensor, upper: Tensor) -> None:
        self._parts, self._size = [(query, position, lower, upper)], len(query)


def _sorted(order: Tensor, *keys: Tensor) -> Tensor:
    """`order` sorted by several keys, the last one first of all; ties stay as they are."""
    for key in keys:
        order = order[key[order].argsort(stable=True)]
    return order


def _rank(ascending: Tensor) -> Tensor:
    """Place of each element in its run of equal ones."""
    places = torch.arange(len(ascending), device=ascending.device)
    return places - torch.searchsorted(ascending, ascending)
