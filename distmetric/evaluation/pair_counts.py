"""Exact order statistics of the distances of all pairs, by counting: no list of distances, and additive over workers.

A first pass over the pairs counts them in narrow bins of distance. What is asked for lies in one bin; further passes
count that bin in ever narrower ones, down to a single value. Where a bin holds few pairs, the second pass keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.pair_distances import PairTable

Counts = NDArray[np.int64]
"""(2, bins) numbers of pairs: of the same class, of different classes."""

Query = Callable[[Counts], NDArray[np.bool_]]
"""Given (2, n) numbers of pairs up to n ascending distances, whether each is far enough; monotone."""

Add = Callable[[Tensor], Tensor]
"""Sums an int64 tensor over all workers."""

_PART_BITS = 13
_KEPT_BYTES = 64 << 20


def identity(counts: Tensor) -> Tensor:
    """The sum over workers of a single one."""
    return counts


def at_least(number: int, *, same: bool | None = None) -> Query:
    """The query for the `number`-th smallest distance of all pairs, or of those of one class or of two."""
    rows = [0, 1] if same is None else [0 if same else 1]
    return lambda upto: upto[rows].sum(axis=0) >= number


@dataclass(frozen=True)
class Found:
    """The smallest distance that satisfies a query.

    Attributes:
        squared: the squared distance, in units.
        below: pairs of the same class and of different classes that are nearer.
        upto: the same with those at this distance.
    """

    squared: int
    below: tuple[int, int]
    upto: tuple[int, int]


@dataclass(frozen=True)
class _Interval:
    """Squared distances first..last (inclusive), counted in parts of 2^shift."""

    first: int
    last: int
    pairs: int = field(compare=False)

    @property
    def shift(self) -> int:
        return max(0, (self.last - self.first).bit_length() - _PART_BITS)

    @property
    def parts(self) -> int:
        return ((self.last - self.first) >> self.shift) + 1

    def part(self, number: int, pairs: int) -> _Interval:
        first = self.first + (number << self.shift)
        return _Interval(first, min(first + (1 << self.shift) - 1, self.last), pairs)

    def holds(self, other: _Interval) -> bool:
        return self.first <= other.first and other.last <= self.last


@dataclass(frozen=True, eq=False)
class _Kept:
    """This worker's pairs within an interval."""

    squared: Tensor
    same: Tensor


@dataclass(eq=False)
class PairCounts:
    """How many pairs of one class and of two there are up to any distance; made by `count_distances`.

    Attributes:
        table: the rows.
        own: the anchors of this worker.
        add: sums counts over workers.
        block_bytes: memory for a block of distances.
        rate: a pair is in bin floor(rate * sqrt(squared distance)), each step rounded to float32.
        counts: (2, bins) over all workers.
        inside_folds: (F, 2, bins) pairs of which both rows are in fold f.
        across_folds: (F, 2, bins) pairs of which one row is in fold f. Both are empty for a single fold.
    """

    table: PairTable
    own: slice | None
    add: Add
    block_bytes: int | None
    rate: float
    counts: Counts
    inside_folds: Counts
    across_folds: Counts
    _parts: dict[_Interval, Counts] = field(default_factory=dict)
    _kept: dict[_Interval, _Kept] = field(default_factory=dict)

    def find(self, queries: Sequence[Query]) -> list[Found]:
        """The smallest distance that satisfies each query; every query must hold for all pairs together.

        Cost: at most four passes over the pairs, usually one, for any number of queries at once.
        """
        while True:
            answers = [self._descend(query) for query in queries]
            missing = {answer for answer in answers if isinstance(answer, _Interval)}
            if not missing:
                return [answer for answer in answers if isinstance(answer, Found)]
            self._count_parts(sorted(missing, key=lambda interval: interval.first))

    def pairs_before_bin_of(self, query: Query) -> int:
        """How many pairs lie in the bins before the one in which a query is first satisfied."""
        return int(_locate(query, self.counts, np.zeros(2, dtype=np.int64))[1].sum())

    def first_of_bins(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The smallest squared distance in each of some bins or a later one."""
        low = np.zeros_like(numbers)
        high = np.full_like(numbers, self.table.grid.farthest + 1)
        while bool((low < high).any()):
            middle = (low + high) // 2
            there = _bins_of(middle, self.rate) >= numbers
            high, low = np.where(there, middle, high), np.where(there, low, np.minimum(middle + 1, high))
        return low

    def last_of_bins(self, numbers: NDArray[np.int64]) -> list[float]:
        """The largest distance in each of some bins or an earlier one."""
        last = self.first_of_bins(numbers + 1) - 1
        return [self.table.grid.distance(squared) for squared in last.tolist()]

    def _descend(self, query: Query) -> Found | _Interval:
        """Follow a query down to one distance, or to the interval that has to be counted first."""
        below = np.zeros(2, dtype=np.int64)
        place, below, inside = _locate(query, self.counts, below)
        first, after = self.first_of_bins(np.array([place, place + 1])).tolist()
        interval = _Interval(first, after - 1, int(inside.sum()))
        while interval.first < interval.last:
            if interval not in self._parts:
                return interval
            place, below, inside = _locate(query, self._parts[interval], below)
            interval = interval.part(place, int(inside.sum()))
        upto = below + inside
        return Found(interval.first, (int(below[0]), int(below[1])), (int(upto[0]), int(upto[1])))

    def _count_parts(self, intervals: list[_Interval]) -> None:
        """Count all the intervals in parts, in one pass over the pairs if there is one to make."""
        counted = {interval: _no_counts(interval.parts, self.table) for interval in intervals}
        rest = [one for one in intervals if not any(kept.holds(one) for kept in self._kept)]
        keep = sum(interval.pairs for interval in rest) * 9 <= _KEPT_BYTES
        pieces: dict[_Interval, list[_Kept]] = {interval: [] for interval in rest}
        for interval, found in self._pairs_within(rest) if rest else ():
            if keep:
                pieces[interval].append(found)
            else:
                counted[interval] += _parts_of(interval, found)
        if keep:
            for interval, parts in pieces.items():
                self._kept[interval] = _joined(parts, self.table)
        for interval in intervals:
            for kept, found in self._kept.items():
                if kept.holds(interval):
                    inside = (found.squared >= interval.first) & (found.squared <= interval.last)
                    counted[interval] += _parts_of(interval, _Kept(found.squared[inside], found.same[inside]))
        totals = self.add(torch.cat([counted[interval] for interval in intervals], dim=1)).cpu().numpy()
        ends = np.cumsum([interval.parts for interval in intervals])[:-1]
        self._parts.update(zip(intervals, np.split(totals, ends, axis=1), strict=True))

    def _pairs_within(self, intervals: list[_Interval]) -> Iterator[tuple[_Interval, _Kept]]:
        """This worker's pairs within disjoint intervals that are in ascending order."""
        firsts = torch.tensor([one.first for one in intervals], dtype=torch.float64)
        lasts = torch.tensor([one.last for one in intervals], dtype=torch.float64)
        firsts, lasts = firsts.to(self.table.points.device), lasts.to(self.table.points.device)
        for block in self.table.blocks(self.own, self.block_bytes):
            squared, same = block.squared, block.same
            near = squared <= intervals[-1].last
            if intervals[0].first > 0:
                near &= squared >= intervals[0].first
            candidates = squared[near]
            if not len(candidates):
                continue
            flags = torch.zeros_like(candidates, dtype=torch.bool) if same is None else same[near]
            place = torch.searchsorted(firsts, candidates, right=True) - 1
            place.masked_fill_(candidates > lasts[place], -1)
            for number, interval in enumerate(intervals):
                inside = place == number
                yield interval, _Kept(candidates[inside], flags[inside])


@torch.no_grad()
def count_distances(
    table: PairTable,
    rate: float,
    *,
    own: slice | None = None,
    add: Add = identity,
    block_bytes: int | None = None,
) -> PairCounts:
    """Count all pairs in bins of equal width in distance.

    Args:
        table: The rows.
        rate: Bins for each unit of distance; rounded to float32.
        own: The anchors this worker takes; all workers together take every anchor once.
        add: Sums an int64 tensor over all workers.
        block_bytes: Memory for a block of distances; None for `PAIR_BLOCK_BYTES`.

    Returns:
        The counts, the same on every worker, to be asked for more.

    Raises:
        InputError: when the anchors of all workers are not all anchors.

    Cost: one pass over this worker's pairs; 16 bytes for each bin, and 32 for each bin and fold.
    """
    device = table.points.device
    rate = float(np.float32(rate))
    bins = int(_bins_of(np.array([table.grid.farthest]), rate)[0]) + 1
    folds = len(table.fold_ends) + 1 if table.fold_ends else 0
    # Of all folds, then inside each of them, then across: pairs of one class, and all pairs.
    counts = torch.zeros(1 + 2 * folds, 2, bins, dtype=torch.int64, device=device)
    for block in table.blocks(own, block_bytes):
        numbers = bins_of(block.squared, rate)
        everything = torch.bincount(numbers.flatten(), minlength=bins)
        positive = None if block.same is None else torch.bincount(numbers[block.same], minlength=bins)
        for place in _places(block.folds, folds):
            counts[place, 1] += everything
            if positive is not None:
                counts[place, 0] += positive
    total = add(counts).cpu().numpy()
    counted, wanted = int(total[0, 1].sum()), table.num_positives + table.num_negatives
    if counted != wanted:
        raise InputError(
            f"the slices of all workers must hold every anchor once: {wanted} pairs are wanted, {counted} were counted"
        )
    total[:, 1] -= total[:, 0]
    return PairCounts(table, own, add, block_bytes, rate, total[0], total[1 : 1 + folds], total[1 + folds :])


def _places(pair: tuple[int, int], folds: int) -> list[int]:
    """Where `count_distances` counts pairs of two folds."""
    if not folds:
        return [0]
    return [0, 1 + pair[0]] if pair[0] == pair[1] else [0, *(1 + folds + fold for fold in pair)]


def bins_of(squared: Tensor, rate: float) -> Tensor:
    """The bins (int32) that `count_distances` counts pairs in: the same anywhere, as every step is rounded once."""
    return squared.float().sqrt_().mul_(rate).to(torch.int32)


def _bins_of(squared: NDArray[np.int64], rate: float) -> NDArray[np.int64]:
    """The same on the host."""
    return (np.sqrt(squared.astype(np.float32)) * np.float32(rate)).astype(np.int64)


def _locate(
    query: Query, counts: Counts, below: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """The first of some bins up to which a query holds, the pairs before that bin, and those in it."""
    upto = counts.cumsum(axis=1) + below[:, None]
    place = int(query(upto).argmax())
    return place, upto[:, place] - counts[:, place], counts[:, place]


def _no_counts(parts: int, table: PairTable) -> Tensor:
    return torch.zeros(2, parts, dtype=torch.int64, device=table.points.device)


def _joined(pieces: list[_Kept], table: PairTable) -> _Kept:
    nothing = table.points.new_empty(0)
    squared = torch.cat([nothing, *(piece.squared for piece in pieces)])
    same = torch.cat([nothing.bool(), *(piece.same for piece in pieces)])
    return _Kept(squared, same)


def _parts_of(interval: _Interval, found: _Kept) -> Tensor:
    # Whole numbers below 2^53 and powers of two: exact, and truncation is the shift.
    numbers = ((found.squared - interval.first) * 2.0**-interval.shift).to(torch.int64)
    positive = torch.bincount(numbers[found.same], minlength=interval.parts)
    return torch.stack([positive, torch.bincount(numbers, minlength=interval.parts) - positive])
